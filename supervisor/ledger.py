"""Owns whether a merely similar query may be served another's result: a ledger that bounds the errors, and a certificate. Pure.

  a miss was computed ─▶ would its nearest entry have done? = an audit at their cosine ─▶ certificate: cosines that are safe
  a similar query     ─▶ certified, and room in the ledger? ─▶ serve, pending ─▶ computed in idle time ─▶ right or an error

The certificate says what the past allows. It may be wrong where queries change; the ledger holds for any queries.
"""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass

EDGES = (
    0.7,
    0.8,
    0.85,
    0.9,
    0.925,
    0.95,
    0.975,
    0.99,
)  # cosines at which the bins of audits begin; below the first: none
DOUBT = 0.05  # how likely any bin may ever be certified whose rate of errors is above the wanted one
FIRST_LOOK = 64  # audits of a bin before it is looked at; then at each doubling


def upper_bound(errors: int, audits: int, doubt: float) -> float:
    """Return the rate of errors that is exceeded with probability `doubt` at most: Clopper and Pearson, 1934, one-sided.

    1.0 without audits. Raises ValueError for more errors than audits.
    """
    if not 0 <= errors <= audits:
        raise ValueError(f"{errors} errors of {audits} audits")
    if errors == audits:
        return 1.0
    low, high = errors / audits, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(errors, audits, middle) > doubt:
            low = middle
        else:
            high = middle
    return high


def _at_most(errors: int, audits: int, rate: float) -> float:
    """Return the probability of at most so many errors: the sum of the binomial distribution."""
    logs = (
        math.lgamma(audits + 1)
        - math.lgamma(k + 1)
        - math.lgamma(audits - k + 1)
        + k * math.log(rate)
        + (audits - k) * math.log1p(-rate)
        for k in range(errors + 1)
        if 0 < rate < 1
    )
    return math.fsum(map(math.exp, logs)) if 0 < rate < 1 else float(rate <= 0)


def doubt_of_look(look: int) -> float:
    """Return the part of DOUBT that one look (0, 1, ...) at one bin may use: all looks at all bins together use DOUBT."""
    return DOUBT / (len(EDGES) * (look + 1) * (look + 2))


@functools.lru_cache(maxsize=1024)
def _bound_at_look(errors: int, audits: int, look: int) -> float:
    return upper_bound(errors, audits, doubt_of_look(look))


@dataclass(slots=True)
class _Bin:
    audits: int = 0
    errors: int = 0
    looks: int = 0
    bound: float = 1.0  # at the last look

    def add(self, *, is_right: bool) -> None:
        self.audits += 1
        self.errors += not is_right
        if self.audits >= FIRST_LOOK << self.looks:
            self.bound = _bound_at_look(self.errors, self.audits, self.looks)
            self.looks += 1


class Certificate:
    """Which cosines between a query and its nearest one are safe, as far as audits say.

    Each bin of cosines is looked at when its audits have doubled, and each look uses its own part of DOUBT: so the bound
    holds however long one goes on looking, as far as the next queries are like those audited.
    """

    def __init__(self) -> None:
        self._bins = [_Bin() for _ in EDGES]

    def audit(self, cosine: float, *, is_right: bool) -> None:
        """Note whether the nearest entry's result would have been right. A cosine below EDGES is not counted."""
        if (found := self._bin(cosine)) is not None:
            found.add(is_right=is_right)

    def bound(self, cosine: float) -> float:
        """Return the upper bound of the rate of errors at a cosine; 1.0 where there is no evidence."""
        found = self._bin(cosine)
        return 1.0 if found is None else found.bound

    def _bin(self, cosine: float) -> _Bin | None:
        place = bisect.bisect_right(EDGES, cosine) - 1
        return self._bins[place] if place >= 0 else None

    @property
    def audits(self) -> int:
        return sum(one.audits for one in self._bins)

    @property
    def errors(self) -> int:
        return sum(one.errors for one in self._bins)

    def rows(self) -> list[dict[str, float]]:
        """Return cosine_from, audits, errors and bound of each bin."""
        return [
            {"cosine_from": edge, "audits": one.audits, "errors": one.errors, "bound": one.bound}
            for edge, one in zip(EDGES, self._bins, strict=True)
        ]


class Ledger:
    """Keeps errors of what was served below `rate` of all requests, whatever is asked: what is not verified counts as wrong."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.requests = self.served = self.pending = self.errors = 0

    def may_serve(self) -> bool:
        return self.errors + self.pending + 1 <= self.rate * self.requests

    def serve(self) -> None:
        """Raises ValueError where it may not."""
        if not self.may_serve():
            raise ValueError(
                f"{self.errors} errors and {self.pending} pending of {self.requests} requests leave no room"
            )
        self.served += 1
        self.pending += 1

    def verified(self, *, is_right: bool) -> None:
        """Note what the truth was for one that was served. Raises ValueError where none is pending."""
        if not self.pending:
            raise ValueError("nothing is pending")
        self.pending -= 1
        self.errors += not is_right

    @property
    def bound(self) -> float:
        """The rate of errors among all requests is at most this: everything pending wrong."""
        return (self.errors + self.pending) / self.requests if self.requests else 0.0
