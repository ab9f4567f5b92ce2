"""Owns a round of `bench governor`: the search process beside one kind of background at a time, and the sudden load.

settle ─▶ window: latencies, CPU clocks every SAMPLE_S, texts embedded ─▶ settle ─▶ step 0 → 80 % ─▶ ...
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import psutil

from morgan.background.data import documents
from morgan.background.ipc import messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.errors import MorganError
from morgan.background.ipc.records import Point, TaskStatus

from .daemon import Service, Settings, serving
from .foreground import IDLE, NICE_0, NICE_19, SIZE, START_S, UNIT_S, Helper, corrected, schedule
from .measure import Latency, latency
from .shares import Meter, Sample, Shares, clock_s, errors, shares

NONE, CONTROL = "no background", "no background, again"
OURS, OURS_LOW, FREE = "ours, limit 70 %", "ours, limit 30 %", "ours, unthrottled"
NAIVE = (NICE_0, NICE_19, IDLE)
LIMITS: Mapping[str, float] = {OURS: 0.7, OURS_LOW: 0.3}  # of every other kind: the whole machine
STEPPED = (NONE, *NAIVE, OURS)  # what the sudden load comes on top of

SEARCH_SHARE, STEP_SHARE = 0.13, 0.8  # of all usable CPUs
SEARCHER_SHARE = 0.3  # of one CPU, at most: one process searches with one thread
SAMPLE_S = 0.25
SPANS_S = (2.0, 10.0)  # windows in which use is held against the limit
BLOCK, BLOCKS = 64, 50  # sentences, again and again: each step of a re-index is the same work
LEAST_WORDS = 8
WAIT_S = 10.0  # of one long poll


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds, and how often. The case ends after `until_s` though rounds be missing."""

    settle_s: float
    window_s: float
    ours_s: float  # the window of ours, whose limits are looked at over 10 s
    step_s: float
    held_s: float  # in which our tasks run with a limit of 0: the supervisor does nothing but govern
    steps: int  # of ours in a round; the others have one
    rounds: int
    max_rounds: int
    until_s: float
    modes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Window:
    """What one kind of background did and cost in one window. Points and shares are of all usable CPUs."""

    latency: Latency
    shares: Shares
    load: float  # the load average at its end
    errors: Mapping[float, Sequence[float]]  # by span: points from the limit
    supervisor_percent: float  # of one CPU
    texts_per_cpu_s: float | None  # None: nothing was embedded
    reason: str  # the governor's words at its end


@dataclass(slots=True)
class Found:
    """All windows and steps by kind of background, in the order of their rounds."""

    windows: dict[str, list[Window]] = field(default_factory=dict)
    steps: dict[str, list[list[int]]] = field(default_factory=dict)  # pieces done in each slice
    governing_percent: list[float] = field(default_factory=list)  # of one CPU: the supervisor while it only governs
    rate_hz: float = 0.0  # searches a second
    units_hz: float = 0.0  # pieces of the load a second, due
    cost_s: float = 0.0  # of a search


class Work:
    """Re-indexes one collection again and again until `end`; notes how much was done at which CPU time."""

    def __init__(self, service: Service, collection: str, *, is_forced: bool) -> None:
        self._service, self._collection, self._is_forced = service, collection, is_forced
        self.marks: list[tuple[float, int, float]] = []  # time, texts embedded, CPU seconds of their worker
        self._task_id, self._is_ending = self._submit(), False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=collection)
        self._thread.start()

    def _submit(self) -> str:
        request = messages.Submit(
            task_type="reindex",
            collection=self._collection,
            params={"force_rebuild": True, "without_gate": True},  # it is to embed, and nothing else
            is_forced=self._is_forced,
        )
        return expect(messages.Submitted, self._service.client.request(request)).task_id

    def _run(self) -> None:
        try:
            base = 0
            while not self._is_ending:
                base += self._follow(base)
                if not self._is_ending:
                    self._task_id = self._submit()
        except BaseException as error:  # noqa: BLE001 - raised again by `end`
            self._failed = error

    def _follow(self, base: int) -> int:
        """Return how many texts the task has embedded in all, once it has ended."""
        client, seen, pid, done = self._service.client, -1, 0, 0
        while True:
            ask = messages.GetTask(task_id=self._task_id, seen=seen, wait_s=WAIT_S)
            record = expect(messages.TaskReply, client.request(ask, WAIT_S + 10)).task
            is_news, done, seen = record.progress.done > done, record.progress.done, record.version
            if record.status.is_final:
                if record.status not in (TaskStatus.COMPLETED, TaskStatus.CANCELLED):
                    raise RuntimeError(f"{self._task_id}: {record.error_message}\n{self._service.log_tail()}")
                return done
            if is_news:
                pid = pid or _worker_of(client, self._task_id)
                if used := clock_s(pid):
                    self.marks.append((time.monotonic(), base + done, used))

    def end(self) -> None:
        """Cancel what runs and return when it has stopped. Raises what went wrong."""
        self._is_ending = True
        while self._thread.is_alive():
            with suppress(MorganError):  # it has ended by itself, and the next one is not known yet
                self._service.client.request(messages.CancelTask(task_id=self._task_id))
            self._thread.join(1.0)
        if self._failed is not None:
            raise self._failed

    def between(self, start_s: float, end_s: float) -> tuple[int, float]:
        """Return the texts embedded in that time and the CPU seconds they took, from the first mark to the last."""
        marks = [mark for mark in self.marks if start_s <= mark[0] <= end_s]
        return (marks[-1][1] - marks[0][1], marks[-1][2] - marks[0][2]) if len(marks) > 1 else (0, 0.0)


def _worker_of(client: Client, task_id: str) -> int:
    return next((int(one["pid"]) for one in client.status()["workers"] if one["task_id"] == task_id), 0)


class Stage:
    """The service with its collections, the search processes and those of the load: all of it waits, unused."""

    def __init__(self, stack: ExitStack, settings: Settings) -> None:
        self.cpus = len(os.sched_getaffinity(0))
        self.searchers = [self._helper(stack, "search") for _ in range(searchers(self.cpus))]
        self.found = Found()
        self.found.cost_s = max(one.hear()["cost_s"] for one in self.searchers)
        self.loaders = [self._helper(stack, "load") for _ in range(self.cpus)]
        unit_s = max(one.hear()["cost_s"] for one in self.loaders)
        self.found.rate_hz = SEARCH_SHARE * self.cpus / len(self.searchers) / self.found.cost_s
        self.found.units_hz = STEP_SHARE / max(unit_s, UNIT_S / 2)
        self.service = stack.enter_context(serving(settings, is_own_session=True))
        self.collections = [f"governor_{index}" for index in range(self.cpus)]
        for name in self.collections:
            self.service.client.create_collection(name)
            self.service.client.upsert(name, _points())

    @staticmethod
    def _helper(stack: ExitStack, *arguments: str) -> Helper:
        helper = Helper(*arguments)
        stack.callback(helper.close)
        return helper

    def warm_up(self, end_at: float) -> None:
        """Return when every worker has embedded something, at the latest at `end_at`: models load late."""
        works = [Work(self.service, name, is_forced=True) for name in self.collections]
        while not all(work.marks for work in works) and time.monotonic() < end_at:
            time.sleep(SAMPLE_S)
        for work in works:
            work.end()

    def round(self, mode: str, plan: Plan, seed: int) -> None:
        """Take a window of a kind of background, and its steps."""
        with self._background(mode) as (pids, works):
            seconds = plan.ours_s if mode in LIMITS else plan.window_s
            self.found.windows.setdefault(mode, []).append(self._window(mode, pids, works, plan, seconds, seed))
            if mode in STEPPED:
                for _ in range(plan.steps if mode == OURS else 1):
                    time.sleep(plan.settle_s)
                    self.found.steps.setdefault(mode, []).append(self._step(plan.step_s, seed))
            if mode == OURS:
                self.found.governing_percent.append(self._governing_percent(plan))

    @contextmanager
    def _background(self, mode: str) -> Iterator[tuple[list[int], list[Work]]]:
        """Run it for the block. Gives its processes, and what it works on if it is ours."""
        if mode in (NONE, CONTROL):
            yield [], []
            return
        if mode in NAIVE:
            burner = Helper("burn", mode, str(self.cpus))
            try:
                yield burner.hear()["pids"], []
            finally:
                burner.close()
            return
        self.service.reload(limits(LIMITS.get(mode, 1.0)))
        works = [Work(self.service, name, is_forced=mode == FREE) for name in self.collections]
        try:
            yield self._family(), works
        finally:
            for work in works:
                work.end()

    def _supervisor(self) -> int:
        return self.service.processes()["supervisor"].pid

    def _family(self) -> list[int]:
        supervisor = self._supervisor()
        return [supervisor, *(one.pid for one in psutil.Process(supervisor).children(recursive=True))]

    def _window(
        self, mode: str, pids: Sequence[int], works: Sequence[Work], plan: Plan, seconds: float, seed: int
    ) -> Window:
        supervisor, meter = self._supervisor(), Meter(pids, [one.pid for one in self.searchers])
        rate_hz, start_ns = self.found.rate_hz, time.monotonic_ns() + int(START_S * 1e9)
        given = [(one, seed * len(self.searchers) + index) for index, one in enumerate(self.searchers)]
        for one, its_seed in given:
            one.tell(start_ns=start_ns, rate_hz=rate_hz, seconds=plan.settle_s + seconds, seed=its_seed)
        begin_s = start_ns / 1e9 + plan.settle_s
        time.sleep(max(begin_s - time.monotonic(), 0.0))
        used_s = clock_s(supervisor) or 0.0
        samples = [meter.sample()]
        while samples[-1].at_s < begin_s + seconds - SAMPLE_S / 2:
            time.sleep(max(begin_s + len(samples) * SAMPLE_S - time.monotonic(), 0.001))
            samples.append(meter.sample())
        used_s = (clock_s(supervisor) or 0.0) - used_s
        found: list[int] = []
        for one, its_seed in given:
            due_ns = schedule(rate_hz, plan.settle_s + seconds, its_seed)
            all_ns = corrected(due_ns, one.hear())
            found += [ns for due, ns in zip(due_ns, all_ns, strict=True) if due >= plan.settle_s * 1e9]
        first, last = samples[0], samples[-1]
        return Window(
            latency=latency(found),
            shares=shares(first, last, self.cpus),
            load=os.getloadavg()[0],
            errors=_errors(mode, samples, self.cpus),
            supervisor_percent=100 * used_s / (last.at_s - first.at_s),
            texts_per_cpu_s=_per_cpu_s(works, first.at_s, last.at_s),
            reason=self.service.client.status()["resources"]["reason"] if works else "",
        )

    def _governing_percent(self, plan: Plan) -> float:
        """Return the supervisor's CPU time, in percent, while tasks run and get nothing: it reads, decides and waits."""
        supervisor = self._supervisor()
        self.service.reload(limits(0.0))
        time.sleep(plan.settle_s)  # a step that had begun is done
        used_s, began_s = clock_s(supervisor) or 0.0, time.monotonic()
        time.sleep(plan.held_s)
        return 100 * ((clock_s(supervisor) or 0.0) - used_s) / (time.monotonic() - began_s)

    def _step(self, seconds: float, seed: int) -> list[int]:
        """Return how many pieces of the load were done in each slice from its start on."""
        start_ns = time.monotonic_ns() + int(START_S * 1e9)
        for index, one in enumerate(self.loaders):
            one.tell(start_ns=start_ns, rate_hz=self.found.units_hz, seconds=seconds, seed=seed + index)
        return [sum(counts) for counts in zip(*(one.hear() for one in self.loaders), strict=True)]


def searchers(cpus: int) -> int:
    """Return how many processes make up the search's share of so many CPUs."""
    return max(1, math.ceil(SEARCH_SHARE * cpus / SEARCHER_SHARE))


def limits(limit: float) -> Settings:
    return {"limits": {"active_hours_cpu_limit": limit, "quiet_hours_cpu_limit": limit}}


def _points() -> list[Point]:
    sentences = [
        one.strip()
        for document in documents()
        for one in document["text"].split(". ")
        if len(one.split()) >= LEAST_WORDS
    ]
    texts = sentences[:: len(sentences) // BLOCK][:BLOCK]
    vector = np.full(SIZE, SIZE**-0.5, "<f4").tobytes()
    return [Point(id=i, payload={"text": texts[i % BLOCK]}, vector=vector) for i in range(BLOCK * BLOCKS)]


def _errors(mode: str, samples: Sequence[Sample], cpus: int) -> Mapping[float, Sequence[float]]:
    if mode not in LIMITS:
        return {}
    return {span_s: errors(samples, LIMITS[mode], span_s, cpus) for span_s in SPANS_S}


def _per_cpu_s(works: Sequence[Work], start_s: float, end_s: float) -> float | None:
    parts = [work.between(start_s, end_s) for work in works]
    used_s = sum(used for _, used in parts)
    return sum(done for done, _ in parts) / used_s if used_s else None


def settings(cpus: int) -> Settings:
    """Return the configuration: one worker a CPU, and limits that are the same at every hour."""
    return {
        "service": {"workers": cpus},
        "schedule": {"auto": False},
        "limits": {"memory_limit": 1.0, **limits(1.0)["limits"]},
    }
