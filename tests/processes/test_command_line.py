"""The command line against the real daemon: what it prints, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from morgan.background.ipc import calls, messages
from morgan.background.ipc.errors import InvalidArgument
from tests.processes.conftest import some_documents
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)


def parsed(daemon: Daemon, *arguments: str, code: int = 0) -> Any:
    """Run a command with --json; return the one document it prints."""
    printed = daemon.cli(*arguments, "--json", code=code)
    return json.JSONDecoder().raw_decode(printed)[0] if code else json.loads(printed)


def test_status_says_the_same_as_text_and_as_json(bare: Daemon) -> None:
    report = parsed(bare, "status")
    assert (report["pid"], report["service_running"]) == (bare.pid, True)
    assert report.keys() >= {"resources", "execution", "cache", "scheduled_tasks", "last_check", "workers", "problems"}
    shown = bare.cli("status")
    assert f"running, pid {bare.pid}" in shown
    assert "embedded: " in shown
    for worker in report["workers"]:
        assert str(worker["pid"]) in shown


def test_a_collection_is_loaded_reindexed_searched_and_dropped(daemon: Daemon, tmp_path: Path) -> None:
    some = some_documents()
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps(document) for document in some]
    corpus.write_text("\n".join([*lines, "{broken", "[1]"]) + "\n")
    daemon.cli("collections", "load", "cli", str(corpus), code=1)  # it is not there yet
    loaded = parsed(daemon, "collections", "load", "cli", str(corpus), "--create", code=1)
    assert loaded["stored"] == len(some)
    assert [line.partition(": ")[0] for line in loaded["bad_lines"]] == [f"{corpus}:25", f"{corpus}:26"]
    assert next(c["points"] for c in parsed(daemon, "collections", "list") if c["name"] == "cli") == len(some)
    assert "cli " in daemon.cli("collections")

    ran = parsed(daemon, "run", "reindex", "cli", "--force")
    assert (ran["status"], ran["result"]["documents_unchanged"]) == ("completed", len(some))
    rebuilt = daemon.cli("run", "reindex", "cli", "--force", "--set", "force_rebuild=true")
    assert "completed" in rebuilt
    assert f"documents_embedded           {len(some)}" in rebuilt

    title = some[5]["title"]
    found = parsed(daemon, "collections", "search", "cli", title, "--limit", "3")
    assert (found["is_precomputed"], found["hits"][0]["id"], len(found["hits"])) == (False, some[5]["id"], 3)
    assert "searched in" in daemon.cli("collections", "search", "cli", "another question")
    assert "cli dropped" in daemon.cli("collections", "drop", "cli")
    assert "no collection or alias 'cli'" in daemon.cli("collections", "drop", "cli", code=1)


def test_points_come_from_standard_input_and_the_same_file_twice_replaces_them(daemon: Daemon) -> None:
    rows = "".join(json.dumps({"name": f"n{i}", "text": f"text {i}"}) + "\n" for i in range(3))
    for _ in range(2):
        printed = daemon.cli("collections", "load", "piped", "-", "--create", "--id-field", "name", stdin=rows)
        assert "3 points stored in piped" in printed
    assert [c["points"] for c in parsed(daemon, "collections") if c["name"] == "piped"] == [3]


def test_tasks_are_listed_shown_paused_and_cancelled(bare: Daemon) -> None:
    assert "paused: idle" in bare.cli("tasks", "pause", "idle")
    task_id = parsed(bare, "run", "warm", "idle", "--no-wait")["task_id"]
    assert task_id == bare.cli("run", "warm", "idle", "--no-wait").strip()  # an equal one waits already
    (newest,) = parsed(bare, "tasks", "list", "--limit", "1")
    assert (newest["task_id"], newest["status"]) == (task_id, "pending")
    shown = bare.cli("tasks", "list", "--status", "pending")
    assert task_id in shown
    assert "idle is paused" in shown
    assert parsed(bare, "tasks", "show", task_id)["task_id"] == task_id
    assert "cancelled" in bare.cli("tasks", "cancel", task_id)
    assert "it had ended already" in bare.cli("tasks", "cancel", task_id)
    assert parsed(bare, "tasks", "show", task_id)["status"] == "cancelled"
    assert "resumed: idle" in bare.cli("tasks", "resume", "idle")
    assert "no task 'warm_idle_never'" in bare.cli("tasks", "show", "warm_idle_never", code=1)


def test_a_schedule_is_added_listed_and_removed(bare: Daemon) -> None:
    (added,) = parsed(bare, "schedule", "add", "rerank", "nightly", "daily")
    assert (added["task_type"], added["collection"], added["frequency"]) == ("rerank", "nightly", "daily")
    assert added["next_run_at"] % 86400 == 2 * 3600  # 02:00 of the configured zone, UTC here
    assert [one["task_id"] for one in parsed(bare, "schedule", "list")] == [added["task_id"]]
    assert added["task_id"] in bare.cli("schedule")
    assert "removed" in bare.cli("schedule", "remove", added["task_id"])
    assert "nothing is scheduled" in bare.cli("schedule")
    assert "no schedule" in bare.cli("schedule", "remove", added["task_id"], code=1)
    assert "hourly, daily, weekly" in bare.cli("schedule", "add", "rerank", "nightly", "never", code=2)


def test_the_cache_shows_what_it_holds_and_lets_it_go(daemon: Daemon, docs: str) -> None:
    text = "heart failure in mice"
    daemon.run("rerank", docs, queries=[text])
    held = parsed(daemon, "cache", "get", text, docs)
    assert (held["query"], len(held["hits"])) == (text, 10)
    assert str(held["hits"][0]["id"]) in daemon.cli("cache", "get", text.upper(), docs)
    for _ in range(2):
        assert parsed(daemon, "collections", "search", docs, text, "--limit", "5")["is_precomputed"]
    (popular,) = parsed(daemon, "cache", "popular", "--collection", docs)
    assert (popular["query_text"], popular["collection"]) == (text, docs)
    assert text in daemon.cli("cache", "popular", "--collection", docs)
    stats = parsed(daemon, "cache", "stats")
    assert stats["valid_entries"] >= 1
    assert 0 < stats["cache_hit_rate"] <= 1
    assert "total_cached_queries" in daemon.cli("cache")
    assert "1 results dropped" in daemon.cli("cache", "invalidate", "--collection", docs)
    assert "not in the cache" in daemon.cli("cache", "get", text, docs, code=1)


def test_what_is_known_of_quality_is_said_with_its_counts_and_drawn(bare: Daemon, tmp_path: Path) -> None:
    for number in range(25):
        bare.client.request(messages.Track(query=f"q{number}", collection="some", response_s=0.25))
        bare.client.request(
            messages.Feedback(query="q", collection="some", document_id=str(number), relevance=number % 5)
        )
    found = parsed(bare, "quality", "--days", "2")
    (some,) = [one for one in found["collections"] if one["collection_name"] == "some"]
    assert some["response_time"]["count"] == some["satisfaction"]["count"] == 25
    assert some["response_time"]["p50_low_s"] <= 0.25 * 1.1
    assert 0.6 < some["satisfaction"]["low"] < some["satisfaction"]["value"] == 0.8
    assert some["satisfaction"]["trend"]["note"] == "not enough yet: 1 of 3 days with feedback"
    assert "some: satisfaction: 80 % (61 % to 91 %) of 25 judgments positive" in bare.cli("status")
    picture = tmp_path / "a.png"
    assert str(picture) in bare.cli("quality", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidArgument, match="days must be 1 to 400"):
        bare.client.request(messages.Quality(days=0))


def test_what_the_governor_decided_is_listed_and_drawn(bare: Daemon, tmp_path: Path) -> None:
    bare.until(lambda report: True if parsed(bare, "governor")["decisions"] else None)  # a second has passed
    found = parsed(bare, "governor", "--hours", "0.5")
    assert {"zone", "active_start_h", "active_end_h", "quiet_start_h", "quiet_end_h"} == found.keys() - {"decisions"}
    assert found["zone"] == "UTC"
    newest = found["decisions"][-1]
    assert newest["limit"] == {"mean": 1.0, "peak": 1.0}
    assert 0 <= newest["budget"]["mean"] <= newest["budget"]["peak"] <= 1
    assert found["decisions"][0]["reason"] in bare.cli("governor")
    picture = tmp_path / "day.png"
    assert str(picture) in bare.cli("governor", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = parsed(bare, "governor", "--hours", "1", "--plot", str(picture))
    assert (drawn["plot"], bool(drawn["decisions"])) == (str(picture), True)
    assert "cannot be written" in bare.cli("governor", "--plot", str(tmp_path / "no" / "a.png"), code=2)
    assert parsed(bare, "governor", "--hours", "1e300")["decisions"]
    for hours in ("0", "-1", "nan"):
        assert "--hours must be a number" in bare.cli("governor", "--hours", hours, code=2)


def test_a_failed_task_and_wrong_input_have_their_exit_codes(bare: Daemon) -> None:
    assert "there are: " in bare.cli("run", "reindex", "nowhere", "--force", code=1)
    failed = parsed(bare, "run", "reindex", "nowhere", "--force", code=1)
    assert (failed["status"], failed["error_code"]) == ("failed", "collection_not_found")
    assert "has no parameter" in bare.cli("run", "reindex", "c", "--set", "a=1", code=2)
    assert "write KEY=VALUE" in bare.cli("run", "reindex", "c", "--set", "a", code=2)
    assert parsed(bare, "run", "dance", "c", code=2)["error"] == "invalid_argument"
    bare.client.create_collection("twice", 4)
    assert bare.cli("run", "warm", "twice", "--force").startswith("warm_twice_")  # skipped is no failure
    assert "exists already" in bare.cli("collections", "create", "twice", "--vector-size", "4", code=2)
    assert bare.client.call(calls.Drop(collection="twice"))


def test_without_a_service_every_command_says_so_with_code_3(bare: Daemon, tmp_path: Path) -> None:
    nobody = ("--runtime-dir", str(bare.root / "nobody"), "--state-dir", str(tmp_path))
    said = bare.cli("status", *nobody, code=3)
    assert "`morgan-background serve` starts one" in said
    assert "Traceback" not in said
    assert parsed(bare, "tasks", "list", *nobody, code=3)["error"] == "service_unavailable"


def test_tune_measures_and_applies_only_if_asked_what_searches_by_the_owner_filter_by(
    daemon: Daemon, docs: str
) -> None:
    vector = b"\0\0\x80?" + bytes(383 * 4)
    field = next(name for name, value in some_documents()[0].items() if name != "text" and isinstance(value, str))
    wanted = {field: some_documents()[0][field]}  # type: ignore[literal-required]
    daemon.client.call(calls.SearchVectors(collection=docs, vectors=vector, count=1, query_filter=wanted))
    proposed = parsed(daemon, "tune", docs, "--force")
    assert proposed["status"] == "completed", proposed["error_message"]
    (one,) = proposed["result"]["filters"]
    assert (one["field"], one["kind"], one["uses"]) == (field, "keyword", 1)
    assert proposed["result"]["applied"] == []
    shown = daemon.cli("tune", docs, "--apply", "--force")
    assert f"payload index of {field!r} (keyword) made" in shown
    described = daemon.client.call(calls.DescribeIndex(collection=docs))
    assert isinstance(described, calls.IndexDescription)
    assert described.index.payload == {field: "keyword"}
