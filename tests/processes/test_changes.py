"""A search after a write sees the write: results in shared memory are dropped, or kept, by what they depend on."""

from __future__ import annotations

import time

import pytest

from morgan.background.data import documents
from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import SearchResult, expect
from morgan.background.ipc.records import TaskStatus, TaskType
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)

QUERY = "How is zinc taken up in the gut?"


def ids(found: SearchResult) -> list[int | str]:
    return [hit.id for hit in found.hits]


def filled(daemon: Daemon, name: str, count: int = 24) -> None:
    daemon.client.create_collection(name)
    daemon.client.upsert(name, [dict(document) for document in documents()[:count]])


def cached(daemon: Daemon, name: str, limit: int = 5) -> SearchResult:
    """Search until the result comes from shared memory: the owner answers before the supervisor has published."""
    deadline_at = time.monotonic() + 30
    while not (found := daemon.client.search(QUERY, name, limit)).is_precomputed:
        assert time.monotonic() < deadline_at, "the result is not published"
        daemon.client.request(messages.CacheStats())
    return found


def test_a_document_that_belongs_into_a_cached_result_is_found_by_the_next_search(daemon: Daemon) -> None:
    filled(daemon, "grows")
    before = ids(cached(daemon, "grows"))
    daemon.client.upsert("grows", [{"id": 7, "text": QUERY, "source": "new"}])
    after = daemon.client.search(QUERY, "grows", 5)
    assert not after.is_precomputed
    assert ids(after) == [7, *before[:4]]


def test_a_document_that_cannot_be_in_a_cached_result_leaves_it_where_it_is(daemon: Daemon) -> None:
    filled(daemon, "stays")
    before = cached(daemon, "stays")
    daemon.client.upsert("stays", [{"id": 7, "text": "The treaty was signed in the spring of 1648.", "source": "new"}])
    after = daemon.client.search(QUERY, "stays", 5)
    assert after.is_precomputed
    assert ids(after) == ids(before)


def test_a_deleted_document_is_in_no_later_result(daemon: Daemon) -> None:
    filled(daemon, "shrinks")
    gone, *left = ids(cached(daemon, "shrinks"))
    daemon.client.delete("shrinks", [gone])
    assert ids(daemon.client.search(QUERY, "shrinks", 5))[:4] == left


def test_a_collection_with_fewer_documents_than_asked_for_is_cached_as_well(daemon: Daemon) -> None:
    filled(daemon, "small", 3)
    assert len(cached(daemon, "small", limit=10).hits) == 3
    daemon.client.upsert("small", [{"id": 7, "text": "Anything at all.", "source": "new"}])
    assert len(daemon.client.search(QUERY, "small", 10).hits) == 4


def test_a_search_that_finds_nothing_is_cached_until_the_first_write(daemon: Daemon) -> None:
    daemon.client.create_collection("void")
    assert cached(daemon, "void").hits == ()
    filled_count = daemon.client.upsert("void", [{"id": 7, "text": "Zinc.", "source": "new"}])
    assert filled_count == 1
    assert ids(daemon.client.search(QUERY, "void", 5)) == [7]


def test_a_dropped_collection_and_a_moved_alias_leave_no_results_behind(daemon: Daemon) -> None:
    for name in ("first", "second"):
        daemon.client.create_collection(name)
        daemon.client.upsert(name, [{"id": 1, "text": f"Zinc in the {name}.", "source": name}])
    daemon.client.call(calls.SetAlias(alias="current", collection="first"))
    assert cached(daemon, "current").hits[0].payload["source"] == "first"
    daemon.client.call(calls.SetAlias(alias="current", collection="second"))
    assert daemon.client.search(QUERY, "current").hits[0].payload["source"] == "second"
    cached(daemon, "first")
    daemon.client.call(calls.Drop(collection="first"))
    assert daemon.client.reader.get(QUERY, "first") is None


def test_what_a_reindex_changed_is_served_meanwhile_and_computed_again_by_itself(daemon: Daemon) -> None:
    client = daemon.client
    filled(daemon, "refreshed")
    before = cached(daemon, "refreshed")
    # the best document's vector is somebody's else's by now, written behind our back as far as the cache knows
    page = expect(calls.Page, client.call(calls.Fetch(collection="refreshed", ids=(ids(before)[0],))))
    (point,) = page.points
    client.upsert(
        "refreshed", [{"id": point.id, "vector": [0.0] * 383 + [1.0], "payload": {"text": point.payload["text"]}}]
    )
    wrong = cached(daemon, "refreshed")
    assert ids(wrong)[0] != point.id
    daemon.run("reindex", "refreshed")
    # served until the warm task that follows by itself has computed it anew; that one waits for CPU to spare
    listed = expect(messages.TaskList, client.request(messages.ListTasks(limit=10))).tasks
    (follow_up,) = [task for task in listed if (task.task_type, task.collection) == (TaskType.WARM, "refreshed")]
    # equal to the pending one: that is raised, not doubled; were it running or over, this one finds nothing to do
    raised = messages.Submit(task_type="warm", collection="refreshed", is_forced=True)
    assert daemon.finished(expect(messages.Submitted, client.request(raised)).task_id).status is not TaskStatus.FAILED
    assert daemon.finished(follow_up.task_id).status is TaskStatus.COMPLETED
    found = client.search(QUERY, "refreshed", 5)
    assert found.is_precomputed
    assert point.id in ids(found)


def test_a_change_made_elsewhere_can_be_reported(daemon: Daemon) -> None:
    filled(daemon, "reported")
    cached(daemon, "reported")
    daemon.client.report_change("reported", [123456789])  # no such point: as if it had been deleted
    assert daemon.client.search(QUERY, "reported", 5).is_precomputed
    daemon.client.report_change("reported")
    assert not daemon.client.search(QUERY, "reported", 5).is_precomputed
