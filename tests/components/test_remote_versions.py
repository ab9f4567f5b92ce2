"""Roll-back, adopt-alias and retention of a server's versions, over real HTTP with faults.

What is tried against what server, and what has to be true afterwards: test_remote_http.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from bench.fake_qdrant.faults import Kind
from morgan.background.ipc.errors import InvalidArgument, StoreUnavailable
from morgan.background.workers.adopting import adopt_alias
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.rollback import roll_back
from morgan.background.workers.versions import kept_alias, kept_versions

from .remote_calls import (
    ALIASES,
    CREATE,
    DELETE,
    DROP,
    KINDS,
    READS,
    UPSERT,
    fault,
)
from .remote_site import NEW, NOW, OLD, Site

MakeSite = Callable[..., Site]


# --- the way back -----------------------------------------------------------------------------------------------------


def again_until_done(site: Site, do: Callable[[], Any]) -> None:
    """Do as an operator does: the same command again, until it is not told that the server does not answer."""
    while True:
        try:
            do()
            return
        except StoreUnavailable as error:
            site.failures.append(str(error))
            assert len(site.failures) < 20, site.failures
            site.between()
        except InvalidArgument:
            if not site.failures:
                raise
            return  # told in words that it is done already; what came of it is checked


@pytest.mark.parametrize("kind", KINDS)
def test_a_roll_back_that_fails_or_whose_answer_is_lost_is_done_once(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill_swapped()
    site.fake.strike(fault(kind, ALIASES))
    site.between = site.fake.release
    again_until_done(site, partial(roll_back, site.store, site.name, is_forced=False, until_at=NOW + 7200))
    site.fake.release()  # what the server held takes effect after all
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    site.check(OLD)
    site.check_one_way_back()
    assert [kept.alias for kept in kept_versions(site.versions())] == [kept_alias(site.name, NOW + 7200)]


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.CUT])
def test_a_roll_back_whose_every_kind_of_read_fails_once_is_done_in_the_end(site: Site, kind: Kind) -> None:
    site.fill_swapped()
    site.fake.strike(*(fault(kind, call) for call in READS))
    again_until_done(site, partial(roll_back, site.store, site.name, is_forced=False, until_at=NOW + 7200))
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    site.check(OLD)


# --- an alias for a collection that has none --------------------------------------------------------------------------

ADOPT_CALLS = {"create": CREATE, "copy": UPSERT, "drop": DROP, "alias": ALIASES}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ADOPT_CALLS for kind in (Kind.STATUS, Kind.LOST, Kind.LATE)],
)
def test_adopt_alias_that_was_cut_off_is_done_by_the_next_call(make_site: MakeSite, name: str, kind: Kind) -> None:
    site = make_site(kind).fill(NEW, alias=False)
    site.fake.strike(fault(kind, ADOPT_CALLS[name]))
    site.between = site.fake.release
    again_until_done(site, partial(adopt_alias, site.store, site.name, lambda *_: None))
    assert bool(site.failures) is (name != "drop")  # that is asked for again at once: searches fail meanwhile
    site.fake.release()
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    assert len(site.versions()) == 1
    site.check()


def test_adopt_alias_brings_what_is_written_while_it_copies_through_failing_reads(site: Site) -> None:
    site.fill(NEW, alias=False)

    to_come = iter(([fault(Kind.LOST, DELETE)], [fault(Kind.CUT, call) for call in READS]))

    def copied(done: int, total: int) -> None:
        """Once in each attempt: have it find differences, and fail."""
        if (faults := next(to_come, None)) is not None:
            site.write({1: f"written before {len(faults)} faults", 100: "added"})
            site.delete(2 + len(site.failures))
            site.fake.strike(*faults)

    again_until_done(site, partial(adopt_alias, site.store, site.name, copied))
    assert len(site.failures) >= 4
    assert site.served() == "v1"
    site.check()


# --- the end of what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_whose_time_is_over_is_dropped_in_the_end_and_no_other(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill_swapped()
    site.now += 3601
    site.fake.strike(fault(kind, DROP))
    site.between = site.fake.release
    assert site.run()["how"] == "in_place"
    assert site.failures
    assert [info.name for info in site.versions()] == [f"{site.name}__v2"]
    site.check()


def test_of_two_earlier_versions_the_older_one_is_dropped_at_the_swap(site: Site) -> None:
    site.fill_swapped()
    site.fake.strike(fault(Kind.CUT, DROP), fault(Kind.LOST, DROP))
    site.run(without_gate=True, force_rebuild=True)
    assert len(site.failures) >= 2
    site.check()
    assert [info.name.rpartition("__")[2] for info in site.versions()] == ["v2", "v3"]


def test_the_suite_leaves_what_is_not_its_own(site: Site, application: QdrantClient) -> None:
    """A re-index drops what has expired on the whole server: here it is shown its own collections alone."""
    other = f"not_{site.name}"
    try:
        application.create_collection(other, models.VectorParams(size=2, distance=models.Distance.DOT))
        QdrantStore(application).set_alias(kept_alias(other, 1.0), other)
        site.fill(NEW).run()
        assert application.collection_exists(other)
        with pytest.raises(AssertionError, match="not this test's"):
            site.store._client.delete_collection(other)
    finally:
        application.delete_collection(other)
