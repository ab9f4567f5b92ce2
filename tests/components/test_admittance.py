"""Who may connect, and what happens when connections use up files: real sockets, in this process."""

from __future__ import annotations

import os
import resource
import socket as os_sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from morgan.background.ipc import wire
from morgan.background.ipc.admittance import (
    MAX_CONNECTIONS,
    MAX_OPEN_FILES,
    MIN_OPEN_FILES,
    Admittance,
    raise_file_limit,
    shut_at,
    uid_of,
)
from morgan.background.ipc.errors import ServiceUnavailable
from morgan.background.ipc.exchange import Exchange
from morgan.background.ipc.messages import Status
from morgan.background.ipc.sockets import CLIENT_HIGH_WATER, bind_router, connect_dealer, endpoint

Context = zmq.Context[zmq.Socket[bytes]]

WAIT_MS = 60_000
NOBODY = 65534


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    while _bound:
        _bound.pop().close(linger=0)
    made.destroy(linger=0)


_bound: list[zmq.Socket[bytes]] = []


def bound(context: Context, path: Path) -> zmq.Socket[bytes]:
    """Return a ROUTER like the supervisor's; the context's fixture closes it."""
    high_water = CLIENT_HIGH_WATER
    _bound.append(bind_router(context, path, max_bytes=wire.MAX_CLIENT_BYTES, high_water=high_water, domain="clients"))
    return _bound[-1]


def is_echoed(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes]) -> bool:
    dealer.send(b"x")
    if not router.poll(WAIT_MS):
        return False
    router.send_multipart(router.recv_multipart())
    return bool(dealer.poll(WAIT_MS)) and dealer.recv() == b"x"


def test_an_allowed_user_is_let_in(context: Context, tmp_path: Path) -> None:
    admittance = Admittance(context, {os.getuid()})
    router = bound(context, tmp_path / "s")
    admittance.start()
    with connect_dealer(context, tmp_path / "s") as dealer:
        assert is_echoed(router, dealer)
    assert admittance.refused.count == 0
    admittance.close()


def refusal(context: Context, path: Path) -> int:
    """Connect until something ends the handshake; return the event that says what."""
    events = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
    with context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        monitor = dealer.get_monitor_socket(events)  # before the connection: it may be over before anybody looks
        dealer.connect(endpoint(path))
        assert monitor.poll(WAIT_MS)
        event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
        dealer.disable_monitor()
        monitor.close()
        return event


def test_another_user_is_refused_and_counted_and_heard_of_once(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admittance = Admittance(context, {os.getuid() + 1})
    router = bound(context, tmp_path / "s")
    admittance.start()
    for _ in range(3):
        assert refusal(context, tmp_path / "s") != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert not router.poll(0)
    assert admittance.refused.of_uid.keys() == {os.getuid()}
    assert admittance.refused.count >= 3
    assert len([one for one in caplog.records if "refused" in one.message]) == 1
    admittance.close()


def test_a_refused_client_is_told_that_it_was_refused(context: Context, tmp_path: Path) -> None:
    admittance = Admittance(context, {os.getuid() + 1})
    bound(context, tmp_path / "s")
    admittance.start()
    exchange = Exchange(tmp_path / "s", wire.replies, 60.0)
    with pytest.raises(ServiceUnavailable, match=f"refused user {os.getuid()}: .*allowed_users"):
        exchange.ask(Status())
    exchange.close()
    admittance.close()


def test_nobody_is_let_in_where_nobody_answers_for_the_domain(context: Context, tmp_path: Path) -> None:
    router = bound(context, tmp_path / "s")
    assert refusal(context, tmp_path / "s") != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert not router.poll(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's place")
def test_root_runs_a_service_that_another_user_cannot_reach_whatever_the_files_modes(
    context: Context, tmp_path: Path
) -> None:
    folder = Path("/dev/shm") / f"morgan-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        admittance = Admittance(context, {0})
        router = bound(context, folder / "s")
        (folder / "s").chmod(0o666)
        admittance.start()
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(60)\n"
            "greeting = b'\\xff' + bytes(8) + b'\\x7f' + bytes([3, 1]) + b'NULL' + bytes(48)\n"
            "ready = b'\\x04\\x1c' + b'\\x05READY' + b'\\x0bSocket-Type' + (6).to_bytes(4, 'big') + b'DEALER'\n"
            "s.sendall(greeting + ready)\n"
            "got = b''\n"
            "while part := s.recv(4096): got += part\n"
            "print(got[64:])\n"
        )
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", script, str(folder / "s")],
            user=NOBODY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "ERROR" in done.stdout
        assert "READY" not in done.stdout
        assert admittance.refused.of_uid == {NOBODY: 1}
        assert not router.poll(0)
        admittance.close()
    finally:
        for one in folder.iterdir():
            one.unlink()
        folder.rmdir()


def test_a_door_is_shut_before_files_are_used_up_and_opened_when_there_is_room_again(
    context: Context, tmp_path: Path
) -> None:
    path, admittance = tmp_path / "s", Admittance(context, {os.getuid()})
    router = bound(context, path)
    highest = len(os.listdir("/proc/self/fd")) + 100
    admittance.guard("test's socket", router, path, highest)
    admittance.start()
    about = "connections to the test's socket"
    with connect_dealer(context, path) as before, connect_dealer(context, path) as after:
        assert is_echoed(router, before)
        assert admittance.turn(0.0) == {about: ""}
        assert admittance.next_deadline() is None
        after.disconnect(f"ipc://{path}")
        flood = flooded(path)
        waiting = zmq.Poller()
        waiting.register(admittance.wake_fd, zmq.POLLIN)
        assert waiting.poll(WAIT_MS), "the door was not shut"
        assert not path.exists()
        assert str(highest) in admittance.turn(1.0)[about]
        assert admittance.next_deadline() == 2.0
        assert is_echoed(router, before)  # who is in stays in
        for one in flood:
            one.close()
        deadline_at, now = time.monotonic() + WAIT_MS / 1000, 10.0
        while admittance.turn(now)[about]:
            assert time.monotonic() < deadline_at, "the door stays shut"
            router.poll(20)
            now += 10.0
        after.connect(f"ipc://{path}")
        assert is_echoed(router, after)
    admittance.close()


def flooded(path: Path) -> list[os_sockets.socket]:
    """Connect until nobody is there any more; return the connections. They say nothing."""
    made = []
    while True:
        one = os_sockets.socket(os_sockets.AF_UNIX)
        made.append(one)
        try:
            one.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return made


UNGUARDED = """
import resource, sys, zmq
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("ipc://" + sys.argv[1])
print("bound", flush=True)
socket.poll(60_000)
"""


def test_libzmq_without_a_door_is_ended_by_connections(tmp_path: Path) -> None:
    """The reason for all this. If it fails, libzmq has learned to live without files, and the doors can go."""
    path = tmp_path / "s"
    command = [sys.executable, "-c", UNGUARDED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "bound\n"
        made = []
        for _ in range(100):
            one = os_sockets.socket(os_sockets.AF_UNIX)
            made.append(one)
            if one.connect_ex(str(path)):
                break
        assert "Too many open files" in process.stderr.read()
        assert process.wait(60) == -6  # SIGABRT
        for one in made:
            one.close()


@pytest.mark.parametrize("limit", [64, 1024, MIN_OPEN_FILES, MAX_OPEN_FILES])
def test_half_of_the_files_are_kept_for_connections_that_come_while_a_door_is_shut(limit: int) -> None:
    assert shut_at(limit) <= limit // 2
    assert shut_at(limit) <= MAX_CONNECTIONS
    assert shut_at(limit) < shut_at(limit, is_for_workers=True) < limit


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    script = (
        "import resource\n"
        "from morgan.background.ipc.admittance import raise_file_limit\n"
        "print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )

    def limits(soft: int, hard: int) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return [int(one) for one in done.stdout.split()]

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits(256, 2000) == [2000, 2000, 2000]
    assert limits(2000, 2000) == [2000, 2000, 2000]
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    assert limits(256, hard) == [wanted, wanted, hard]
    assert raise_file_limit() >= min(wanted, 256)


@pytest.mark.parametrize(
    ("address", "uid"),
    [(b"localhost:1000:100:77", 1000), (b"127.0.0.1", None), (b"localhost", None), (b"a:b:c:d", None), (b"", None)],
)
def test_the_user_is_read_from_the_address_of_a_unix_socket_alone(address: bytes, uid: int | None) -> None:
    assert uid_of(address) == uid
