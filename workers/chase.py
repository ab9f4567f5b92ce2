"""Owns how a copy catches up with writes that do not pause: copy on, slow the writers down, hold them, or give up. Pure.

        round: copy what was touched, try to swap ──swapped──▶ done
          │
          ├─ rounds are short ─────────▶ a few more tries, then hold writes for one such round
          ├─ they do not get shorter ──▶ slow writes to half of what is copied, then to half of that ...
          └─ nor when slowed ──────────▶ hold if it fits into the longest hold, else give up with both figures

A round of copying is as long as what was written during the one before it: with writes at a share s of what is copied, rounds
shrink by s each, down to the cost of the calls alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

TRIES = 5  # short rounds, each with a try between two writes, before writes are held
SHORT_S = 0.02  # a hold lasts as long as a round and two calls: within 50 ms
HOLD_S = 0.25  # the owner lets writes go on after it whatever becomes of this process
HOLDS = 8  # held in vain: then it is given up
PATIENCE = 4  # long rounds in which clearly less is written than copied, or writes are slowed (again)
LESS = 0.75  # of what is copied
SHARE = 0.5  # of what is copied, that may be written when slowed: rounds halve
LEAST_SHARE = 1 / 32  # slowed down to it in vain: writers do not wait for one another, or the delay's bound is reached


class Move(Enum):
    COPY = auto()  # another round
    HOLD = auto()  # hold writes, copy what is left, swap
    GIVE_UP = auto()


@dataclass(frozen=True, slots=True)
class Round:
    """One round."""

    points: int  # touched, and copied now
    left: int  # touched before it began, and not copied yet
    seconds: float
    since_s: float  # since the one before it began


@dataclass(slots=True)
class Chase:
    """What the rounds so far say. `slowed_to`: points a second that writers are to be slowed to; 0: not slowed."""

    slowed_to: float = 0.0
    written_per_s: float = 0.0
    copied_per_s: float = 0.0
    left: int | None = None  # after the last round
    short: int = 0
    long: int = 0  # since it was asked last whether less is written than copied
    written: int = 0  # in these
    copied: int = 0
    holds: int = 0
    share: float = 2 * SHARE  # the next one is half of it

    def after(self, done: Round) -> Move:
        """Take note of a round after which the swap failed, and say what is next. Sets `slowed_to`."""
        written = self._measure(done)
        if self.holds >= HOLDS:
            return Move.GIVE_UP
        if done.seconds <= SHORT_S and not done.left:
            self.short += 1
            return self._hold() if self.short > TRIES else Move.COPY
        self.long += 1
        self.written += written
        self.copied += done.points
        if self.long < PATIENCE:
            return Move.COPY
        is_nearing = self.written <= LESS * self.copied
        self.long = self.written = self.copied = 0
        if is_nearing:
            return Move.COPY
        if self.share > LEAST_SHARE:
            self.share *= SHARE
            self.slowed_to = max(self.copied_per_s * self.share, 1.0)
            return Move.COPY
        return self._hold() if done.seconds <= HOLD_S / 2 and not done.left else Move.GIVE_UP

    def _hold(self) -> Move:
        self.holds += 1
        self.short = 0
        return Move.HOLD

    def _measure(self, done: Round) -> int:
        """Return how many points were touched since the round before. The rates are the middle of what was and what is: a
        single round is a few points."""
        if done.points:
            self.copied_per_s = _between(self.copied_per_s, done.points / max(done.seconds, 1e-6))
        written = 0
        if self.left is not None:  # the first round's points were touched who knows since when
            written = max(done.points + done.left - self.left, 0)
            self.written_per_s = _between(self.written_per_s, written / max(done.since_s, 1e-6))
        self.left = done.left
        return written

    def fits(self, points: int, left_s: float) -> bool:
        """Say whether so many points can be copied while writes are held for `left_s` more."""
        return points <= self.copied_per_s * left_s or not points

    @property
    def reason(self) -> str:
        """Return why it was given up, with both figures."""
        slowed = f", slowed to {self.slowed_to:.0f}/s" if self.slowed_to else ""
        figures = f"{self.written_per_s:.0f}/s{slowed} against {self.copied_per_s:.0f}/s"
        why = "documents are written faster than embedded"
        if self.holds >= HOLDS:
            why = f"writes were held {self.holds} times and what was left was not copied in time; written and embedded"
        return f"{why}: {figures}; the index in use is untouched, and the swap waits for a quieter time"


def _between(held: float, fresh: float) -> float:
    return (held + fresh) / 2 if held else fresh
