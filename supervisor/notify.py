"""Owns what systemd is told of the service's state, as sd_notify(3) does it: one datagram of NAME=VALUE lines.

Fifteen lines of our own: the packages for it are unmaintained or have to be compiled.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """Tells systemd; does nothing where none listens. Never raises: the service runs on, whoever watches it.

    Takes its variables out of `env`, so that the workers do not speak for the service.
    """

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        address, usec = env.pop("NOTIFY_SOCKET", ""), env.pop("WATCHDOG_USEC", "")
        pid = env.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # "@": an abstract socket
        is_watched = usec.isdigit() and pid in ("", str(os.getpid()))
        # half of it: one late turn of the loop is no hang
        self.watchdog_s: float | None = int(usec) / 2e6 if is_watched and self._address else None

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("systemd was not told %s: %s", lines[0], error)

    def ready(self, status: str) -> None:
        """The sockets are bound and the journal is open; also: a reload is over."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def alive(self, status: str) -> None:
        """The loop has finished a turn: send it from there alone, so that a hang is noticed."""
        watchdog = ("WATCHDOG=1",) if self.watchdog_s is not None else ()
        self._send(*watchdog, f"STATUS={_one_line(status)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
