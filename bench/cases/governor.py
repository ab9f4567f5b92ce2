"""`bench governor`: what a search process feels of background work: none, naive, niced, SCHED_IDLE, and the service's."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from ..foreground import IDLE, NICE_0, NICE_19, SLICE_S
from ..governing import CONTROL, FREE, LIMITS, NONE, OURS, OURS_LOW, SPANS_S, Found, Plan, Stage, Window, settings
from ..measure import interleaved
from ..report import Goal, Options, Result, Table
from ..shares import reaction_s

NAME = "governor"
SUMMARY = "latency of a search process beside background work: none, nice 0, nice 19, SCHED_IDLE, the service's own"

ALL = (NONE, CONTROL, NICE_0, NICE_19, IDLE, OURS, OURS_LOW, FREE)
FULL = Plan(
    settle_s=3, window_s=8, ours_s=14, step_s=1, held_s=4, steps=2, rounds=3, max_rounds=6, until_s=720, modes=ALL
)
QUICK = Plan(
    settle_s=0.8,
    window_s=2,
    ours_s=2.6,
    step_s=0.6,
    held_s=1,
    steps=1,
    rounds=1,
    max_rounds=1,
    until_s=40,
    modes=(NONE, OURS, FREE, NICE_0, IDLE, OURS_LOW),  # what matters most first: a busy machine gets no further
)
SEED = 5
TOLERANCE = 0.1  # of the issue's own goals for latency: no-background windows that differ by more cannot show it
CALM = 0.05  # below this no further rounds are needed
QUIET_SHARE = 0.05  # of the machine, by others: more than this is said to be noise
AT_WORK_SHARE = 0.02  # of the machine: a service that does less keeps every limit
HOLD = 10  # slices: 0.1 s at full rate is "stays"
ENOUGH = 0.95  # of the rate without background


def run(options: Options) -> Result:
    plan = QUICK if options.is_quick else FULL
    began_at = time.monotonic()
    with ExitStack() as stack:
        stage = Stage(stack, settings(len(os.sched_getaffinity(0))))
        stage.warm_up(began_at + plan.until_s / 2)
        order = plan.modes if plan.max_rounds == 1 else interleaved(plan.modes, plan.max_rounds, SEED)
        for number, mode in enumerate(order):
            at, turn = divmod(number, len(plan.modes))
            spent_s = time.monotonic() - began_at
            if turn == 0 and at >= plan.rounds and (_is_calm(stage.found) or spent_s * (at + 1) / at > plan.until_s):
                break
            if spent_s > plan.until_s and options.is_quick:
                break
            print(f"{spent_s:6.1f} s  round {at + 1}: {mode}", file=sys.stderr)
            stage.round(mode, plan, seed=at)
    return _result(stage.found, plan, stage.cpus, is_quick=options.is_quick)


# --- figures ------------------------------------------------------------------------------------------------------------


def ratio(found: Found, mode: str, value: Callable[[Window], float | None], base: str = NONE) -> float | None:
    """Return the median over rounds of a mode's value to that of `base` in the same round."""
    pairs = zip(found.windows.get(mode, []), found.windows.get(base, []), strict=False)
    each = [a / b for one, other in pairs if (a := value(one)) is not None and (b := value(other))]
    return statistics.median(each) if each else None


def noise(found: Found, value: Callable[[Window], float]) -> float | None:
    """Return by what share two windows without background differ, the median over rounds; None without a second one."""
    pairs = zip(found.windows.get(CONTROL, []), found.windows.get(NONE, []), strict=False)
    each = [abs(value(one) / value(other) - 1) for one, other in pairs]
    return statistics.median(each) if each else None


def _p50(window: Window) -> float:
    return window.latency.p50_ns


def _p99(window: Window) -> float:
    return window.latency.p99_ns


def _per_cpu(window: Window) -> float | None:
    return window.texts_per_cpu_s


def _own(window: Window) -> float:
    return window.shares.own


def _front(window: Window) -> float:
    return window.shares.front


def _others(window: Window) -> float:
    return window.shares.others


def _cost(window: Window) -> float:
    return window.supervisor_percent


def _is_calm(found: Found) -> bool:
    return all((apart := noise(found, value)) is not None and apart <= CALM for value in (_p50, _p99))


def _median(found: Found, mode: str, value: Callable[[Window], float | None]) -> float | None:
    each = [one for window in found.windows.get(mode, []) if (one := value(window)) is not None]
    return statistics.median(each) if each else None


def _left_share(mode: str) -> Callable[[Window], float | None]:
    """Return what gives the background's share of what its limit, foreground and others leave over."""

    def share(window: Window) -> float | None:
        left = window.shares.left(LIMITS.get(mode, 1.0))
        return window.shares.own / left if left > 0.01 else None

    return share


def worst(found: Found, span_s: float, mode: str | None = None) -> list[float]:
    """Return, for each window of ours with something to spend, the most points over the limit in any `span_s` of it."""
    modes = LIMITS if mode is None else (mode,)
    windows = [window for name in modes for window in found.windows.get(name, []) if window.shares.own >= AT_WORK_SHARE]
    return [max(each) for window in windows if (each := window.errors.get(span_s))]


def reactions_ms(found: Found, mode: str) -> list[float]:
    """Return after how many ms each step had its rate for good; inf where it never had."""
    calm = [count for counts in found.steps.get(NONE, []) for count in counts]
    if not calm:
        return []
    wanted = ENOUGH * min(statistics.median(calm), _due(found))
    each = (reaction_s(counts, wanted, HOLD, SLICE_S) for counts in found.steps.get(mode, []))
    return [math.inf if one is None else 1000 * one for one in each]


def _due(found: Found) -> float:
    """Return the pieces of the load that are due in a slice, of all processes."""
    return found.units_hz * SLICE_S * len(os.sched_getaffinity(0))


def _result(found: Found, plan: Plan, cpus: int, *, is_quick: bool) -> Result:
    absent = [mode for mode in plan.modes if mode not in found.windows]
    return Result(
        bench=NAME,
        tables=[_table(found), _limit_table(found), _reaction_table(found)],
        figures=_figures(found, cpus),
        goals=_goals(found, is_quick=is_quick),
        notes=_notes(found, absent, cpus, is_quick=is_quick),
    )


def _finite(values: Sequence[float]) -> list[float | None]:
    return [None if math.isinf(one) else round(one, 3) for one in values]


def _figures(found: Found, cpus: int) -> dict[str, Any]:
    return {
        "cpus": cpus,
        "search_ms": found.cost_s * 1000,
        "searches_per_s": found.rate_hz,
        "windows": {
            mode: [
                {
                    "p50_ms": one.latency.p50_ns / 1e6,
                    "p99_ms": one.latency.p99_ns / 1e6,
                    "searches": one.latency.count,
                    **{f"{who}_share": round(share, 4) for who, share in asdict(one.shares).items()},
                    "load": one.load,
                    "supervisor_percent": round(one.supervisor_percent, 3),
                    "texts_per_cpu_s": one.texts_per_cpu_s,
                    "worst_points": {f"{span:g} s": max(each) for span, each in one.errors.items() if each},
                    "reason": one.reason,
                }
                for one in windows
            ]
            for mode, windows in found.windows.items()
        },
        "reactions_ms": {mode: _finite(reactions_ms(found, mode)) for mode in found.steps},
        "governing_percent": [round(one, 3) for one in found.governing_percent],
        "noise": {"p50": noise(found, _p50), "p99": noise(found, _p99)},
    }


# --- words --------------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: str = ".2f", unit: float = 1) -> str:
    return "-" if value is None else "never" if math.isinf(value) else f"{value * unit:{digits}}"


def _table(found: Found) -> Table:
    rows = []
    for mode in (one for one in ALL if one in found.windows):
        per_cpu = ratio(found, mode, _per_cpu, FREE)
        rows.append(
            (
                mode,
                _number(_median(found, mode, _p50), ".2f", 1e-6),
                _number(_median(found, mode, _p99), ".2f", 1e-6),
                _number(ratio(found, mode, _p50)),
                _number(ratio(found, mode, _p99)),
                _number(_median(found, mode, _own), ".1f", 100),
                _number(_median(found, mode, _front), ".1f", 100),
                _number(_median(found, mode, _others), ".1f", 100),
                "-" if mode in (NONE, CONTROL) else _number(_median(found, mode, _left_share(mode)), ".0f", 100),
                _number(_median(found, mode, _per_cpu), ".1f"),
                _number(per_cpu, ".2f"),
                _number(_median(found, mode, _cost), ".2f"),
            )
        )
    return Table(
        "A search process beside background work: ms from when a search was due; % of all usable CPUs; medians of rounds",
        (
            *("background", "p50", "p99", "p50 x", "p99 x", "bg %", "search %", "others %", "of what is left %"),
            *("texts/CPU s", "of unthrottled", "supervisor, % of a core"),
        ),
        rows,
    )


def _limit_table(found: Found) -> Table:
    rows = []
    for mode in (one for one in LIMITS if one in found.windows):
        for span_s in SPANS_S:
            over = worst(found, span_s, mode)
            under = [min(each) for one in found.windows[mode] if (each := one.errors.get(span_s))]
            rows.append(
                (
                    f"{mode}, over {span_s:g} s",
                    _number(max(over, default=None), "+.1f"),
                    _number(statistics.median(over) if over else None, "+.1f"),
                    _number(min(under, default=None), "+.1f"),
                )
            )
    return Table(
        "Points that everybody's use was over the limit (below 0: under it)",
        ("windows", "worst", "median of the rounds' worst", "furthest under"),
        rows,
    )


def _reaction_table(found: Found) -> Table:
    rows = []
    for mode in (one for one in ALL if one in found.steps):
        each = reactions_ms(found, mode)
        rows.append(
            (
                mode,
                _number(statistics.median(each), ".0f"),
                _number(min(each), ".0f"),
                _number(max(each), ".0f"),
                str(len(each)),
            )
        )
    return Table(
        "A load that steps from 0 to 80 % of all CPUs: ms until it has, and keeps, 95 % of its rate without background",
        ("background", "median", "least", "most", "steps"),
        rows,
    )


def _least(values: Sequence[float | None]) -> float | None:
    each = [one for one in values if one is not None]
    return min(each) if each else None


def _or_noisy(goal: Goal, why: str) -> Goal:
    """Return the goal; one that was missed while others disturbed it shows nothing."""
    return Goal(goal.value, goal.goal, None, why) if why and goal.met is False else goal


def _latency_goal(found: Found, value: Callable[[Window], float], *, is_quick: bool) -> Goal:
    goal, apart = Goal.at_most(ratio(found, OURS, value), 1 + TOLERANCE), noise(found, value)
    if apart is None:
        why = "only without --quick: two windows without background tell the noise" if is_quick else "no second window"
        return Goal(goal.value, goal.goal, None, why)
    if apart > TOLERANCE:
        return Goal(goal.value, goal.goal, None, f"two windows without background differ by {100 * apart:.0f} %")
    return goal


def _reaction_goal(late_ms: float | None) -> Goal:
    if late_ms is not None and math.isinf(late_ms):  # which JSON has no number for
        return Goal(None, "<= 100", False, "its rate was never reached")
    return Goal.at_most(late_ms, 100)


def _goals(found: Found, *, is_quick: bool) -> dict[str, Goal]:
    crowd = max((_median(found, mode, _others) or 0.0 for mode in LIMITS), default=0.0)
    noisy = f"other programs used {100 * crowd:.0f} % of the machine" if crowd > QUIET_SHARE else ""
    over = {span_s: worst(found, span_s) for span_s in SPANS_S}
    steps, calm = reactions_ms(found, OURS), reactions_ms(found, NONE)
    late = statistics.median(steps) if steps else None
    calm_ms = statistics.median(calm) if calm else 0.0
    jumpy = f"it took {_number(calm_ms, '.0f')} ms without any background" if calm_ms > 50 else ""
    left = _least([_median(found, mode, _left_share(mode)) for mode in LIMITS])
    per_cpu = _least([ratio(found, mode, _per_cpu, FREE) for mode in LIMITS])
    cost = statistics.median(found.governing_percent) if found.governing_percent else None
    windows = [window for mode in LIMITS for window in found.windows.get(mode, [])]
    working = sum(_own(window) >= AT_WORK_SHARE for window in windows)
    is_shown = 2 * working >= len(windows) > 0
    idle = "" if is_shown else f"others left anything to be used in {working} of {len(windows)} windows"
    short = "only without --quick: its windows are shorter" if is_quick else idle

    def shown(goal: Goal) -> Goal:
        return _or_noisy(goal, noisy) if is_shown else Goal(goal.value, goal.goal, None, goal.why or idle)

    return {
        "foreground p50, times that of no background": _latency_goal(found, _p50, is_quick=is_quick),
        "foreground p99, times that of no background": _latency_goal(found, _p99, is_quick=is_quick),
        "background's share of the capacity that limits and foreground leave over": shown(Goal.at_least(left, 0.9)),
        "throughput per CPU second, share of the unthrottled": shown(
            Goal.at_least(per_cpu, 0.95, "" if per_cpu is not None else idle or "too few texts were embedded")
        ),
        "cap error, points over any 10 s": shown(Goal.at_most(max(over[10.0], default=None), 3, short)),
        "cap error, points over any 2 s": shown(Goal.at_most(max(over[2.0], default=None), 5)),
        "reaction to a foreground step 0 -> 80 %, ms": _or_noisy(_reaction_goal(late), jumpy),
        "governor's own cost, % of one core": Goal.at_most(cost, 0.3),
    }


def _notes(found: Found, absent: Sequence[str], cpus: int, *, is_quick: bool) -> list[str]:
    rounds = max(map(len, found.windows.values()))
    loads = [window.load for windows in found.windows.values() for window in windows]
    others = [window.shares.others for windows in found.windows.values() for window in windows]
    middle = statistics.median(others)
    apart = {name: noise(found, value) for name, value in (("p50", _p50), ("p99", _p99))}
    notes = [
        f"{rounds} round{'s' if rounds != 1 else ''}, interleaved; load {min(loads):.1f} to {max(loads):.1f}; other"
        f" programs used {100 * min(others):.0f} to {100 * max(others):.0f} % of the machine, {100 * middle:.0f} % in the"
        " median window",
        "two windows without background differ by "
        + ", ".join(f"{_number(value, '.0f', 100)} % ({name})" for name, value in apart.items())
        + ": a ratio cannot be known better than that",
        f"the search: {found.rate_hz:.0f} requests a second of {found.cost_s * 1000:.2f} ms each, due at fixed times; latency is"
        " from when it was due. Naive background: a process a CPU that multiplies matrices. Each in a session of its own",
        f"ours: `serve` in a session of its own, {cpus} workers that re-index with force_rebuild; its CPU is that of the"
        " supervisor and all its processes, texts a CPU second are of the workers; unthrottled: the same tasks, forced",
        "what is left: the limit (the whole machine for naive background) less what the search and other programs use",
        "the supervisor's cost has all it does in it: readings, progress, checkpoints, this benchmark's questions; the"
        " governor's own is the supervisor's while tasks run under a limit of 0 and report nothing",
    ]
    reasons = [window.reason for mode in LIMITS for window in found.windows.get(mode, [])]
    if reasons:
        notes.append(f"the governor's words at the end of the last window: {reasons[-1]}")
    if absent:
        notes.insert(0, f"the time was up before: {', '.join(absent)}")
    if is_quick:
        notes.insert(0, "--quick: one round of short windows; it says that all works, not more")
    return notes
