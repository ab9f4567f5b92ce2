"""One request, one deadline: late replies, threads, forked children, and a service that goes away and comes back."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from morgan.background.ipc import launch, wire
from morgan.background.ipc.errors import ServiceUnavailable, TaskNotFound
from morgan.background.ipc.exchange import Exchange
from morgan.background.ipc.messages import Done, Failure, GetTask, Hello, Message, Reply, Request, Resume, Track
from morgan.background.ipc.sockets import CLIENT_HIGH_WATER, bind_router
from morgan.background.ipc.tracker import Tracker

WAIT_S = 60.0

Send = Callable[[bytes, Message], None]
Answer = Callable[[bytes, Request, Send], None]


def answer_all(who: bytes, request: Request, send: Send) -> None:
    send(who, Done(rid=request.rid))


@contextmanager
def served(path: Path, answer: Answer = answer_all) -> Iterator[list[Request]]:
    """Have `answer` called with each request to a ROUTER at `path`, and yield the list of what was asked."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = bind_router(context, path, max_bytes=wire.MAX_CLIENT_BYTES, high_water=CLIENT_HIGH_WATER)
    stop, stopped = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    stop.bind("inproc://stop")
    stopped.connect("inproc://stop")
    asked: list[Request] = []

    def send(who: bytes, reply: Message) -> None:
        with suppress(zmq.error.ZMQError):  # who asked has left
            socket.send_multipart([who, wire.encode(reply)])

    def run() -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(stopped, zmq.POLLIN)
        while stopped not in dict(poller.poll()):
            who, frame = socket.recv_multipart()
            asked.append(wire.requests.decode(frame))
            answer(who, asked[-1], send)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield asked
    finally:
        stop.send(b"")
        thread.join()
        context.destroy(linger=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def exchange(path: Path) -> Iterator[Exchange[Reply]]:
    made = Exchange(path, wire.replies, WAIT_S)
    yield made
    made.close()


def test_a_reply_to_another_request_is_passed_over(path: Path, exchange: Exchange[Reply]) -> None:
    def answer(who: bytes, request: Request, send: Send) -> None:
        send(who, Failure(rid=request.rid + 1000, code="error", message="of nobody's request"))
        send(who, Done(rid=request.rid, count=7))

    with served(path, answer):
        assert exchange.ask(Hello()) == Done(rid=1, count=7)


def test_a_reply_that_comes_after_its_deadline_is_not_taken_for_the_next_ones(
    path: Path, exchange: Exchange[Reply]
) -> None:
    late: list[tuple[bytes, int]] = []

    def answer(who: bytes, request: Request, send: Send) -> None:
        if isinstance(request, GetTask):
            late.append((who, request.rid))
            return
        for one, rid in late:
            send(one, Done(rid=rid, count=99))
        send(who, Done(rid=request.rid))

    with served(path, answer):
        exchange.ask(Hello())  # so that there is a connection
        with pytest.raises(ServiceUnavailable, match=r"within 0\.2 s"):
            exchange.ask(GetTask(task_id="a"), 0.2)
        assert exchange.ask(Hello()).count == 1  # type: ignore[union-attr]
        assert len(late) == 1


def test_a_request_without_a_service_ends_at_its_deadline_and_is_not_delivered_later(
    path: Path, exchange: Exchange[Reply]
) -> None:
    with pytest.raises(ServiceUnavailable, match="serve"):
        exchange.ask(Resume(), 0.1)
    with served(path) as asked:
        exchange.ask(Hello())
        assert [type(one) for one in asked] == [Hello]


def test_a_request_in_flight_when_the_service_dies_ends_and_the_next_one_finds_the_new_service(
    path: Path, exchange: Exchange[Reply]
) -> None:
    arrived = threading.Event()

    def keep(who: bytes, request: Request, send: Send) -> None:
        arrived.set()

    with ThreadPoolExecutor(1) as threads:
        with served(path, keep):
            waiting = threads.submit(exchange.ask, Hello(), 2.0)
            assert arrived.wait(WAIT_S)
        with served(path) as asked:
            with pytest.raises(ServiceUnavailable):
                waiting.result(WAIT_S)
            assert exchange.ask(Resume()) == Done(rid=2)
            assert [type(one) for one in asked] == [Resume]


def test_a_kept_connection_finds_the_new_service(path: Path, exchange: Exchange[Reply]) -> None:
    for _ in range(2):
        with served(path) as asked:
            exchange.ask(Hello())
            assert len(asked) == 1


def test_threads_do_not_wait_for_one_another(path: Path, exchange: Exchange[Reply]) -> None:
    held: list[tuple[bytes, int]] = []
    is_held = threading.Event()

    def answer(who: bytes, request: Request, send: Send) -> None:
        match request:
            case GetTask():
                held.append((who, request.rid))
                is_held.set()
            case Resume():
                for one, rid in held:
                    send(one, Done(rid=rid, count=5))
                send(who, Done(rid=request.rid))
            case _:
                send(who, Done(rid=request.rid))

    with served(path, answer), ThreadPoolExecutor(9) as threads:
        poll = threads.submit(exchange.ask, GetTask(task_id="a", wait_s=60))
        assert is_held.wait(WAIT_S)
        answers = [threads.submit(exchange.ask, Hello()) for _ in range(200)]
        assert sorted(one.result(WAIT_S).rid for one in answers) == list(range(2, 202))
        assert not poll.done()
        exchange.ask(Resume())
        assert poll.result(WAIT_S) == Done(rid=1, count=5)


def test_what_a_failure_stands_for_is_raised(path: Path, exchange: Exchange[Reply]) -> None:
    def answer(who: bytes, request: Request, send: Send) -> None:
        send(who, Failure(rid=request.rid, code="task_not_found", message="no task 'a'"))

    with served(path, answer), pytest.raises(TaskNotFound, match="no task 'a'"):
        exchange.ask(GetTask(task_id="a"))


def test_an_exchange_is_closed_under_a_request_and_used_again(path: Path, exchange: Exchange[Reply]) -> None:
    held: list[tuple[bytes, int]] = []
    is_held = threading.Event()

    def answer(who: bytes, request: Request, send: Send) -> None:
        if isinstance(request, GetTask):
            held.append((who, request.rid))
            is_held.set()
            return
        for one, rid in held:
            send(one, Done(rid=rid))
        send(who, Done(rid=request.rid))

    with served(path, answer), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(exchange.ask, GetTask(task_id="a"))
        assert is_held.wait(WAIT_S)
        exchange.close()
        assert exchange.ask(Hello()).rid == 2
        assert waiting.result(WAIT_S).rid == 1


def test_what_nobody_closes_is_closed_when_it_is_forgotten(path: Path) -> None:
    exchange, tracker = Exchange(path, wire.replies, WAIT_S), Tracker(path)
    with served(path):
        exchange.ask(Hello())
        tracker.post(Track(query="a", collection="docs"))
        assert exchange._connections is not None
        assert tracker._context is not None
        contexts = [exchange._connections.context, tracker._context]
        assert [context.closed for context in contexts] == [False, False]
        del exchange, tracker
        gc.collect()
    assert [context.closed for context in contexts] == [True, True]


FORKING = """
import json, os, sys, threading
from morgan.background.ipc import wire
from morgan.background.ipc.exchange import Exchange
from morgan.background.ipc.messages import GetTask, Hello

exchange = Exchange(sys.argv[1], wire.replies, 60.0)
before = exchange.ask(Hello()).rid
thread = threading.Thread(target=exchange.ask, args=(GetTask(task_id="in flight while it forks"),))
thread.start()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, json.dumps([exchange.ask(Hello()).rid, exchange.ask(Hello()).rid]).encode())
    exchange.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
in_child = json.loads(os.read(reader, 100))
after = exchange.ask(Hello()).rid
thread.join()
exchange.close()
print(json.dumps([before, in_child, after]))
"""


def test_a_forked_child_asks_for_itself_and_its_parent_goes_on(path: Path) -> None:
    with served(path) as asked:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, str(path)]
        done = subprocess.run(
            command, env=launch.environment({}), capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        before, in_child, after = json.loads(done.stdout)
    assert before == 1
    assert len(asked) == 5
    assert in_child[1] == in_child[0] + 1
    assert after == 3
