"""Owns how much CPU background work may use now. Pure: readings in, a decision in words and numbers out.

The limit is of the whole machine and for everything together, so background work gets what is left under it:
budget = limit(hour) - others' use. Own use is told apart, else the service would throttle itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RISE_PER_S = 250  # permille a second: from nothing to 70 % in under 3 s; falls are at once
QUERY_COST_PERMILLE = 20  # room kept for each search a second, before its CPU shows in a reading
MAX_QUERY_ROOM_PERMILLE = 200
PSI_CALM_PERMILLE = 200  # "some" above this: tasks wait for a CPU a fifth of the time
ADMIT_PERMILLE = 50  # below a twentieth of the machine a new task is not worth its start
MEMORY_HYSTERESIS_PERMILLE = 30
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
    cpus: int
    psi_some_permille: int | None = None
    query_rate_hz: float = 0.0
    is_plausible: bool = True
    reason: str = ""  # why it is not plausible


@dataclass(frozen=True, slots=True)
class GovernorState:
    budget_permille: int = 0
    at_s: float | None = None
    is_memory_tight: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    budget_permille: int
    is_admitting: bool
    is_memory_tight: bool
    reason: str


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
        why = readings.reason or "the clock went backwards"
        next_state = GovernorState(0, readings.at_s, state.is_memory_tight)
        return next_state, Decision(
            0, False, state.is_memory_tight, f"readings failed ({why}): taken as a busy machine"
        )
    is_tight = _is_memory_tight(state, readings, limits)
    limit = cpu_limit_permille(limits, hour)
    target, room = _target(readings, limit)
    if state.at_s is None:
        budget = target
    else:
        budget = min(target, state.budget_permille + round((readings.at_s - state.at_s) * RISE_PER_S))
    reason = _reason(readings, limits, hour, limit, budget, room)
    if is_tight:
        reason = (
            f"memory is {_percent(readings.memory_used_permille)} used, the limit is {_percent(limits.memory_permille)}"
        )
    is_admitting = budget >= ADMIT_PERMILLE and not is_tight
    return GovernorState(budget, readings.at_s, is_tight), Decision(budget, is_admitting, is_tight, reason)


def admits_from(readings: Readings, limits: Limits, now: float, hour_at: Callable[[float], float]) -> float | None:
    """Return from when on (Unix seconds) the limit admits a task if others go on using what they use now.

    None where no hour of the day does, and where it is not a question of the hour: memory is short, a reading failed.
    """
    if not readings.is_plausible or readings.memory_used_permille > limits.memory_permille:
        return None
    times = (now + step_s for step_s in range(0, 86400 + LOOK_AHEAD_STEP_S, LOOK_AHEAD_STEP_S))
    admitting = (at for at in times if _target(readings, cpu_limit_permille(limits, hour_at(at)))[0] >= ADMIT_PERMILLE)
    return next(admitting, None)


def _target(readings: Readings, limit: int) -> tuple[int, int]:
    """Return the budget these readings would allow in the long run, and the part of it kept free for searches."""
    room = min(round(readings.query_rate_hz * QUERY_COST_PERMILLE), MAX_QUERY_ROOM_PERMILLE)
    target = limit - readings.others_cpu_permille - room
    pressure = readings.psi_some_permille
    # Pressure that we cause ourselves is not a reason to back off: it counts only where others use the CPU.
    if pressure is not None and pressure > PSI_CALM_PERMILLE and readings.others_cpu_permille > PSI_CALM_PERMILLE:
        target = target * PSI_CALM_PERMILLE // pressure
    return max(target, 0), room


def _is_memory_tight(state: GovernorState, readings: Readings, limits: Limits) -> bool:
    edge = limits.memory_permille - (MEMORY_HYSTERESIS_PERMILLE if state.is_memory_tight else 0)
    return readings.memory_used_permille > edge


def _reason(readings: Readings, limits: Limits, hour: float, limit: int, budget: int, room: int) -> str:
    if is_active_hours(limits, hour):
        when = f"active hours ({limits.active_start_h:02d}-{limits.active_end_h:02d})"
    elif _within(hour, limits.quiet_start_h, limits.quiet_end_h):
        when = f"quiet hours ({limits.quiet_start_h:02d}-{limits.quiet_end_h:02d})"
    else:
        when = "between active and quiet hours"
    words = f"{when}: {_percent(limit)} of the machine; others use {_percent(readings.others_cpu_permille)}"
    if room:
        words += f", {_percent(room)} kept for {readings.query_rate_hz:.1f} searches a second"
    return f"{words}, {_percent(budget)} left"


def _percent(permille: int) -> str:
    return f"{permille / 10:.0f} %"


def worker_duty_permille(budget_permille: int, cpus: int, active_workers: int) -> int:
    """Return the share of one CPU that each active worker may use: an equal part of the budget, at most all of it."""
    return max(0, min(budget_permille * cpus // max(active_workers, 1), 1000))
