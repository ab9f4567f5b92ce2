"""Owns a fake server as those who use it see it: a process, its urls, and the faults that are asked for."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .faults import Fault

ROOT = Path(__file__).parents[2]
PARENTS = (Path("/dev/shm"), Path(tempfile.gettempdir()))


class FakeQdrant:
    """A running process. `url` is where faults strike, `plain_url` the door beside it where none does."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Start it, again after `kill`: on other ports. Raises RuntimeError where it ends at once."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.fake_qdrant", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        ports = [int(word) for word in self._process.stdout.readline().split()]
        if len(ports) != 2:
            self.close()
            raise RuntimeError(f"the fake Qdrant server did not start: {self._arguments}")
        self.port, self.plain_port = ports
        self.url, self.plain_url = (f"http://127.0.0.1:{port}" for port in ports)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"the fake Qdrant server refused {method} {path}: {text}")
        return json.loads(text)

    def strike(self, *faults: Fault) -> None:
        """Ask for faults: they strike from now on."""
        self._ask("POST", "/faults", [fault.plain() for fault in faults])

    def release(self) -> None:
        """Let held calls go on; return when they are done."""
        self._ask("POST", "/faults/release")

    def clear(self) -> None:
        """Forget faults and calls, once held calls are done."""
        self._ask("DELETE", "/faults")

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls since `clear`: method, path, and the kind of fault that struck it, or None."""
        calls: list[dict[str, Any]] = self._ask("GET", "/faults")["calls"]
        return calls

    def struck(self) -> list[str]:
        """Return the calls since `clear` that a fault struck, as "METHOD /path"."""
        return [f"{call['method']} {call['path']}" for call in self.calls() if call["fault"]]

    def folders(self) -> list[Path]:
        """Return where it keeps what it forgets at its end."""
        return [one for parent in PARENTS for one in parent.glob(f"fake-qdrant-{self._process.pid}-*")]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """SIGTERM, and wait for it."""
        self._process.terminate()
        self._process.communicate()

    def close(self) -> None:
        """End it, and what it kept in no folder of the caller's."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.communicate("")


@contextmanager
def running(*arguments: str) -> Iterator[FakeQdrant]:
    """Have a fake server for a while; `arguments`: of its command line."""
    server = FakeQdrant(*arguments)
    try:
        yield server
    finally:
        server.close()
