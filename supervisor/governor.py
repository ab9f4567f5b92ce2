"""Owns how much CPU background work may use now. Pure: readings in, a decision in words and numbers out.

The limit is of the whole machine and for everything together, so background work gets what is left under it:
budget = limit(hour) - others' use. Own use is told apart, else the service would throttle itself.

Readings come ten times a second, and the kernel counts CPU time in steps of 10 ms: what others use is the mean of the
last WINDOW_S, but a burst counts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

WINDOW_S = 0.5  # others' use is the mean of so long: 1 % of two CPUs is one of the kernel's ticks then, 5 % in 0.1 s
BURST_PERMILLE = 100  # a reading so far above that mean counts by itself
RISE_PER_S = 250  # permille a second: from nothing to 70 % in under 3 s; falls are at once
QUERY_COST_PERMILLE = 20  # room kept for each search a second, before its CPU shows in a reading
MAX_QUERY_ROOM_PERMILLE = 200
PSI_CALM_PERMILLE = 200  # "some" above this: tasks wait for a CPU a fifth of the time
PSI_OTHERS_PERMILLE = 100  # and others use more than this; from twice as much on, pressure counts in full
WIDER_PERMILLE = 100  # of one CPU: for less, another one is not worth its cold caches
ADMIT_PERMILLE = 50  # below a twentieth of the machine a new task is not worth its start
MEMORY_HYSTERESIS_PERMILLE = 30
MEMORY_STEP_PERMILLE = 50  # from the limit of one step of memory to that of the next: 80, 85 and 90 %
LOOK_AHEAD_STEP_S = 300  # when the limit will have risen is said to five minutes


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares in permille of the machine, hours of the local clock."""

    active_cpu_permille: int = 300
    quiet_cpu_permille: int = 700
    memory_permille: int = 800
    active_start_h: int = 9
    active_end_h: int = 18
    quiet_start_h: int = 22
    quiet_end_h: int = 6


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the machine. CPU shares are of all CPUs together; `at_s` is monotonic time."""

    at_s: float
    own_cpu_permille: int
    others_cpu_permille: int
    memory_used_permille: int
    cpus: float  # usable: by affinity, or by the container's quota where that is less
    psi_some_permille: int | None = None  # of the time since the last look in which a task of others waited for a CPU
    is_on_battery: bool = False
    query_rate_hz: float = 0.0
    is_plausible: bool = True
    reason: str = ""  # why it is not plausible


class Memory(IntEnum):
    """How short memory is, and what is done about it: each step does what those before it do as well."""

    EASY = 0
    TIGHT = 1  # above the limit: no task is admitted
    SHORT = 2  # batches are as small as can be
    CRITICAL = 3  # workers are replaced, one after the other: their memory is given back


@dataclass(frozen=True, slots=True)
class GovernorState:
    budget_permille: int = 0
    at_s: float | None = None
    memory: Memory = Memory.EASY
    recent: tuple[tuple[float, int], ...] = ()  # seconds, and others' use in permille in them: the last WINDOW_S


class Hours(Enum):
    """What part of the day it is; the value is its name in a reason."""

    ACTIVE = "active hours"
    QUIET = "quiet hours"
    BETWEEN = "between active and quiet hours"


@dataclass(frozen=True, slots=True)
class Why:
    """What a decision follows from where nothing is wrong. Its words are made when somebody asks: hardly one in ten."""

    hours: Hours
    readings: Readings
    others_permille: int  # the mean, or a burst
    limits: Limits
    limit_permille: int
    budget_permille: int

    def __str__(self) -> str:
        return _reason(self)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Equal to another with the same outcome and the same words."""

    budget_permille: int
    is_admitting: bool
    memory: Memory
    why: Why | str

    @property
    def reason(self) -> str:
        return str(self.why)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._outcome() == other._outcome() and self.reason == other.reason

    def __hash__(self) -> int:
        return hash(self._outcome())

    def _outcome(self) -> tuple[int, bool, Memory]:
        return self.budget_permille, self.is_admitting, self.memory

    @property
    def is_memory_tight(self) -> bool:
        return self.memory > Memory.EASY


def is_active_hours(limits: Limits, hour: float) -> bool:
    """Say whether `hour` (0 <= hour < 24) is one in which somebody is expected at the machine."""
    return _within(hour, limits.active_start_h, limits.active_end_h)


def _within(hour: float, start: float, end: float) -> bool:
    return (hour - start) % 24 < (end - start) % 24


def cpu_limit_permille(limits: Limits, hour: float) -> int:
    """Return the limit at a local hour: the two plateaus, and a line between them in the hours that lie between."""
    if _within(hour, limits.active_start_h, limits.active_end_h):
        return limits.active_cpu_permille
    if _within(hour, limits.quiet_start_h, limits.quiet_end_h):
        return limits.quiet_cpu_permille
    if _within(hour, limits.quiet_end_h, limits.active_start_h):
        start, end = limits.quiet_end_h, limits.active_start_h
        low, high = limits.quiet_cpu_permille, limits.active_cpu_permille
    else:
        start, end = limits.active_end_h, limits.quiet_start_h
        low, high = limits.active_cpu_permille, limits.quiet_cpu_permille
    share = ((hour - start) % 24) / ((end - start) % 24)
    return round(low + (high - low) * share)


def step(state: GovernorState, readings: Readings, limits: Limits, hour: float) -> tuple[GovernorState, Decision]:
    """Decide the budget from new readings: down at once, up by at most RISE_PER_S."""
    went_back = state.at_s is not None and readings.at_s < state.at_s
    if not readings.is_plausible or went_back:
        what = readings.reason or "the clock went backwards"
        reason = f"readings failed ({what}): taken as a busy machine"
        return GovernorState(0, readings.at_s, state.memory), Decision(0, False, state.memory, reason)
    memory = _memory(state.memory, readings.memory_used_permille, limits.memory_permille)
    limit = cpu_limit_permille(limits, hour)
    recent = _recent(state, readings)
    others = _others(recent)
    target = 0 if readings.is_on_battery else _target(readings, others, limit)
    if state.at_s is None:
        budget = target
    else:
        budget = min(target, state.budget_permille + round((readings.at_s - state.at_s) * RISE_PER_S))
    why: Why | str
    if memory > Memory.EASY:
        why = _memory_reason(memory, readings, limits)
    elif readings.is_on_battery:
        why = "the machine runs on its battery: nothing runs until it is plugged in, but for forced tasks"
    else:
        why = Why(_hours(limits, hour), readings, others, limits, limit, budget)
    is_admitting = budget >= ADMIT_PERMILLE and memory is Memory.EASY
    return GovernorState(budget, readings.at_s, memory, recent), Decision(budget, is_admitting, memory, why)


def _recent(state: GovernorState, readings: Readings) -> tuple[tuple[float, int], ...]:
    """Return the readings of others' use that the mean is of: the newest, and those before it of the last WINDOW_S."""
    elapsed_s = 0.0 if state.at_s is None else readings.at_s - state.at_s
    kept, left_s = [(elapsed_s, readings.others_cpu_permille)], WINDOW_S - elapsed_s
    for seconds, others in state.recent:  # the newest first
        if left_s < seconds:
            break
        kept.append((seconds, others))
        left_s -= seconds
    return tuple(kept)


def _others(recent: tuple[tuple[float, int], ...]) -> int:
    newest = recent[0][1]
    total_s = used = 0.0
    for seconds, others in recent:
        total_s += seconds
        used += seconds * others
    if total_s <= 0:
        return newest
    mean = used / total_s
    return newest if newest > mean + BURST_PERMILLE else round(mean)


def admits_from(readings: Readings, limits: Limits, now: float, hour_at: Callable[[float], float]) -> float | None:
    """Return from when on (Unix seconds) the limit admits a task if others go on using what they use now.

    None where no hour of the day does, and where it is not a question of the hour: memory is short, a reading failed.
    """
    if not readings.is_plausible or readings.is_on_battery:
        return None
    if readings.memory_used_permille > limits.memory_permille:
        return None
    times = (now + step_s for step_s in range(0, 86400 + LOOK_AHEAD_STEP_S, LOOK_AHEAD_STEP_S))
    others = readings.others_cpu_permille
    limit_at = ((at, cpu_limit_permille(limits, hour_at(at))) for at in times)
    return next((at for at, limit in limit_at if _target(readings, others, limit) >= ADMIT_PERMILLE), None)


def _room(readings: Readings) -> int:
    """Return the part of the machine that is kept free for searches."""
    return min(round(readings.query_rate_hz * QUERY_COST_PERMILLE), MAX_QUERY_ROOM_PERMILLE)


def _target(readings: Readings, others: int, limit: int) -> int:
    """Return the budget these readings would allow in the long run."""
    target = max(limit - others - _room(readings), 0)
    pressure = readings.psi_some_permille
    if pressure is None or pressure <= PSI_CALM_PERMILLE:
        return target
    # Where others use little, nobody who matters waits. Not a step: the budget would swing at one reading more or less.
    weight = min(max(others / PSI_OTHERS_PERMILLE - 1, 0.0), 1.0)
    return round(target * (1 - weight * (1 - PSI_CALM_PERMILLE / pressure)))


def _memory(held: Memory, used: int, limit: int) -> Memory:
    """Return the step: up at once, down where use is MEMORY_HYSTERESIS_PERMILLE below the limit of the held one."""
    if used <= limit and held is Memory.EASY:
        return held  # as nearly always

    def step_at(permille: int) -> Memory:
        if permille <= limit:
            return Memory.EASY
        return Memory(min(1 + (permille - limit - 1) // MEMORY_STEP_PERMILLE, Memory.CRITICAL))

    return max(step_at(used), min(held, step_at(used + MEMORY_HYSTERESIS_PERMILLE)))


def _memory_reason(memory: Memory, readings: Readings, limits: Limits) -> str:
    words = f"memory is {_percent(readings.memory_used_permille)} used, the limit is {_percent(limits.memory_permille)}"
    done = {Memory.SHORT: "; batches are small", Memory.CRITICAL: "; batches are small, workers are replaced"}
    return words + done.get(memory, "")


def _hours(limits: Limits, hour: float) -> Hours:
    if is_active_hours(limits, hour):
        return Hours.ACTIVE
    return Hours.QUIET if _within(hour, limits.quiet_start_h, limits.quiet_end_h) else Hours.BETWEEN


def _reason(why: Why) -> str:
    limits, readings = why.limits, why.readings
    span = {
        Hours.ACTIVE: f" ({limits.active_start_h:02d}-{limits.active_end_h:02d})",
        Hours.QUIET: f" ({limits.quiet_start_h:02d}-{limits.quiet_end_h:02d})",
        Hours.BETWEEN: "",
    }
    words = f"{why.hours.value}{span[why.hours]}: {_percent(why.limit_permille)} of the machine"
    words += f"; others use {_percent(why.others_permille)}"
    if room := _room(readings):
        words += f", {_percent(room)} kept for {readings.query_rate_hz:.1f} searches a second"
    pressure = readings.psi_some_permille
    if pressure is not None and pressure > PSI_CALM_PERMILLE and why.others_permille > PSI_OTHERS_PERMILLE:
        words += f" and wait for a CPU {_percent(pressure)} of the time"
    return f"{words}, {_percent(why.budget_permille)} left"


def _percent(permille: int) -> str:
    return f"{permille / 10:.0f} %"


def worker_duty_permille(budget_permille: int, cpus: float, active_workers: int) -> int:
    """Return the share of one CPU that each active worker may use: an equal part of the budget, at most all of it."""
    return max(0, min(int(budget_permille * cpus / max(active_workers, 1)), 1000))


def wide_duty_permille(budget_permille: int, cpus: float, narrow: int, wide: int, threads: int) -> int:
    """Return the share, in permille of one CPU, that each of the `wide` workers may use: those of up to `threads` threads.

    An equal part of what the `narrow` ones leave, which have one thread each: so no worker gets less than an equal part of
    the budget, and what some cannot use is the others'.
    """
    narrow_permille = narrow * worker_duty_permille(budget_permille, cpus, narrow + wide)
    return max(0, min(int((budget_permille * cpus - narrow_permille) / max(wide, 1)), 1000 * threads))


def threads_for(duty_permille: int, threads: int) -> int:
    """Return in how many threads, each on a CPU of its own, a worker computes that may have up to `threads`.

    So many that all but one can be busy all the time: they then need no pacing, but for the one that paces itself.
    """
    return max(1, min(math.ceil((duty_permille - WIDER_PERMILLE) / 1000), threads))


def workers_for(budget_permille: int, cpus: float) -> int:
    """Return how many workers the budget keeps busy: one more would only take turns with them, with its own caches."""
    return max(1, math.ceil(budget_permille * cpus / 1000))
