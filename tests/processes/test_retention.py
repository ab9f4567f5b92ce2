"""A version that is kept for a roll-back goes when its time has passed, whether anything is re-indexed or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.chaos.victim import STANDIN
from morgan.background.ipc import calls
from morgan.background.ipc.client import expect
from tests.processes.conftest import some_documents
from tests.processes.daemons import Daemon


def count(daemon: Daemon) -> int:
    return len(expect(calls.CollectionList, daemon.client.call(calls.Collections())).collections)


def test_the_owner_drops_a_version_whose_retention_has_passed(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    stand_in = {"PYTHONPATH": str(STANDIN), "MORGAN_MODEL_NAME": "stand-in"}
    daemon = make_daemon({**stand_in, "MORGAN_REINDEX_RETENTION_HOURS": "0"}).start()
    daemon.client.create_collection("docs")
    daemon.client.upsert("docs", some_documents())
    assert daemon.run("reindex", "docs", force_rebuild=True, without_gate=True)["swapped"]
    assert count(daemon) == 2
    daemon.stop()
    daemon.start()

    def is_alone(_: dict[str, Any]) -> bool | None:
        return count(daemon) == 1 or None

    daemon.until(is_alone)
    assert len(daemon.points("docs")) == len(some_documents())
