"""Owns the load: tasks and writes handed in all the time, by a client of its own, and what was acknowledged of them."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress

from morgan.background.ipc import messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.errors import ServiceUnavailable, TaskNotFound
from morgan.background.ipc.records import TaskType

from .ledger import Ledger
from .victim import Pause, Victim

MAX_OPEN = 60  # tasks that have not ended; more would only wait
ANSWER_S = 1.0  # a killed supervisor answers nothing: the next request finds its successor
BREATH_S = 0.01  # between two requests, on average: the faults are to be felt, not the load
COLLECTIONS = ("c0", "c1", "c2")
WRITTEN = "written"  # collection of points that are written while faults happen
FLAT = [1.0] + [0.0] * 31  # a vector of no text


class Traffic:
    """A thread that hands in tasks and points until told to stop; `pause.ask()` brings it to rest."""

    def __init__(self, victim: Victim, ledger: Ledger, seed: int) -> None:
        self._client: Client = victim.new_client(ANSWER_S)
        self._ledger, self._rng = ledger, random.Random(seed)
        self.pause = Pause()
        self.written_to = 0  # ids of points up to here were handed in
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.pause.is_over = True
        self._thread.join(30.0)
        self._client.close()

    def _run(self) -> None:
        try:
            while not self.pause.is_over:
                self.pause.rest_if_wanted()
                try:
                    self._ask()
                except ServiceUnavailable:
                    self._ledger.unanswered += 1
                time.sleep(self._rng.uniform(0.0, 2 * BREATH_S))
        except Exception as error:  # noqa: BLE001 - whatever it is, the soak is to end with it
            self.error = error
            while not self.pause.is_over:
                self.pause.rest_if_wanted()
                time.sleep(BREATH_S)

    def _ask(self) -> None:
        kind, waiting = self._rng.random(), self._ledger.open()
        if kind < 0.05 and waiting:
            one = self._rng.choice(waiting)
            one.may_be_cancelled = True
            with suppress(TaskNotFound):  # said by the audit, with the task's name
                self._client.request(messages.CancelTask(task_id=one.task_id))
        elif kind < 0.25:
            self.written_to += 1
            point = {"id": self.written_to, "vector": FLAT, "payload": {"text": f"point {self.written_to}"}}
            self._client.upsert(WRITTEN, [point])
            self._ledger.written.add(self.written_to)
        elif len(waiting) >= MAX_OPEN:
            return
        elif kind < 0.4:
            self._submit(TaskType.REINDEX, self._rng.choice(COLLECTIONS))
        else:
            hold_s = self._rng.uniform(0.02, 0.3) if kind < 0.55 else 0.0
            self._submit(TaskType.PING, "ping", hold_s)

    def _submit(self, task_type: TaskType, collection: str, hold_s: float = 0.0) -> None:
        token = f"{self._rng.getrandbits(64):x}" if task_type is TaskType.PING else ""
        params = ({"token": token} if token else {}) | ({"hold_s": hold_s} if hold_s else {})
        request = messages.Submit(task_type=task_type.value, collection=collection, params=params, is_forced=True)
        reply = expect(messages.Submitted, self._client.request(request))
        self._ledger.accept(reply.task_id, task_type, token)
