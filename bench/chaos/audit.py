"""Owns the invariants: what is asked of the service after each fault, and of all of it after some of them.

A violation is raised as Wrong and says what was found.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.errors import ServiceUnavailable, TaskNotFound
from morgan.background.ipc.records import Point, TaskRecord, TaskStatus, TaskType
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.vectors import STAMP_KEY

from .ledger import POINTS, Accepted, Ledger, fault_of
from .standin.sentence_transformers import HASHED, SIZE, of_text
from .traffic import COLLECTIONS, FLAT, WRITTEN
from .victim import OUTLIVES, TASK_WORKERS, Victim, Wrong, open_fds, rss_kib

DRAIN_S = 300.0  # for all open tasks to end, once nothing is harmed any more; on a busy machine workers get little
CALM_S = 150.0  # a place whose workers kept dying is tried once a minute
CALL_S = 60.0
MORE_FDS = 8  # of the supervisor than at first: connections of clients that have just left
MORE_RSS_KIB = 32 * 1024  # of the supervisor than at first: pages of the journal's cache, tasks that it remembers
LIKE = 0.999  # cosine of a vector of its own text; the part that differs by call costs up to 0.0003
PAGE = 256


class Effects:
    """What re-indexing has done to the points, and what it must leave as it is."""

    def __init__(self, client: Client, names: Sequence[str] = COLLECTIONS, *, is_once: bool = True) -> None:
        """Not `is_once`: a point may be embedded again, by a request that its server took long over."""
        self._client, self._names, self._is_once = client, names, is_once
        self._texts: dict[str, dict[int, str]] = {}
        self._settled: dict[tuple[str, int], bytes | None] = {}  # points that were seen embedded, with their vector
        self.embedded = 0  # points that had to be

    def create(self) -> None:
        for name in (*self._names, WRITTEN):
            expect(calls.CollectionList, self._client.call(calls.Create(collection=name, vector_size=SIZE), CALL_S))

    def change(self, rng: random.Random, share: float) -> None:
        """Write other texts, with vectors of none: a re-index has to embed them. Called while nothing is harmed."""
        for name in self._names:
            known = self._texts.setdefault(name, {})
            chosen = [i for i in range(1, POINTS + 1) if i not in known or rng.random() < share]
            for point_id in chosen:
                known[point_id] = f"{name} {point_id} {rng.getrandbits(64):x}"
                self._settled.pop((name, point_id), None)
            self.embedded += len(chosen)
            points = [{"id": i, "vector": FLAT, "payload": {"text": known[i], "n": i}} for i in chosen]
            self._client.upsert(name, points)

    def look(self, name: str, *, is_whole: bool = False) -> None:
        """Check each point of a collection; `is_whole`: all must be embedded by now.

        A point that was seen embedded once must have that very vector ever after.
        """
        page = expect(
            calls.Page, self._client.call(calls.Scroll(collection=name, limit=PAGE, with_vectors=True), CALL_S)
        )
        if len(page.points) != POINTS:
            raise Wrong(f"{name} has {len(page.points)} points, not {POINTS}")
        for point in page.points:
            self._check(name, point, is_whole=is_whole)

    def _check(self, name: str, point: Point, *, is_whole: bool) -> None:
        assert isinstance(point.id, int)
        where, text = (name, point.id), self._texts[name][point.id]
        if (point.payload.get("text"), point.payload.get("n")) != (text, point.id):
            raise Wrong(f"point {where} has {point.payload}, not the text {text!r}")
        if (point.payload.get(STAMP_KEY) or {}).get("fp") != fingerprint(text):
            if is_whole or where in self._settled:
                raise Wrong(f"point {where} is not embedded{' any more' * (where in self._settled)}: {point.payload}")
            return
        vector = np.frombuffer(point.vector or b"", dtype="<f4")
        if len(vector) != SIZE or float(vector[:HASHED] @ of_text(text)) / np.linalg.norm(vector[:HASHED]) < LIKE:
            raise Wrong(f"point {where} has a stamp and not the vector of its text")
        if self._settled.setdefault(where, point.vector) != point.vector and self._is_once:
            raise Wrong(f"point {where} was embedded a second time")


class Audit:
    """See the module. Works on one daemon; the load is at rest for `whole`, and goes on during `after_fault`."""

    def __init__(self, victim: Victim, ledger: Ledger) -> None:
        self._victim, self._ledger = victim, ledger
        self.effects = Effects(victim.client)
        self._base_fds = self._base_rss_kib = 0
        self.most_fds = self.most_rss_kib = 0
        self.counts: Counter[str] = Counter()

    # --- after each fault ---------------------------------------------------------------------------------------------

    def after_fault(self, rng: random.Random) -> None:
        """See that every acknowledged task is known, no end was taken back, and no effect was done again."""
        self._victim.status()
        for one in [*self._ledger.open(), *self._ledger.ended()]:
            self.see(one)
        try:
            self.effects.look(rng.choice(COLLECTIONS))
        except ServiceUnavailable:
            self.counts["looks without an owner"] += 1

    def see(self, one: Accepted, wait_s: float = 0.0) -> TaskRecord | None:
        """Look at an acknowledged task; return it, None where the service may have forgotten it."""
        try:
            record = self._task(one.task_id, wait_s)
        except TaskNotFound:
            if one.may_be_forgotten:
                self.counts["ended and forgotten, the clock was set"] += 1
                self._ledger.drop(one)
                return None
            raise Wrong(f"the acknowledged task {one.task_id} is lost") from None
        if fault := fault_of(one, record):
            raise Wrong(fault)
        if record.status.is_final and one.ended is None:
            one.ended = record
            self.counts[record.status.value] += 1
        return record

    def _task(self, task_id: str, wait_s: float = 0.0) -> TaskRecord:
        ask = messages.GetTask(task_id=task_id, wait_s=wait_s, until_ended=wait_s > 0)
        try:
            return expect(messages.TaskReply, self._victim.client.request(ask, wait_s + CALL_S)).task
        except ServiceUnavailable as error:
            raise Wrong(f"{error}\n{self._victim.log_tail()}") from error

    # --- when all is calm ---------------------------------------------------------------------------------------------

    def whole(self) -> None:
        """See that all has come to its end, once, and that nothing is left behind."""
        victim = self._victim
        victim.await_ready()
        deadline_at = time.monotonic() + DRAIN_S
        for one in self._ledger.open():
            record = self.see(one, min(max(deadline_at - time.monotonic(), 0.1), 30.0))
            while record is not None and not record.status.is_final and time.monotonic() < deadline_at:
                record = self.see(one, 10.0)
            if record is not None and not record.status.is_final:
                raise Wrong(f"{one.task_id} has not ended {DRAIN_S:g} s after the last fault: {record}")
        self._ended_once()
        for name in COLLECTIONS:
            self._reindex(name)
            self.effects.look(name, is_whole=True)
        self._written_are_there()
        self._nothing_left()
        self._ledger.forget_ended()
        self.counts["audits"] += 1

    def _ended_once(self) -> None:
        """Each end of a task is one row of the history; a ping that was done is none."""
        reply = self._victim.client.request(messages.ListExecutions(limit=1000), CALL_S)
        rows = Counter(one.task_id for one in expect(messages.ExecutionList, reply).executions)
        with self._ledger.lock:
            ended = [one for one in self._ledger.tasks.values() if one.ended is not None]
        for one in ended:
            assert one.ended is not None
            is_done_ping = one.task_type is TaskType.PING and one.ended.status is TaskStatus.COMPLETED
            if rows[one.task_id] != (not is_done_ping):
                raise Wrong(f"{rows[one.task_id]} executions of {one.ended}")

    def _reindex(self, name: str) -> None:
        asked = messages.Submit(task_type="reindex", collection=name, is_forced=True)
        task_id = expect(messages.Submitted, self._victim.client.request(asked, CALL_S)).task_id
        record = self._task(task_id, CALL_S - 1)
        if record.result is None or not record.result.get("success"):
            raise Wrong(f"a re-index of {name} in peace: {record}")

    def _written_are_there(self) -> None:
        found: dict[Any, Mapping[str, Any]] = {}
        after = None
        while True:
            call = calls.Scroll(collection=WRITTEN, after=after, limit=PAGE)
            page = expect(calls.Page, self._victim.client.call(call, CALL_S))
            found |= {point.id: point.payload for point in page.points}
            if (after := page.next_after) is None:
                break
        if lost := [i for i in self._ledger.written if found.get(i, {}).get("text") != f"point {i}"]:
            raise Wrong(f"acknowledged points are lost: {lost}")
        self.counts["written points"] += len(self._ledger.written)
        self._victim.client.call(calls.Delete(collection=WRITTEN, ids=tuple(found)), CALL_S)
        self._ledger.written.clear()

    def _nothing_left(self) -> None:
        """Processes, descriptors, memory, files and problems are what they were."""
        victim = self._victim

        def whole_pool() -> dict[str, Any] | None:
            report = victim.status()
            named = {report["pid"], report["fork_server"], *(one["pid"] for one in report["workers"])}
            is_whole = len(report["workers"]) == TASK_WORKERS + 1 and not report["problems"]
            return report if is_whole and set(victim.processes()) == named else None

        try:
            victim.until(whole_pool, "the pool is whole, there is no other process and no problem", CALM_S)
        except Wrong as wrong:
            report = victim.status()
            seen = {key: report[key] for key in ("pid", "fork_server", "workers", "problems")}
            raise Wrong(f"{seen}, processes {victim.processes()}: {wrong}") from None
        fds, rss = open_fds(victim.pid), rss_kib(victim.pid)
        self._base_fds, self._base_rss_kib = self._base_fds or fds, self._base_rss_kib or rss
        at_most = self._base_fds + MORE_FDS
        victim.until(lambda: open_fds(victim.pid) <= at_most or None, f"at most {at_most} descriptors", 15.0)
        if rss > self._base_rss_kib + MORE_RSS_KIB:
            raise Wrong(f"the supervisor has grown from {self._base_rss_kib} to {rss} KiB")
        self.most_fds, self.most_rss_kib = max(self.most_fds, fds), max(self.most_rss_kib, rss)
        self._files()
        self._journal()

    def _journal(self) -> None:
        """The file is sound, and holds no checkpoint of a task that has ended."""
        path = self._victim.state / "journal.sqlite3"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            (verdict,) = db.execute("pragma integrity_check(1)").fetchone()
            left = db.execute(
                "select task_id from checkpoint where task_id not in"
                " (select id from task where status in ('pending', 'running'))"
            ).fetchall()
        if verdict != "ok" or left:
            raise Wrong(f"the journal: {verdict}; checkpoints of tasks that have ended: {left}")

    def _files(self) -> None:
        victim = self._victim
        run = {path.name for path in victim.runtime.iterdir()}
        if strange := run - OUTLIVES - {"clients.sock", "workers.sock", "owner.sock", "board"}:
            raise Wrong(f"left in the runtime folder: {', '.join(sorted(strange))}")
        if readers := list((victim.runtime / "readers").iterdir()):
            raise Wrong(f"counters of readers that never were: {readers}")
        state = {path.name for path in victim.state.iterdir()}
        journal = {"journal.sqlite3", "journal.sqlite3-wal", "journal.sqlite3-shm"}
        if strange := state - journal - {"lock", "results.saved"}:
            raise Wrong(f"left in the state folder: {', '.join(sorted(strange))}")
