"""Owns the log of the governor's decisions: ten a second, condensed into rows of a minute. Pure: `now` is an argument.

    add, at each sample ──▶ the open row ──▶ closed rows ──take, once a minute──▶ journal, the last 25 hours of them
                                 ▲ a minute is over; admission or the kind of reason has changed; the clock was set

What a reading says was used is of the time before it, what is decided holds until the next: each is weighed so.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice, takewhile

from ..ipc.records import DecisionRow, Spread
from .governor import Decision, Readings, Why

ROW_S = 60.0
CHANGE_EVERY_S = 72.0  # 1,250 rows in 25 hours for changes, beside one a minute
CHANGES_AT_ONCE = 30  # a machine that flaps for a while is shown change by change, for good in rows of a minute
CLOCK_STEP_S = 5.0  # a clock that is slewed is off by less within a row, one that is set by more
LEAST_S = 0.001  # a row of less is none
KEPT_DECISIONS_S = 25 * 3600.0  # a day and a bit: the oldest hour of a plot is whole
KEPT_DECISIONS = 3000  # whatever the clock does; rows of 25 hours are 2,780 at most


_FIGURES = str.maketrans("", "", "0123456789")


def kind_of(reason: str) -> str:
    """Return what kind of reason it is: its words up to the colon, less the figures, which differ in every sample."""
    return reason.partition(":")[0].translate(_FIGURES)


def is_other(reason: str, before: str) -> bool:
    """Say whether a reason is of another kind than the one before it."""
    # the first comparison is for speed: figures before the colon are rare
    return reason.partition(":")[0] != before.partition(":")[0] and kind_of(reason) != kind_of(before)


def page(rows: Iterable[DecisionRow], limit: int) -> list[DecisionRow]:
    """Return the first `limit` of sorted rows, and those that began when the last of them did.

    The next page is of what began later, so rows of one time, as after a clock that was set back, stay together.
    """
    left = iter(rows)
    taken = list(islice(left, limit))
    if taken:
        taken += takewhile(lambda row: row.started_at == taken[limit - 1].started_at, left)
    return taken


def _is_other_kind(decision: Decision, held: Decision) -> bool:
    """Say the same of two decisions, without their words where those are not made yet."""
    now, before = decision.why, held.why
    if isinstance(now, Why) and isinstance(before, Why):
        return now.hours is not before.hours
    return is_other(str(now), str(before))


class _Sum:
    """Adds up a figure over time."""

    __slots__ = ("peak", "total")

    def __init__(self) -> None:
        self.total, self.peak = 0.0, 0.0

    def add(self, value: float, seconds: float) -> None:
        self.total += value * seconds
        if value > self.peak:  # noqa: PLR1730 - max() takes three times as long, and this runs sixty times a second
            self.peak = value

    def spread(self, seconds: float, unit: float = 1000) -> Spread:
        """Return mean and peak over `seconds`; `unit` is how much of what was added makes one of what is returned."""
        return Spread(mean=round(self.total / seconds / unit, 5), peak=round(self.peak / unit, 5))


class _Open:
    """The row that is being made, from its first decision on."""

    __slots__ = (
        "admitted_s",
        "budget",
        "changes",
        "is_admitting",
        "is_change",
        "limit",
        "memory",
        "others",
        "own",
        "query_rate_hz",
        "reason",
        "seconds",
        "started_at",
    )

    def __init__(self, now: float, first: Decision, *, is_change: bool = False) -> None:
        self.started_at, self.seconds, self.admitted_s = now, 0.0, 0.0
        self.is_admitting, self.reason = first.is_admitting, first.reason
        self.is_change, self.changes = is_change, int(is_change)
        self.budget, self.limit, self.own = _Sum(), _Sum(), _Sum()
        self.others, self.memory, self.query_rate_hz = _Sum(), _Sum(), _Sum()

    def row(self) -> DecisionRow:
        return DecisionRow(
            started_at=self.started_at,
            seconds=round(self.seconds, 3),
            is_admitting=self.is_admitting,
            reason=self.reason,
            is_change=self.is_change,
            changes=self.changes,
            admitted=round(self.admitted_s / self.seconds, 5),
            budget=self.budget.spread(self.seconds),
            limit=self.limit.spread(self.seconds),
            own=self.own.spread(self.seconds),
            others=self.others.spread(self.seconds),
            memory=self.memory.spread(self.seconds),
            query_rate=self.query_rate_hz.spread(self.seconds, 1),
        )


class DecisionLog:
    """Takes every decision; gives rows back, in the order in which they were made."""

    def __init__(self) -> None:
        self._row: _Open | None = None
        self._closed: list[DecisionRow] = []  # since the last `take`
        self._held: Decision | None = None  # the last decision, with its limit and its time
        self._limit_permille = 0
        self._at_s = self._now = 0.0
        self._changes_left = float(CHANGES_AT_ONCE)

    def add(self, now: float, readings: Readings, decision: Decision, limit_permille: int) -> None:
        """Take one sample: `readings` are of the time since the last, `decision` and the limit hold from now on.

        A change of admission or of the kind of reason begins a row of its own, while no more than CHANGES_AT_ONCE and
        one in CHANGE_EVERY_S do; beyond that it is counted in the row it falls into. `now` (Unix seconds) may go
        backwards.
        """
        held, row = self._held, self._row
        if held is None or row is None:
            self._row = _Open(now, decision)
        else:
            seconds = max(readings.at_s - self._at_s, 0.0)
            row.seconds += seconds
            row.own.add(readings.own_cpu_permille, seconds)
            row.others.add(readings.others_cpu_permille, seconds)
            row.memory.add(readings.memory_used_permille, seconds)
            row.query_rate_hz.add(readings.query_rate_hz, seconds)
            row.budget.add(held.budget_permille, seconds)
            row.limit.add(self._limit_permille, seconds)
            if held.is_admitting:
                row.admitted_s += seconds
            self._changes_left = min(self._changes_left + seconds / CHANGE_EVERY_S, CHANGES_AT_ONCE)
            is_change = decision.is_admitting is not held.is_admitting or _is_other_kind(decision, held)
            is_set = abs(now - self._now - seconds) > CLOCK_STEP_S
            if row.seconds >= ROW_S or ((is_change or is_set) and self._may_begin(row)):
                self._closed.append(row.row())
                self._row = _Open(now, decision, is_change=is_change)
            elif is_change:
                row.changes += 1
                if row.seconds < LEAST_S:  # it has only begun, so it begins with this
                    row.is_admitting, row.reason, row.is_change = decision.is_admitting, decision.reason, True
        self._held, self._limit_permille = decision, limit_permille
        self._at_s, self._now = readings.at_s, now

    def _may_begin(self, row: _Open) -> bool:
        """Say whether a row may begin before its time; take that off what is left."""
        if row.seconds < LEAST_S or self._changes_left < 1:
            return False
        self._changes_left -= 1
        return True

    def rows(self) -> list[DecisionRow]:
        """Return the rows that `take` has not given out, with the one that is being made."""
        if self._row is None or self._row.seconds < LEAST_S:
            return list(self._closed)
        return [*self._closed, self._row.row()]

    def take(self, *, is_last: bool = False) -> list[DecisionRow]:
        """Return the closed rows, once; `is_last`: also the one that is being made."""
        if is_last:
            rows, self._row, self._held = self.rows(), None, None
        else:
            rows = self._closed
        self._closed = []
        return rows
