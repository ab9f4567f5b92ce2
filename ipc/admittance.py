"""Owns who may connect, and that connections never use up the process's files.

    peer connects ─▶ libzmq accepts ─▶ "descriptor N" ─▶ door: N too high? take the path away, wake the loop
                          └─ handshake ─▶ "uid:gid:pid" ─▶ ZAP: 200 or 400

libzmq ends the process when it accepts a connection on a Unix socket and no descriptor is left. It cannot be told not
to, so the door is shut long before: by a thread of its own, within some milliseconds, whatever the loop is doing. Half
of the files are kept free for the connections that come in meanwhile. To shut a door is to rename the socket's file:
who is in stays in (an unbind would end every connection), who connects finds nobody and tries again.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 65536  # what the soft limit is raised to, where the hard one lets us
MIN_OPEN_FILES = 4096  # below it a flood may be faster than the door: the status says so
MAX_CONNECTIONS = 1024  # descriptors in use at which the clients' door is shut: an application has a few connections
REOPEN_SHARE = 0.875  # of those: a door that was shut opens again below it
REOPEN_PERIOD_S = 1.0  # between looks whether it may; a connection without a handshake is dropped within a second
ZAP = "inproc://zeromq.zap.01"

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

_ACCEPTED = struct.Struct("=Hi")  # a monitor's first frame: the event and, of an accepted connection, its descriptor


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may and needs; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return min(soft, MAX_OPEN_FILES) if soft != resource.RLIM_INFINITY else MAX_OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def shut_at(file_limit: int, *, is_for_workers: bool = False) -> int:
    """Return the descriptor whose use shuts a door. The workers' is shut later: clients must not keep them out."""
    return file_limit * 3 // 4 if is_for_workers else min(MAX_CONNECTIONS, file_limit // 2)


def uid_of(address: bytes) -> int | None:
    """Return the user of a peer on a Unix socket from `localhost:uid:gid:pid`; None for any other address."""
    parts = address.split(b":")
    return int(parts[1]) if len(parts) == 4 and parts[1].isdigit() else None


@dataclass(slots=True)
class Door:
    """A listening socket's file. The thread shuts it, the loop opens it again."""

    name: str
    path: Path
    shut_at: int
    monitor: Socket
    is_shut: bool = False
    look_at: float | None = None  # when the loop looks again (monotonic seconds); None: it has not seen it shut yet

    @property
    def aside(self) -> Path:
        """Where the file is while the door is shut."""
        return self.path.with_name(self.path.name + ".shut")


@dataclass(slots=True)
class Refused:
    """Connections that were refused, by user."""

    of_uid: dict[int | None, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.of_uid.values())


class Admittance:
    """Answers for every socket of `context` that has a ZAP domain; make it before the first of them is bound.

    `wake_fd` is readable after a door was shut: the loop then calls `turn`.
    """

    def __init__(self, context: Context, allowed_uids: Collection[int]) -> None:
        self._context, self._allowed = context, frozenset(allowed_uids)
        self._zap = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP)
        self._lock = threading.Lock()
        self._doors: list[Door] = []
        self._sockets: list[Socket] = []
        self.refused = Refused()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def guard(self, name: str, socket: Socket, path: Path, at: int) -> None:
        """Watch a bound socket's connections. Before `start`."""
        door = Door(name, path, at, socket.get_monitor_socket(zmq.EVENT_ACCEPTED))
        door.aside.unlink(missing_ok=True)  # of a service that was killed meanwhile
        self._doors.append(door)
        self._sockets.append(socket)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="admittance", daemon=True)
        self._thread.start()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._stop_fd, zmq.POLLIN)
        of_monitor = {door.monitor: door for door in self._doors}
        for monitor in of_monitor:
            poller.register(monitor, zmq.POLLIN)
        while True:
            ready = [one for one, _ in poller.poll()]
            if self._stop_fd in ready:
                return
            for one in ready:
                if one is self._zap:
                    self._answer()
                elif (door := of_monitor.get(one)) is not None:
                    self._accepted(door)

    def _accepted(self, door: Door) -> None:
        _, descriptor = _ACCEPTED.unpack(door.monitor.recv_multipart()[0])
        if descriptor >= door.shut_at and not door.is_shut:
            with self._lock:
                with suppress(FileNotFoundError):  # somebody removed it: nobody connects either
                    door.path.rename(door.aside)
                door.is_shut = True
            os.eventfd_write(self.wake_fd, 1)

    def _answer(self) -> None:
        version, request, domain, address, *_ = self._zap.recv_multipart()
        uid = uid_of(address)
        is_allowed = uid in self._allowed
        code, text = (b"200", b"OK") if is_allowed else (b"400", b"not an allowed user")
        if not is_allowed:
            counts = self.refused.of_uid
            counts[uid] = counts.get(uid, 0) + 1
            if counts[uid] == 1:
                log.warning("a connection of uid %s to the %s was refused", uid, domain.decode(errors="replace"))
        self._zap.send_multipart([version, request, code, text, str(uid).encode() if is_allowed else b"", b""])

    # --- in the loop ----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> dict[str, str]:
        """Do what the doors need; return of each what is wrong, "" for nothing. `now` is monotonic, in seconds."""
        problems = {}
        for door in self._doors:
            about = f"connections to the {door.name}"
            problems[about] = ""
            if not door.is_shut:
                continue
            if door.look_at is None:
                _drain(self.wake_fd)
                log.warning("%d files are open: no new connections to the %s", _open_files(), door.name)
                door.look_at = now + REOPEN_PERIOD_S
            elif now >= door.look_at:
                door.look_at = now + REOPEN_PERIOD_S
                if _open_files() < door.shut_at * REOPEN_SHARE:
                    with self._lock:  # so that a door whose file is back is never taken for a shut one
                        with suppress(FileNotFoundError):
                            door.aside.rename(door.path)
                        door.is_shut, door.look_at = False, None
                    log.info("connections to the %s are accepted again", door.name)
                    continue
            problems[about] = (
                f"{door.shut_at} files are open, so no new ones are accepted until some end; those that exist are served"
            )
        return problems

    def next_deadline(self) -> float | None:
        """Return when `turn` has something to do (monotonic seconds); None while all doors are open."""
        return min((door.look_at for door in self._doors if door.look_at is not None), default=None)

    def close(self) -> None:
        """End the thread. The sockets are closed with their context."""
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
        for door, socket in zip(self._doors, self._sockets, strict=True):
            socket.disable_monitor()
            door.monitor.close(linger=0)
            door.aside.unlink(missing_ok=True)
        self._zap.close()
        os.close(self.wake_fd)
        os.close(self._stop_fd)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _drain(fd: int) -> None:
    with suppress(BlockingIOError):  # another door's turn took it
        os.eventfd_read(fd)
