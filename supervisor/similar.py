"""Owns which similar queries were served another's result, what the truth was, and what both say of the next one.

Every miss is an audit that costs nothing: its result is the truth, and its nearest entry's is what would have been served.
A served query is pending until its own result was computed, in idle time (freshness.py wants a warm task for it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ipc.records import PointId
from .aliases import overlap
from .ledger import Certificate, Ledger

ATTEMPTS = 3  # warm tasks that may fail to compute the truth of one query
RIGHT = 0.8  # of the rows are the query's own: "top-10 overlap of 8 or more"


@dataclass(frozen=True, slots=True)
class Served:
    text: str
    collection: str
    cosine: float
    ids: tuple[PointId, ...]


class Similar:
    """`rate`: of the requests, the most that may be answered wrongly; 0: nothing is served, audits are counted all the same.

    Lives as long as the process: a new one has no evidence, and its ledger begins with no requests.
    """

    def __init__(self, rate: float) -> None:
        self.ledger = Ledger(rate)
        self._certificates: dict[str, Certificate] = {}  # by collection
        self._pending: dict[str, list[Served]] = {}  # by key hash: each time it was served
        self._attempts: dict[str, int] = {}

    def audit(self, collection: str, cosine: float, ids: Sequence[PointId], nearest: Sequence[PointId]) -> None:
        """Note what the nearest entry's result would have been worth to a query whose own was just computed."""
        certificate = self._certificates.setdefault(collection, Certificate())
        certificate.audit(cosine, is_right=overlap(ids, nearest) >= RIGHT)

    def may_serve(self, collection: str, cosine: float) -> bool:
        """Say whether a query at this cosine from its nearest one may be served that one's result, counting the request."""
        self.ledger.requests += 1
        return self.ledger.may_serve() and self.bound(collection, cosine) <= self.ledger.rate

    def bound(self, collection: str, cosine: float) -> float:
        certificate = self._certificates.get(collection)
        return 1.0 if certificate is None else certificate.bound(cosine)

    def serve(self, key: str, served: Served) -> None:
        """Raises ValueError where the ledger has no room."""
        self.ledger.serve()
        self._pending.setdefault(key, []).append(served)

    def computed(self, key: str, ids: Sequence[PointId]) -> None:
        """Take the truth of a query that was served another's result; one that was not is fine."""
        self._attempts.pop(key, None)
        for served in self._pending.pop(key, []):
            is_right = overlap(ids, served.ids) >= RIGHT
            self.ledger.verified(is_right=is_right)
            self._certificates.setdefault(served.collection, Certificate()).audit(served.cosine, is_right=is_right)

    def attempted(self, collection: str) -> None:
        """Note that a task computed what was wanted; what it could not compute ATTEMPTS times stays pending, unasked for."""
        for key, served in list(self._pending.items()):
            if served[0].collection == collection:
                self._attempts[key] = self._attempts.get(key, 0) + 1
                if self._attempts[key] >= ATTEMPTS:
                    del self._pending[key], self._attempts[key]  # the ledger counts it as wrong for good

    def waiting(self) -> dict[str, list[str]]:
        """Return by collection the queries whose truth is to be computed."""
        found: dict[str, list[str]] = {}
        for served in self._pending.values():
            found.setdefault(served[0].collection, []).append(served[0].text)
        return found

    def forget(self, collection: str) -> None:
        """Drop the evidence of a collection: its vectors may be another model's from now on."""
        self._certificates.pop(collection, None)

    def rows(self, collection: str) -> list[dict[str, float]]:
        """Return the evidence of a collection, a map for each bin of cosines: see Certificate.rows."""
        return self._certificates.get(collection, Certificate()).rows()

    def report(self) -> dict[str, Any]:
        """Return what `status` shows. `bound` is the ledger's; `certified_from` the lowest safe cosine, by collection."""
        rate, ledger = self.ledger.rate, self.ledger
        rows = {name: one.rows() for name, one in self._certificates.items()}
        return {
            "rate": rate,
            "requests": ledger.requests,
            "served": ledger.served,
            "pending": ledger.pending,
            "errors": ledger.errors,
            "bound": ledger.bound,
            "audits": sum(one.audits for one in self._certificates.values()),
            "audit_errors": sum(one.errors for one in self._certificates.values()),
            "certified_from": {
                name: min((row["cosine_from"] for row in some if row["bound"] <= rate), default=None)
                for name, some in rows.items()
            },
        }
