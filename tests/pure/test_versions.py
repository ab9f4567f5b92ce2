"""How versions of a collection are named, and which are dropped when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import CollectionInfo
from morgan.background.workers.versions import (
    base_of,
    building_alias,
    expired,
    is_ours,
    kept_alias,
    kept_versions,
    next_version,
    own_name,
    serving_aliases,
)


def info(name: str, *aliases: str) -> CollectionInfo:
    return CollectionInfo(name=name, points=0, vector_size=1, distance="cosine", aliases=aliases)


@given(st.text(alphabet="abc_v1", min_size=1), st.integers(0, 4_000_000_000))
def test_a_kept_alias_says_what_it_was_and_until_when(base: str, until_at: int) -> None:
    (kept,) = kept_versions([info("x", kept_alias(base, until_at), "other")])
    assert (kept.base, kept.collection, kept.until_at) == (base, "x", until_at)


def test_the_next_version_is_above_every_one_and_a_collection_of_its_own_name_counts_as_the_first() -> None:
    assert next_version("docs", []) == "docs__v1"
    assert next_version("docs", [info("docs")]) == "docs__v2"
    assert next_version("docs", [info("docs__v9", "docs"), info("docs__v10"), info("other__v99")]) == "docs__v11"
    assert next_version("docs", [info("x", "docs__v3")]) == "docs__v4"
    assert own_name("docs", [info("docs"), info("docs__v2")]) == "docs__v1"
    assert own_name("docs", [info("docs"), info("docs__v1")]) == "docs__v2"


def test_versions_are_named_after_the_alias_that_was_asked_for() -> None:
    served = info("docs__v2", "docs", "also")
    assert base_of("also", served) == "also"
    assert base_of("docs__v2", served) == "docs"
    assert base_of("docs", info("docs")) == "docs"
    assert base_of("docs__v2", info("docs__v2", building_alias("docs"))) == "docs"


def test_our_own_aliases_serve_nobody() -> None:
    ours = (building_alias("docs"), kept_alias("docs", 1.0))
    assert all(map(is_ours, ours))
    assert not is_ours("docs")
    assert serving_aliases(info("docs__v1", "docs", *ours)) == ("docs",)


def test_a_version_is_dropped_when_its_last_time_is_over_and_never_while_it_is_searched() -> None:
    both = info("docs__v1", kept_alias("docs", 100), kept_alias("docs", 200))
    assert expired([both], 150) == []
    assert expired([both], 200) == ["docs__v1"]
    assert expired([info("docs__v1", "docs", kept_alias("docs", 100))], 200) == []
    assert expired([info("docs__v1", "docs")], 200) == []
