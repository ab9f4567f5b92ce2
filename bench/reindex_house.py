"""Owns a small house for re-indexing under fire: an owner process with a real embedded store, and a task process beside it.

    python -m bench.reindex_house owner FOLDER SOCKET MODEL
    python -m bench.reindex_house task FOLDER SOCKET MODEL [CRASH_AT [owner]]

Store, owner's service, write gate and re-index are the service's own; the models are fake, so that writes by the million
can be made. The task saves its checkpoint after each step; at CRASH_AT it kills itself, or the owner, with SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from morgan.background.ipc.calls import MAX_CALL_BYTES
from morgan.background.ipc.records import TaskType
from morgan.background.ipc.settings import GateSettings, ModelSettings, WorkerSettings
from morgan.background.ipc.sockets import CLIENT_UNREAD, HIGH_WATER, bind_router
from morgan.background.workers.desk import Desk
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.owner import OwnerService
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.remote import RemoteStore
from morgan.background.workers.serving import Serving
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.write_gate import OwnersGate

from .fake_embedder import FakeEmbedder, FakeReranker

MODELS = {"old": 16, "new": 24}
TIMEOUT_S = 3.0


class TimedGate(OwnersGate):
    """Notes for how long writes were held, and slowed, each time, as the task sees it: from before it asks until after the
    answer that ends it."""

    def __init__(self, socket: Path, holds_ms: list[float], slows_ms: list[float]) -> None:
        super().__init__(socket, TIMEOUT_S, sees_every_write=True)
        self.holds_ms, self.slows_ms = holds_ms, slows_ms
        self._began: float | None = None
        self._slowed: float | None = None

    def slow(self, token: int, for_s: float, points_per_s: float) -> None:
        began = time.monotonic()
        super().slow(token, for_s, points_per_s)
        self._slowed = self._slowed or began
        if not points_per_s:
            self._fast_again()

    def hold(self, token: int, for_s: float) -> None:
        if for_s:
            self._began = time.monotonic()
        super().hold(token, for_s)
        if not for_s:
            self._over()

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        is_done = super().swap(old, new, kept_as=kept_as, rename_to=rename_to, token=token, seq=seq)
        self._over()
        if is_done:
            self._fast_again()
        return is_done

    def _over(self) -> None:
        if self._began is not None:
            self.holds_ms.append((time.monotonic() - self._began) * 1000)
            self._began = None

    def _fast_again(self) -> None:
        if self._slowed is not None:
            self.slows_ms.append((time.monotonic() - self._slowed) * 1000)
            self._slowed = None


def settings_for(model: str) -> WorkerSettings:
    gate = GateSettings(queries=10, latency_ratio=100.0, latency_floor_ms=60_000.0)  # not what is tried here
    return WorkerSettings(model=ModelSettings(name=model), scroll_size=16, gate=gate)


def own(folder: Path, socket: Path, model: str) -> None:
    """Serve the store until killed. What the supervisor would answer to a change is taken for granted."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    service = OwnerService(
        EdgeStore(folder / "vectors"),
        FakeEmbedder(model, MODELS[model]),
        FakeReranker(),
        settings_for(model),
        publish=lambda _: None,
        report=lambda _: None,
        load=lambda name: FakeEmbedder(name, MODELS[name]),
    )
    router = bind_router(
        context, socket, max_bytes=MAX_CALL_BYTES, high_water=HIGH_WATER, domain="", unread=CLIENT_UNREAD
    )
    desk = Desk(router, service)
    (folder / "owner.pid").write_text(str(os.getpid()))
    while True:
        due_at = desk.next_deadline
        router.poll(None if due_at is None else max(int((due_at - time.monotonic()) * 1000) + 1, 0))
        desk.serve_ready()
        desk.seen(service.seq)


def run_task(
    folder: Path,
    socket: Path,
    model: str,
    crash_at: str = "",
    victim: str = "",
    *,
    params: dict[str, Any] | None = None,
    holds_ms: list[float] | None = None,
    slows_ms: list[float] | None = None,
) -> dict[str, Any]:
    """Re-index "docs" from the checkpoint that an earlier attempt saved, if any; return the result."""
    store = RemoteStore(socket, TIMEOUT_S)
    embedder = FakeEmbedder(model, MODELS[model])
    saved = folder / "checkpoint"

    def reached(point: str) -> None:
        if point == crash_at and not (folder / "crashed").exists():
            (folder / "crashed").write_text(point)
            os.kill(int((folder / "owner.pid").read_text()) if victim else os.getpid(), signal.SIGKILL)

    def on_step(step: Step) -> Verdict:
        if step.checkpoint is not None:
            fresh = saved.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(step.checkpoint))
            fresh.replace(saved)
        return Verdict.GO_ON

    tools = Tools(
        *(store, embedder, FakeReranker(), settings_for(model), time.time, lambda: None),
        gate=TimedGate(socket, [] if holds_ms is None else holds_ms, [] if slows_ms is None else slows_ms),
        models=Serving(store, embedder, lambda name: FakeEmbedder(name, MODELS[name])),
        reached=reached,
    )
    checkpoint = None
    with contextlib.suppress(FileNotFoundError):
        checkpoint = msgspec.json.decode(saved.read_bytes())
    job = Job("t", TaskType.REINDEX, "docs", params or {}, checkpoint=checkpoint)
    ended = drive(reindex(job, tools), on_step)
    assert isinstance(ended, Outcome)
    saved.unlink(missing_ok=True)
    return ended.result


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "owner":
        own(Path(rest[0]), Path(rest[1]), rest[2])
    else:
        print(msgspec.json.encode(run_task(Path(rest[0]), Path(rest[1]), *rest[2:])).decode())
