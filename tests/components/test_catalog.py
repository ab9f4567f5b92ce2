"""The map of the embedded store: what it refuses, what a reader of the file finds, what a crash leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from morgan.background.ipc.errors import ConfigError, InvalidArgument
from morgan.background.workers.catalog import Catalog, Entry

ENTRY = Entry(folder="f", vector_size=4, distance="cosine", vector_name="dense")


def test_a_catalog_reopened_is_the_one_that_was_written(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.json")
    assert catalog.names() == Catalog(tmp_path / "c.json").names() == []
    assert (tmp_path / "c.json").exists()
    catalog.add("docs", ENTRY)
    catalog.point("live", "docs")
    again = Catalog(tmp_path / "c.json")
    assert again.contents == catalog.contents
    assert again.contents.collections == {"docs": ENTRY}
    assert (again.resolve("live"), again.resolve("docs"), again.resolve("none")) == ("docs", "docs", None)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_name_is_taken_by_a_collection_or_an_alias(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.json")
    catalog.add("docs", ENTRY)
    catalog.point("live", "docs")
    for name in ("docs", "live"):
        with pytest.raises(InvalidArgument, match=f"'{name}' exists already"):
            catalog.add(name, ENTRY)
    with pytest.raises(InvalidArgument, match="'docs' exists already"):
        catalog.point("docs", "docs")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"collections": {"a": {"folder": 1}}}'])
def test_a_damaged_catalog_is_named_and_left_as_it_is(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"c\.json cannot be read .*restore it from a backup"):
        Catalog(path)
    assert path.read_bytes() == raw


def test_a_half_written_successor_is_not_read_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    Catalog(path).add("docs", ENTRY)
    (tmp_path / "c.new").write_bytes(b'{"version": 1, "coll')
    catalog = Catalog(path)
    assert catalog.names() == ["docs"]
    catalog.point("live", "docs")
    assert Catalog(path).names() == ["docs", "live"]
    assert not (tmp_path / "c.new").exists()


def test_a_change_that_cannot_be_written_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    catalog = Catalog(path)
    catalog.add("docs", ENTRY)
    (tmp_path / "c.new").mkdir()  # nothing can be written there
    with pytest.raises(IsADirectoryError):
        catalog.add("more", ENTRY)
    with pytest.raises(IsADirectoryError):
        catalog.point("live", "docs")
    with pytest.raises(IsADirectoryError):
        catalog.remove("docs")
    assert catalog.names() == Catalog(path).names() == ["docs"]


def test_a_person_can_read_the_file(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.json")
    catalog.add("docs", ENTRY)
    catalog.point("live", "docs")
    assert json.loads((tmp_path / "c.json").read_text()) == {
        "version": 1,
        "collections": {
            "docs": {
                "folder": "f",
                "vector_size": 4,
                "distance": "cosine",
                "vector_name": "dense",
                "index": {"m": 0, "ef_construct": 0, "ef": 0},
            }
        },
        "aliases": {"live": "docs"},
    }


NAMES = st.sampled_from(["a", "b", "c", "d"])


class Changes(RuleBasedStateMachine):
    """A catalog beside two plain dicts; after every change the file holds what memory holds."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.collections, self.aliases, self.made = dict[str, Entry](), dict[str, str](), 0

    @initialize()
    def begin(self) -> None:
        self.path.unlink(missing_ok=True)
        self.catalog = Catalog(self.path)

    @rule(name=NAMES)
    def add(self, name: str) -> None:
        self.made += 1
        entry = Entry(folder=str(self.made), vector_size=self.made, distance="dot")
        if name in self.collections or name in self.aliases:
            with pytest.raises(InvalidArgument):
                self.catalog.add(name, entry)
        else:
            self.catalog.add(name, entry)
            self.collections[name] = entry

    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        if self.collections:
            name = data.draw(st.sampled_from(sorted(self.collections)))
            self.catalog.remove(name)
            del self.collections[name]
            self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}

    @rule(alias=NAMES, data=st.data())
    def point(self, alias: str, data: Any) -> None:
        if not self.collections:
            return
        name = data.draw(st.sampled_from(sorted(self.collections)))
        if alias in self.collections:
            with pytest.raises(InvalidArgument):
                self.catalog.point(alias, name)
        else:
            self.catalog.point(alias, name)
            self.aliases[alias] = name

    @invariant()
    def file_and_memory_agree(self) -> None:
        if not hasattr(self, "catalog"):
            return
        for catalog in (self.catalog, Catalog(self.path)):
            assert catalog.contents.collections == self.collections
            assert catalog.contents.aliases == self.aliases
            assert sorted(catalog.names()) == sorted([*self.collections, *self.aliases])
            for name in self.collections:
                assert catalog.resolve(name) == name
                assert catalog.aliases_of(name) == tuple(sorted(a for a, t in self.aliases.items() if t == name))
            assert all(catalog.resolve(alias) == target for alias, target in self.aliases.items())


def test_any_order_of_changes_leaves_file_and_memory_equal(tmp_path: Path) -> None:
    machine = type("ChangesHere", (Changes,), {"path": tmp_path / "c.json"})
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=15, deadline=None))
