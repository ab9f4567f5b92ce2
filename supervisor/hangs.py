"""Owns when a worker counts as hung: it gives no sign of life, or its step makes no progress. Pure.

    look every second or so ─▶ Sight ─▶ step(watch, sight, elapsed_s) ─▶ FINE | STOP (asked to leave) | KILL

Elapsed time is the supervisor's own: what passed while it could not look (a suspend, a busy loop) must not be handed in.
Nor does time count in which the worker waited for a CPU: a worker of class SCHED_IDLE on a busy machine may get none
for minutes and is well.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import Enum

SILENT_S = 10.0  # ten beats of 1 s, two of 5 s: stopped, swapped out, or blocked with the interpreter's lock held


class Verdict(Enum):
    FINE = "fine"
    STOP = "stop"  # tell it to leave at its next step
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Limits:
    step_timeout_s: float
    grace_s: float  # between STOP and KILL
    silent_s: float = SILENT_S


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a worker. `beat` is written by its watch thread, `progress` by the thread that runs the task."""

    beat: int
    progress: Hashable  # differs from the last look's if a step ended, or the task waited for its CPU budget
    task: Hashable = None  # None: it has none
    is_runnable: bool = False  # a thread of it has a CPU or waits for one; looked up only if the beat has not changed
    delay_s: float = 0.0  # how long the task's thread has waited for a CPU in all
    age_s: float = 0.0  # how long ago the beat was


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of a worker: its last sight, and for how long it was silent, made no progress, is to leave."""

    sight: Sight
    silent_s: float = 0.0
    stalled_s: float = 0.0
    leaving_s: float | None = None  # since it was asked to; None if it was not


def step(watch: Watch | None, sight: Sight, elapsed_s: float, limits: Limits) -> tuple[Watch, Verdict]:
    """Return what is known after a look, and what to do. `elapsed_s` passed since the last one; None at the first."""
    if watch is None:
        return Watch(sight), Verdict.FINE
    last = watch.sight
    is_silent = sight.beat == last.beat
    is_starved = is_silent and sight.is_runnable
    waited_s = 0.0 if is_starved else max(elapsed_s - max(sight.delay_s - last.delay_s, 0.0), 0.0)
    is_stalled = sight.task is not None and (sight.task, sight.progress) == (last.task, last.progress)
    watch = Watch(
        sight,
        # of a new beat: it was silent since, which is within the time of this look
        silent_s=0.0 if is_starved else watch.silent_s + elapsed_s if is_silent else min(sight.age_s, elapsed_s),
        stalled_s=watch.stalled_s + waited_s if is_stalled else 0.0,
        leaving_s=None if watch.leaving_s is None else watch.leaving_s + waited_s,
    )
    if watch.silent_s >= limits.silent_s or (watch.leaving_s is not None and watch.leaving_s >= limits.grace_s):
        return watch, Verdict.KILL
    if watch.stalled_s >= limits.step_timeout_s and watch.leaving_s is None:
        return replace(watch, leaving_s=0.0), Verdict.STOP
    return watch, Verdict.FINE


def why_killed(watch: Watch, limits: Limits) -> str:
    """Say in words for what a worker was killed."""
    if watch.silent_s >= limits.silent_s:
        return f"it gave no sign of life for {watch.silent_s:.0f} s"
    return f"its step made no progress for {limits.step_timeout_s:g} s, and it did not leave in {limits.grace_s:g} s"
