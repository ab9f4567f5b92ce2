"""From start to stop: one daemon a state directory, what a stop leaves behind, and what the next start finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import psutil
import pytest

from morgan.background.data import documents
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import ComputedResult, TaskStatus
from morgan.background.ipc.settings import ModelSettings
from tests.processes.daemons import NO_MODEL, Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]

RESULT = ComputedResult(
    query_text="how long is a token valid?",
    collection="kept",
    ids=(1, "0f3b6b1e-58a5-4d3c-9d0a-0d9f1d0b6a11"),
    scores=np.array([0.9, 0.5], "<f4").tobytes(),
    contents=("an hour", "a day"),
    sources=("auth.md", ""),
    metadata=({}, {"page": 2}),
    computed_at=1.0,
)

READ = """
import json
from morgan.background import Client

with Client() as client:
    found = client.search("How long is a  token valid?", "kept", 2)
    print(json.dumps({
        "is_running": client.is_running(),
        "is_precomputed": found.is_precomputed,
        "hits": [[hit.id, round(hit.score, 3), hit.payload["content"]] for hit in found.hits],
        "other": client.reader.get("how long is a token valid?", "another") is None,
    }))
"""
HITS = [[1, 0.9, "an hour"], ["0f3b6b1e-58a5-4d3c-9d0a-0d9f1d0b6a11", 0.5, "a day"]]


def serve(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `serve` where it cannot stay; return how it ended."""
    command = [sys.executable, "-m", "morgan.background", "serve"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("shared", ["MORGAN_STATE_DIR", "MORGAN_RUNTIME_DIR"])
def test_a_second_daemon_in_the_same_directory_leaves_at_once_and_the_first_one_is_not_disturbed(
    shared: str, bare: Daemon
) -> None:
    other = {"MORGAN_STATE_DIR": str(bare.root / "state2"), "MORGAN_RUNTIME_DIR": str(bare.root / "run2")}
    children = {child.pid for child in bare.children()}
    ended = serve(bare.env | {key: value for key, value in other.items() if key != shared})
    assert ended.returncode == 2
    assert f"another service (pid {bare.pid}) holds {bare.env[shared]}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert bare.is_served()
    assert {child.pid for child in bare.children()} == children
    bare.client.collections()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cache]\nttl_hours = 'lots'\n", "cache.ttl_hours: 'lots' must be a number from 0.001 to 8760"),
        ("[limits]\nmemory_limits = 0.5\n", "limits.memory_limits: unknown key; did you mean 'memory_limit'?"),
        ("[limit]\nmemory_limit = 0.5\n", "unknown section [limit]; did you mean 'limits'?"),
        ("[queue]\nmax_kills = 0\n", "queue.max_kills: 0 must be from 1 to 1000"),
        ("[service\nworkers", "not valid TOML"),
        ("\0\xff", "not valid TOML"),
    ],
)
def test_a_corrupt_configuration_is_refused_by_file_and_key(text: str, words: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({})
    config = daemon.root / "config.toml"
    config.write_text(text)
    ended = serve(daemon.env)
    assert ended.returncode == 2
    assert str(config) in ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not daemon.state.exists()  # nothing was begun


def test_a_wrong_variable_is_refused_by_its_name(make_daemon: MakeDaemon) -> None:
    ended = serve(make_daemon({"MORGAN_CACHE_TTL_HOURS": "soon"}).env)
    assert (ended.returncode, "MORGAN_CACHE_TTL_HOURS: cache.ttl_hours: 'soon'" in ended.stderr) == (2, True)


def test_a_runtime_directory_too_deep_for_a_socket_is_refused_in_words(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(NO_MODEL)
    ended = serve(daemon.env | {"MORGAN_RUNTIME_DIR": str(daemon.root / ("deep" * 30))})
    assert ended.returncode == 2
    assert "longer than 107 bytes: set MORGAN_RUNTIME_DIR to a shorter folder" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.timeout(400)
def test_what_was_there_at_a_stop_is_there_at_the_next_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(NO_MODEL).start()  # loads no model: it only has to be stopped again
    client, some = daemon.client, documents()[:20]
    client.create_collection("kept", 384)
    flat = [1.0] + [0.0] * 383
    client.upsert("kept", [{"id": d["id"], "vector": flat, "payload": dict(d)} for d in some])
    points = daemon.points("kept")
    client.request(messages.Pause(collection="kept"))
    task_id = daemon.submit("reindex", "kept")
    schedule = messages.AddSchedule(task_type="rerank", collection="kept", frequency="weekly", metadata={"by": "test"})
    (scheduled,) = expect(messages.ScheduleList, client.request(schedule)).schedules
    client.request(messages.Track(query=RESULT.query_text, collection="kept"))
    client.request(messages.Publish(result=RESULT))
    held = client.reader.get(RESULT.query_text, "kept")
    assert held is not None
    first_pid = daemon.pid

    daemon.stop()
    assert not client.is_running()
    read = daemon.elsewhere(READ)
    assert read == {"is_running": False, "is_precomputed": True, "hits": HITS, "other": True}
    kept = client.reader.get(RESULT.query_text, "kept")  # also who had it open before
    assert kept is not None
    assert kept.hits() == held.hits()

    daemon.start({"MORGAN_MODEL_NAME": ModelSettings().name})
    assert daemon.pid != first_pid
    assert daemon.elsewhere(READ) == read | {"is_running": True}
    again = client.reader.get(RESULT.query_text, "kept")
    assert again is not None
    assert again.hits() == held.hits()
    waiting = daemon.task(task_id)
    assert (waiting.status, waiting.attempt) == (TaskStatus.PENDING, 0)
    assert waiting.waits_for == "kept is paused: `morgan-background tasks resume kept`"
    assert expect(messages.ScheduleList, client.request(messages.ListSchedules())).schedules == (scheduled,)
    (query,) = expect(messages.QueryList, client.request(messages.ListQueries(collection="kept"))).queries
    assert query.query_text == RESULT.query_text
    assert daemon.points("kept") == points
    assert daemon.client.status()["problems"] == []

    client.request(messages.Resume(collection="kept"))
    ended = daemon.finished(task_id)
    assert ended.status is TaskStatus.COMPLETED, ended.error_message
    assert (ended.result or {})["documents_embedded"] == 20
    assert client.search(some[3]["text"], "kept").hits[0].id == some[3]["id"]


@pytest.mark.parametrize("signum", [signal.SIGINT, None], ids=["SIGINT", "a request"])
def test_it_also_stops_when_it_is_interrupted_or_asked(signum: signal.Signals | None, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(NO_MODEL).start()
    children, process = daemon.children(), daemon.process
    assert process is not None
    if signum is None:
        daemon.client.request(messages.Shutdown())
    else:
        process.send_signal(signum)
    assert process.wait(60) == 0
    assert [child for child in children if child.is_running()] == []
    assert list(daemon.runtime.glob("*.sock")) == []


def test_its_folders_and_sockets_are_its_users_alone(bare: Daemon) -> None:
    for folder in (bare.state, bare.runtime, bare.runtime / "readers"):
        assert folder.stat().st_mode & 0o777 == 0o700
    sockets = list(bare.runtime.glob("*.sock"))
    assert {path.name for path in sockets} == {"clients.sock", "workers.sock", "owner.sock"}
    assert {path.stat().st_mode & 0o777 for path in sockets} == {0o600}
    assert {path.stat().st_mode & 0o077 for path in bare.state.rglob("*") if path.is_file()} == {0}
    connections = [c for p in (psutil.Process(bare.pid), *bare.children()) for c in p.net_connections("inet")]
    assert connections == []  # no network port
    assert os.stat(bare.runtime / "results").st_uid == os.getuid()
