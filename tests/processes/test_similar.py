"""A similar query served another's result by a real daemon: never without evidence, and counted until its truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from morgan.background.ipc.messages import Publish
from morgan.background.ipc.records import ComputedResult
from morgan.background.supervisor.ledger import FIRST_LOOK
from tests.processes.daemons import NO_MODEL, Daemon

ROWS = tuple(range(10))


def vector(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([1, number / 1e5], dtype="<f4")


def published(daemon: Daemon, text: str, number: int, ids: tuple[int, ...] = ROWS) -> None:
    """Publish a result as the service's own searches do: with vector and candidates."""
    result = ComputedResult(
        query_text=text,
        collection="docs",
        ids=ids,
        scores=bytes(4 * len(ids)),
        contents=tuple(map(str, ids)),
        sources=("",) * len(ids),
        metadata=({},) * len(ids),
        computed_at=1.0 + number,
        embedding=vector(number).tobytes(),
        candidates=ids,
        cutoff=0.5,
    )
    daemon.client.request(Publish(result=result))


def similar(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.client.status()["cache"]["similar"]
    return found


def test_a_similar_query_is_served_with_evidence_alone_and_its_truth_decides(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_CACHE_SIMILAR_ERRORS": "0.1"}).start()
    published(daemon, "entry", 0)
    assert daemon.client.find_similar("asked", "docs", vector(1).tolist()) is None
    for number in range(1, FIRST_LOOK + 1):
        published(daemon, f"miss {number}", number)
    report = similar(daemon)
    assert (report["audits"], report["audit_errors"], report["served"]) == (FIRST_LOOK, 0, 0)
    assert report["certified_from"] == {"docs": 0.99}
    stats = daemon.client.status()["cache"]
    assert (stats["total_cached_queries"], stats["aliases"]) == (FIRST_LOOK + 1, FIRST_LOOK)
    for _ in range(8):  # one error of ten requests is allowed: there have to be ten
        assert daemon.client.find_similar("asked", "docs", vector(1).tolist()) is None
    found = daemon.client.search("asked", "docs", vector=vector(1).tolist())
    assert (found.is_precomputed, found.similar_to) == (True, "entry")
    assert [hit.id for hit in found.hits] == list(ROWS)
    assert daemon.client.find_similar("asked too", "docs", vector(1).tolist()) is None  # the first is pending
    report = similar(daemon)
    assert [report[key] for key in ("requests", "served", "pending", "errors", "bound")] == [11, 1, 1, 0, 1 / 11]
    published(daemon, "asked", 1, ids=(*range(7), 20, 21, 22))
    report = similar(daemon)
    assert [report[key] for key in ("served", "pending", "errors")] == [1, 0, 1]
    again = daemon.client.search("asked", "docs", vector=vector(1).tolist())
    assert (again.similar_to, [hit.id for hit in again.hits]) == (None, [*range(7), 20, 21, 22])
