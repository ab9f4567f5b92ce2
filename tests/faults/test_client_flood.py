"""Clients that do not behave, against the real daemon: it stays small, answers, lets its workers work, and lives."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from morgan.background.ipc import messages
from morgan.background.ipc.admittance import MAX_CONNECTIONS, MIN_OPEN_FILES
from morgan.background.ipc.client import Client
from morgan.background.ipc.sockets import CLIENT_UNREAD, connect_dealer
from tests.processes.daemons import NO_MODEL, START_S, Daemon

POURED = 3_000  # tasks, one to a message
TASKS = 10_000
ANSWER_S = 30.0  # what a request is given on a machine under load; unanswered, the test fails
MAX_RSS = 200 * 2**20  # 70 MB with ten thousand tasks, and CLIENT_UNREAD lists of 200 of them, 80 KB each

ROOT = Path(__file__).parents[2]
pack = msgspec.msgpack.encode


@pytest.fixture(scope="module")
def bare() -> Iterator[Daemon]:
    """A daemon without a model, paused, whose queue the tests fill."""
    yield from served()


@pytest.fixture
def fresh() -> Iterator[Daemon]:
    yield from served()


def served() -> Iterator[Daemon]:
    one = Daemon(NO_MODEL)
    try:
        yield one.start()
    finally:
        one.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def rss(daemon: Daemon) -> int:
    return psutil.Process(daemon.pid).memory_info().rss


def submit_all(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> int:
    """Hand in POURED different tasks, as many at a time as the socket takes; return how many were accepted."""
    accepted = sent = 0
    with connect_dealer(context, path) as socket:
        while accepted < POURED:
            while sent < POURED and sent - accepted < 200:
                sent += 1
                request = {"type": "submit", "v": 1, "rid": sent, "task_type": "warm", "collection": f"c{sent}"}
                socket.send(pack(request))
            assert socket.poll(60_000), f"{accepted} of {sent} were answered"
            accepted += msgspec.msgpack.decode(socket.recv())["type"] == "submitted"
    return accepted


def test_status_is_answered_while_tasks_pour_in_and_others_do_not_read(
    bare: Daemon, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bare.client.request(messages.Pause())
    path, is_over = bare.runtime / "clients.sock", threading.Event()

    def ask_and_never_read() -> int:
        with connect_dealer(context, path) as socket:
            count = 0
            while not is_over.is_set():
                count += 1
                socket.send(pack({"type": "list_tasks", "v": 1, "rid": count, "limit": 100}))
                if count % 20 == 0:
                    is_over.wait(0.05)  # else this test would measure how fast lists are made
            return count

    with ThreadPoolExecutor(4) as threads:
        deaf = [threads.submit(ask_and_never_read) for _ in range(2)]
        watching = threads.submit(lambda: sum(1 for _ in bare.client.events(1.0)))
        pouring = threads.submit(submit_all, context, path)
        answers = []
        while not pouring.done():
            answers.append(bare.client.request(messages.Status(), ANSWER_S))
        is_over.set()
        assert pouring.result() == POURED
        assert watching.result() > 0
        assert all(one.result() > 0 for one in deaf)
    assert answers
    report = bare.client.status()
    assert report["tasks"] == {"pending": POURED, "running": 0}
    assert rss(bare) < MAX_RSS


def test_with_ten_thousand_tasks_waiting_every_question_is_answered(bare: Daemon) -> None:
    bare.client.request(messages.Pause())
    bare.client.submit_many({"task_type": "warm", "collection": f"more {n}"} for n in range(TASKS))
    assert bare.client.status()["tasks"]["pending"] >= TASKS
    for ask in (messages.Status(), messages.GetSnapshot(), messages.ListTasks(limit=1000), messages.Resources()):
        bare.client.request(ask, ANSWER_S)
    assert rss(bare) < MAX_RSS


def test_a_client_that_sends_as_fast_as_it_can_and_reads_nothing_costs_a_bounded_room(
    bare: Daemon, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """What the client does not read is dropped for it: kept, the replies would be 240 MB."""
    bare.client.request(messages.Pause())
    ask = pack({"type": "list_tasks", "v": 1, "rid": 1, "limit": 200})
    with context.socket(zmq.DEALER) as deaf:
        deaf.setsockopt(zmq.RCVHWM, 1)  # nothing is taken from the supervisor on its behalf either
        deaf.connect(f"ipc://{bare.runtime / 'clients.sock'}")
        for _ in range(3 * CLIENT_UNREAD):
            deaf.send(ask)
        deaf_answered = bare.client.request(messages.Hello(), ANSWER_S)
        assert isinstance(deaf_answered, messages.Welcome)
        # every request sent before has been taken once a later one on the same connection is done
        marker = "no_such_" + "x" * 20
        deaf.send(pack({"type": "pause", "v": 1, "rid": 2, "collection": marker}))
        while marker not in bare.client.status()["paused"]:
            pass
        assert rss(bare) < MAX_RSS
    bare.client.request(messages.Resume(collection=marker))


FLOOD = """
import resource, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
wanted = 5000 if hard == resource.RLIM_INFINITY else min(hard, 5000)
resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
made = []
try:
    while True:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(sys.argv[1])
except OSError as error:
    print(len(made), flush=True)
sys.stdin.read()
"""


@contextmanager
def flooded(path: Path) -> Iterator[None]:
    """Connect from four processes, as fast and as often as they can, and stay connected for the block."""
    command = [sys.executable, "-c", FLOOD, str(path)]
    flood = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        connected = 0
        for one in flood:
            assert one.stdout is not None
            connected += int(one.stdout.readline())
        assert connected >= MAX_CONNECTIONS // 2
        yield
    finally:
        for one in flood:
            one.communicate("")


def test_a_flood_of_connections_shuts_the_door_and_nothing_else(fresh: Daemon) -> None:
    """As fast as processes can connect, against MIN_OPEN_FILES: without the door libzmq would end the supervisor."""
    resource.prlimit(fresh.pid, resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, MIN_OPEN_FILES))
    with flooded(fresh.runtime / "clients.sock"):
        problems = fresh.client.request(messages.Status(), ANSWER_S)
        assert isinstance(problems, messages.Report)
        assert fresh.process is not None
        assert fresh.process.poll() is None
        ended = fresh.finished(fresh.submit("warm", "during_the_flood"))
        assert ended.attempt == 1
    with Client(runtime_dir=fresh.runtime, state_dir=fresh.state) as newcomer:
        assert newcomer.request(messages.Hello(), START_S).pid == fresh.pid  # type: ignore[union-attr]
    assert "no new connections to the clients' socket" in fresh.log.read_text()


def test_a_flood_of_connections_to_the_store_owner_leaves_it_at_work(fresh: Daemon) -> None:
    assert fresh.client.collections() == ()
    (owner,) = [one["pid"] for one in fresh.client.status()["workers"] if one["role"] == "owner"]
    resource.prlimit(owner, resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, MIN_OPEN_FILES))
    with flooded(fresh.runtime / "owner.sock"):
        fresh.client.create_collection("during_the_flood", 4)
    with Client(runtime_dir=fresh.runtime, state_dir=fresh.state, call_timeout_s=START_S) as newcomer:
        assert [one.name for one in newcomer.collections()] == ["during_the_flood"]
    assert owner in [one["pid"] for one in fresh.client.status()["workers"]]
    assert "no new connections to the owner's socket" in fresh.log.read_text()


LOW_LIMIT = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
from tests.processes.daemons import NO_MODEL, Daemon
daemon = Daemon(NO_MODEL)
try:
    daemon.start()
    print(json.dumps(daemon.client.status()["problems"]))
finally:
    daemon.close()
"""


def test_a_limit_of_open_files_that_is_too_low_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOW_LIMIT], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    (problem,) = json.loads(done.stdout)
    assert problem.startswith("open files: the limit is 512")
