"""Owns the faults of a vector store that is a server: a second daemon, whose Qdrant is down or slow when it is needed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import TaskRecord

from ..fake_qdrant.running import FakeQdrant
from .audit import CALL_S, Effects
from .faults import Faults
from .ledger import POINTS
from .proxy import Proxy
from .standin.sentence_transformers import SIZE
from .victim import Victim, Wrong

TASK_S = 600.0  # a new worker imports qdrant-client first, 1.5 s of CPU: minutes for SCHED_IDLE on a busy machine
SLOW_S = (0.1, 0.8)  # of each answer
NAME = "c0"


class Remote:
    """The daemon and the server behind its proxy are started at the first fault."""

    def __init__(self, root: Path, faults: Faults) -> None:
        self._root, self._faults = root, faults
        self._victim: Victim | None = None
        self._proxy: Proxy | None = None
        self._server: FakeQdrant | None = None
        self._effects: Effects | None = None

    def named(self) -> dict[str, Callable[[random.Random], None]]:
        return {"qdrant_down": self.down, "qdrant_slow": self.slow}

    @property
    def ending(self) -> int:
        """How many processes were ending, and had not, a second after their supervisor."""
        return len(self._victim.dying) if self._victim is not None else 0

    def close(self) -> None:
        if self._victim is not None:
            self._victim.close()
        if self._proxy is not None:
            self._proxy.down()
        if self._server is not None:
            self._server.close()

    def _started(self, rng: random.Random) -> tuple[Victim, Proxy, Effects]:
        """Return a daemon that is well, with points that a re-index has to embed."""
        if self._victim is None or self._proxy is None or self._effects is None:
            self._server = FakeQdrant()
            self._proxy = Proxy(self._server.plain_port)
            self._root.mkdir()
            self._victim = Victim(self._root, {"MORGAN_STORE_URL": f"http://127.0.0.1:{self._proxy.port}"})
            self._victim.start()
            self._victim.await_ready()
            self._effects = Effects(self._victim.client, names=(NAME,), is_once=False)
            expect(
                calls.CollectionList,
                self._victim.client.call(calls.Create(collection=NAME, vector_size=SIZE), CALL_S),
            )
        self._victim.await_ready()
        self._effects.change(rng, 0.6)
        return self._victim, self._proxy, self._effects

    def down(self, rng: random.Random) -> None:
        """The server refuses connections in the middle of a re-index; a worker or the supervisor is killed as well."""
        victim, proxy, effects = self._started(rng)
        task_id = self._begun(victim)
        time.sleep(rng.uniform(0.0, 0.3))
        proxy.down()
        try:
            victim.until(lambda: self._says_so(victim, task_id), "the status says that Qdrant is away", TASK_S)
            if rng.random() < 0.5:
                self._faults.gone_s.append(victim.kill())
                self._faults.counts["supervisors killed"] += 1
                victim.start()
        finally:
            proxy.up()
        self._done(victim, effects, task_id)
        self._faults.counts["Qdrant down"] += 1

    def slow(self, rng: random.Random) -> None:
        """The server takes its time over each answer in the middle of a re-index."""
        victim, proxy, effects = self._started(rng)
        task_id = self._begun(victim)
        proxy.delay_s = rng.uniform(*SLOW_S)
        try:
            end_at = time.monotonic() + rng.uniform(1.0, 4.0)
            while time.monotonic() < end_at:
                victim.status()
                time.sleep(0.2)
        finally:
            proxy.delay_s = 0.0
        self._done(victim, effects, task_id)
        self._faults.counts["Qdrant slow"] += 1

    @staticmethod
    def _begun(victim: Victim) -> str:
        asked = messages.Submit(task_type="reindex", collection=NAME, is_forced=True)
        return expect(messages.Submitted, victim.client.request(asked)).task_id

    @staticmethod
    def _record(victim: Victim, task_id: str, wait_s: float = 0.0) -> TaskRecord:
        ask = messages.GetTask(task_id=task_id, wait_s=wait_s, until_ended=True)
        return expect(messages.TaskReply, victim.client.request(ask, wait_s + CALL_S)).task

    def _says_so(self, victim: Victim, task_id: str) -> bool | None:
        problems = " ".join(victim.status()["problems"])
        return "does not answer" in problems or self._record(victim, task_id).status.is_final or None

    def _done(self, victim: Victim, effects: Effects, task_id: str) -> None:
        """See that the task is done, as if nothing had been."""
        victim.await_ready()
        deadline_at = time.monotonic() + TASK_S
        while not (record := self._record(victim, task_id, 10.0)).status.is_final:
            if time.monotonic() > deadline_at:
                raise Wrong(f"not done {TASK_S:g} s after Qdrant was back: {record}")
        if record.result is None or record.result.get("documents_processed") != POINTS:
            raise Wrong(f"Qdrant was away for a while: {record}")
        effects.look(NAME, is_whole=True)
        victim.until(lambda: not victim.status()["problems"] or None, "no problem is left", TASK_S)
