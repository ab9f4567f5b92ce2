"""What an application gets wrong is said in words, and nothing of what is stored is lost or changed by it."""

from __future__ import annotations

from typing import Any

import pytest

from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.errors import (
    CollectionNotFound,
    InvalidArgument,
    ServiceUnavailable,
    VectorSizeMismatch,
)
from morgan.background.ipc.records import TaskStatus
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)

FLAT = [1.0] + [0.0] * 383


def ended(daemon: Daemon, task_type: str, collection: str, **params: Any) -> tuple[TaskStatus, str]:
    """Run a task that cannot complete; return its state and what is said of it."""
    record = daemon.finished(daemon.submit(task_type, collection, **params))
    return record.status, record.error_message or (record.result or {})["reason"]


@pytest.mark.parametrize(
    ("task_type", "params", "words"),
    [
        ("reindexx", {}, r"reindexx.*reindex, rerank, warm"),
        ("", {}, "reindex, rerank, warm"),
        ("reindex", {"force": True}, r"no parameter 'force': it takes force_rebuild"),
        ("reindex", {"force_rebuild": "yes"}, r"'force_rebuild'.*true or false, not 'yes'"),
        ("rerank", {"max_queries": 0}, r"'max_queries'.*above 0, not 0"),
        ("rerank", {"max_queries": True}, r"'max_queries'.*whole number"),
        ("warm", {"queries": ["a", " "]}, r"'queries'.*non-empty texts"),
        ("rerank", {"scope": "some"}, r"'scope'.*popular or all"),
    ],
)
def test_a_task_that_does_not_exist_or_takes_no_such_parameter_is_refused(
    task_type: str, params: dict[str, Any], words: str, bare: Daemon
) -> None:
    before = expect(messages.TaskList, bare.client.request(messages.ListTasks(limit=1))).tasks
    with pytest.raises(InvalidArgument, match=words):
        bare.submit(task_type, "c", **params)
    assert expect(messages.TaskList, bare.client.request(messages.ListTasks(limit=1))).tasks == before


@pytest.mark.parametrize("frequency", ["minutely", "", "Daily "])
def test_a_frequency_that_does_not_exist_is_refused(frequency: str, bare: Daemon) -> None:
    with pytest.raises(InvalidArgument, match="hourly, daily, weekly"):
        bare.client.request(messages.AddSchedule(task_type="reindex", collection="c", frequency=frequency))
    assert expect(messages.ScheduleList, bare.client.request(messages.ListSchedules())).schedules == ()


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\0b", "a\nb", "a" * 256])
def test_a_name_that_cannot_be_a_collections_is_refused_everywhere(name: str, bare: Daemon) -> None:
    words = "cannot be a collection's name: 1 to 255 printable characters"
    for ask in (
        messages.Submit(task_type="reindex", collection=name),
        messages.AddSchedule(task_type="reindex", collection=name, frequency="daily"),
        messages.Pause(collection=name),
    ):
        with pytest.raises(InvalidArgument, match=words):
            bare.client.request(ask)
    with pytest.raises(InvalidArgument, match=words):
        bare.client.create_collection(name, 4)


def test_an_unknown_collection_is_an_error_that_lists_those_that_exist(bare: Daemon) -> None:
    client = bare.client
    client.create_collection("listed_a", 4)
    client.create_collection("listed_b", 4)
    client.call(calls.SetAlias(alias="listed_c", collection="listed_b"))
    known = r"'nowhere'; there are: (.*, )?listed_a, listed_b, listed_c"
    for use in (
        lambda: client.upsert("nowhere", [{"id": 1, "text": "zinc"}]),
        lambda: client.upsert("nowhere", [{"id": 1, "vector": [1, 0, 0, 0]}]),
        lambda: client.search("zinc", "nowhere"),
        lambda: client.delete("nowhere", [1]),
        lambda: client.call(calls.Drop(collection="nowhere")),
        lambda: client.call(calls.SetAlias(alias="x", collection="nowhere")),
    ):
        with pytest.raises(CollectionNotFound, match=known):
            use()
    status, words = ended(bare, "reindex", "nowhere")
    assert status is TaskStatus.FAILED
    assert "there are: " in words
    assert "listed_a, listed_b, listed_c" in words
    with pytest.raises(InvalidArgument, match="'listed_c' exists already"):
        client.create_collection("listed_c", 4)


def test_an_empty_collection_is_skipped_with_a_reason(daemon: Daemon) -> None:
    daemon.client.create_collection("empty")
    assert ended(daemon, "reindex", "empty") == (TaskStatus.SKIPPED, "empty")
    assert ended(daemon, "rerank", "empty", queries=["zinc"]) == (TaskStatus.SKIPPED, "empty collection")
    assert daemon.client.search("zinc", "empty").hits == ()


def test_points_without_the_text_field_are_counted_and_left_byte_for_byte(daemon: Daemon) -> None:
    client = daemon.client
    client.create_collection("partly")
    odd: list[dict[str, Any]] = [
        {"id": 1, "vector": FLAT, "payload": {"title": "no text", "nested": {"a": [1, None, 2.5]}}},
        {"id": 2, "vector": FLAT, "payload": {"text": "   "}},
        {"id": 3, "vector": FLAT, "payload": {"text": 17}},
        {"id": 4, "vector": FLAT, "payload": {}},
        {"id": "0f3b6b1e-58a5-4d3c-9d0a-0d9f1d0b6a11", "vector": FLAT, "payload": {"text": None}},
    ]
    client.upsert("partly", [*odd, {"id": 9, "vector": FLAT, "payload": {"text": "zinc in the gut"}}])
    before = daemon.points("partly")
    result = daemon.run("reindex", "partly")
    assert (result["documents_without_text"], result["documents_embedded"], result["success"]) == (5, 1, True)
    after = daemon.points("partly")
    assert after.pop(9) != before.pop(9)
    assert after == before
    assert {i: payload for i, (payload, _) in after.items()} == {point["id"]: point["payload"] for point in odd}


def test_a_collection_where_no_point_has_the_text_field_is_refused_with_a_suggestion(daemon: Daemon) -> None:
    daemon.client.create_collection("bodies")
    daemon.client.upsert("bodies", [{"id": 1, "vector": FLAT, "payload": {"body": "zinc in the gut", "lang": "en"}}])
    before = daemon.points("bodies")
    status, words = ended(daemon, "reindex", "bodies")
    assert status is TaskStatus.FAILED
    assert "'text'; the longest text is in 'body': set [model] text_field" in words
    assert daemon.points("bodies") == before


def test_vectors_of_another_size_are_refused_and_the_batch_with_them(daemon: Daemon) -> None:
    client = daemon.client
    client.create_collection("short", 3)
    client.upsert("short", [{"id": 1, "vector": [1, 0, 0], "text": "zinc"}])
    before = daemon.points("short")
    fresh = {"id": 2, "vector": [0, 1, 0]}
    with pytest.raises(VectorSizeMismatch, match="'short' has vectors of 3 dimensions"):
        client.upsert("short", [fresh, {"id": 3, "vector": [0.0, 1.0]}])
    with pytest.raises(VectorSizeMismatch, match="3 dimensions"):
        client.upsert("short", [fresh, {"id": 3, "text": "embedded by the owner: 384"}])
    with pytest.raises(VectorSizeMismatch, match="3 dimensions"):
        client.search("zinc", "short")
    with pytest.raises(VectorSizeMismatch, match="3 dimensions"):
        client.call(calls.SearchVectors(collection="short", vectors=bytes(16), count=1))
    for task in ("reindex", "rerank"):
        status, words = ended(daemon, task, "short", **({"queries": ["zinc"]} if task == "rerank" else {}))
        assert status is TaskStatus.FAILED
        assert "3 dimensions, the model" in words
    assert daemon.points("short") == before


def test_points_that_cannot_be_stored_are_refused_before_any_of_their_batch_is(daemon: Daemon, docs: str) -> None:
    client, before = daemon.client, daemon.points(docs)
    good = {"id": 1, "vector": FLAT, "text": "zinc"}
    with pytest.raises(ValueError, match=r"needs an 'id'.*this one has text"):
        client.upsert(docs, [good, {"text": "no id"}])
    with pytest.raises(InvalidArgument, match="whole number or a UUID, not 'x'"):
        client.upsert(docs, [good, good | {"id": "x"}])
    with pytest.raises(InvalidArgument, match="not -1"):
        client.upsert(docs, [good, good | {"id": -1}])
    with pytest.raises(InvalidArgument, match="point 2 has neither a vector nor a text in 'text'"):
        client.upsert(docs, [good, {"id": 2, "payload": {"title": "no text"}}])
    with pytest.raises(InvalidArgument, match="finite"):
        client.upsert(docs, [good, good | {"vector": [float("nan")] * 384}])
    assert daemon.points(docs) == before
    assert client.upsert(docs, []) == 0


def test_a_search_for_nothing_or_for_no_rows_is_refused(daemon: Daemon, docs: str) -> None:
    for text, limit in (("", 10), ("  \n", 10), ("zinc", 0), ("zinc", -1)):
        with pytest.raises(InvalidArgument, match=r"needs a text|limit must be at least 1"):
            daemon.client.search(text, docs, limit)
    with pytest.raises(InvalidArgument, match="filter"):
        daemon.client.search("zinc", docs, query_filter={"source": {"like": "a"}})


def test_a_client_of_no_service_says_so_within_its_deadline(bare: Daemon) -> None:
    with Client(runtime_dir=bare.root / "nobody", timeout_s=0.1, call_timeout_s=0.1) as client:
        assert not client.is_running()
        with pytest.raises(ServiceUnavailable, match="`morgan-background serve` starts one"):
            client.status()
        with pytest.raises(ServiceUnavailable, match="`morgan-background serve` starts one"):
            client.collections()
        client.track("zinc", "docs")  # never blocks, never raises
        assert client.reader.get("zinc", "docs") is None
