"""Owns how sockets are made: options, permissions of their files, and what is bounded. Says nothing on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import zmq

from .errors import ConfigError

HIGH_WATER = 1000  # messages queued to a worker or from one; a task in flight makes a few
CLIENT_HIGH_WATER = 16  # unread requests of one client: the seventeenth waits in the client's own memory
CLIENT_UNREAD = 1024  # replies one client has not taken: libzmq notices in steps of half, so 512 in flight are safe
HANDSHAKE_MS = 1000  # a peer that connects and says nothing is dropped
LINGER_MS = 500  # last replies at shutdown
MAX_SOCKET_PATH = 107  # sun_path of a Unix socket, less its zero


# As plain numbers: pyzmq's flags are enums, whose `|` takes as long as the send itself.
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """Return the frames of the next message that is there already; None where there is none."""
    try:
        frame = socket.recv(_NOBLOCK, copy=False)
    except zmq.Again:
        return None
    frames = [frame.bytes]
    while frame.more:
        frame = socket.recv(_NOBLOCK, copy=False)
        frames.append(frame.bytes)
    return frames


def send(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    """Send one message of several frames without waiting. Raises zmq.Again where there is no room for it."""
    for frame in frames[:-1]:
        socket.send(frame, _NOBLOCK | _SNDMORE)
    socket.send(frames[-1], _NOBLOCK)


def endpoint(path: Path) -> str:
    return f"ipc://{path}"


def check_path(path: Path) -> None:
    """Raise ConfigError if the path is too long for a Unix socket."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"{path} is longer than {MAX_SOCKET_PATH} bytes: set MORGAN_RUNTIME_DIR to a shorter folder")


def bind_router(
    context: zmq.Context[zmq.Socket[bytes]],
    path: Path,
    *,
    max_bytes: int,
    high_water: int,
    unread: int = HIGH_WATER,
    domain: str = "",
) -> zmq.Socket[bytes]:
    """Return a ROUTER bound to a Unix socket at `path`, mode 0600 in a directory of mode 0700.

    The caller holds the runtime directory's lock: a second bind of the same path would succeed and deafen the first.
    Unread messages of one peer are bounded: `high_water` of its, `unread` of ours; a further one of ours is refused.
    With a `domain` each peer has to be let in by the context's ZAP handler: without one, nobody is.
    Raises ConfigError if the path is too long for a Unix socket.
    """
    check_path(path)
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.SNDHWM, unread)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply to a peer that left is an error we see, not silence
    if domain:
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing handler lets everybody in
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        socket.bind(endpoint(path))
    finally:
        os.umask(before)
    return socket


def connect_dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    path: Path,
    *,
    identity: bytes = b"",
    high_water: int = HIGH_WATER,
    retry_ms: tuple[int, int] = (50, 1000),
) -> zmq.Socket[bytes]:
    """Return a DEALER connected to the ROUTER at `path`; it connects by itself whenever that appears.

    `retry_ms`: the wait before another try, from the first to the longest.
    """
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDHWM, high_water)  # before the connection: afterwards it would be for later ones alone
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    # ipc reconnects are cheap; 50 ms to 1 s keeps a restarted supervisor from being noticed late
    socket.setsockopt(zmq.RECONNECT_IVL, retry_ms[0])
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, retry_ms[1])
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(endpoint(path))
    return socket
