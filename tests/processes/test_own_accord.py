"""What the real service does of its own accord: it embeds new memories that are written, and warms what its plan says.

Nothing is forced here: the budget, which has the whole machine, admits it, or the test waits until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import numpy as np
import pytest

from morgan.background.data import documents
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import ExecutionRecord, Point, TaskStatus
from morgan.background.supervisor.journal import Journal
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)

CHAT = """
[collections.chat]
text_field = "said"
time_field = "at"
recency_half_life_days = 10
new_points = true
"""
DAY_S = 86400.0
SIZE = 384  # of the default model's vectors
QUERY = "How is zinc taken up in the gut?"

T = TypeVar("T")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    one = Daemon({"MORGAN_SERVICE_CHECK_INTERVAL_S": "1", "MORGAN_SCHEDULE_AUTO": "true"})
    (one.root / "config.toml").write_text(CHAT)
    try:
        yield one.start()
    finally:
        one.close()


def memory(point_id: int, text: str, days_ago: float) -> Point:
    """One as an application writes it: with a vector that is not the model's."""
    at = datetime.fromtimestamp(datetime.now(UTC).timestamp() - days_ago * DAY_S, UTC).isoformat()
    return Point(id=point_id, payload={"said": text, "at": at}, vector=np.full(SIZE, 0.05, "<f4").tobytes())


def executed(
    daemon: Daemon, task_type: str, collection: str, is_wanted: Callable[[ExecutionRecord], bool]
) -> ExecutionRecord:
    """Wait until the service has run such a task; return what it says of it."""

    def found(_: object) -> ExecutionRecord | None:
        asked = messages.ListExecutions(task_type=task_type, collection=collection)
        listed = expect(messages.ExecutionList, daemon.client.request(asked)).executions
        assert all(one.status is not TaskStatus.FAILED for one in listed), listed
        return next((one for one in listed if one.status is TaskStatus.COMPLETED and is_wanted(one)), None)

    return daemon.until(found)


def test_a_new_memory_is_embedded_without_a_full_run_and_found_before_an_older_one(daemon: Daemon) -> None:
    daemon.client.create_collection("chat", SIZE)
    said = ["my cat's name is Momo", "I like my coffee black", "the meeting is on Friday"]
    daemon.client.upsert("chat", [memory(n, text, 300) for n, text in enumerate(said, start=1)])
    daemon.run("reindex", "chat", without_gate=True)
    daemon.client.upsert("chat", [memory(9, "my cat is called Momo", 0)])
    done = executed(daemon, "reindex", "chat", lambda one: (one.result or {}).get("how") == "new_points")
    assert done.result is not None
    assert (done.result["documents_processed"], done.result["documents_embedded"]) == (1, 1)
    found = daemon.client.search("what is the name of my cat", "chat", 4, is_reranked=True)
    assert [hit.id for hit in found.hits][:2] == [9, 1]
    assert found.hits[0].score != found.hits[0].rerank_score


def test_a_schedule_that_is_due_warms_what_was_asked_and_moves_on(daemon: Daemon) -> None:
    daemon.client.create_collection("docs")
    daemon.client.upsert("docs", [dict(one) for one in documents()[:24]])
    for _ in range(3):
        daemon.client.track(QUERY, "docs")
    wanted = messages.AddSchedule(task_type="warm", collection="docs", frequency="hourly")
    (added,) = expect(messages.ScheduleList, daemon.client.request(wanted)).schedules
    daemon.stop()
    journal = Journal(daemon.state / "journal.sqlite3")  # an hour passes: the clock cannot be moved
    due_at = added.next_run_at - 3600
    journal.save_schedule(msgspec.structs.replace(added, next_run_at=due_at))
    journal.commit()
    journal.close()
    daemon.start()
    done = executed(daemon, "warm", "docs", lambda one: bool((one.result or {}).get("queries_processed")))
    assert done.result is not None
    assert done.result["queries_processed"] == 1
    held = daemon.client.reader.get(QUERY, "docs")
    assert held is not None
    assert held.hits()[0].rerank_score is not None
    listed = expect(messages.ScheduleList, daemon.client.request(messages.ListSchedules())).schedules
    (moved,) = [one for one in listed if one.task_id == added.task_id]
    assert moved.next_run_at > due_at
    (warmed,) = [one for one in daemon.client.status()["warming"]["collections"] if one["collection_name"] == "docs"]
    assert warmed["next_run"] == moved.next_run_at
