"""Owns which fault strikes which call. Pure: nothing here waits, and nothing is random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class Kind(StrEnum):
    STATUS = "status"  # answer with `status`; nothing is done
    CUT = "cut"  # cut the connection; nothing is done. With a large `count`: an outage
    LOST = "lost"  # do it, then cut the connection: the answer is lost
    FAILED = "failed"  # do it, and answer with `status` all the same, as a gateway that gave up
    TORN = "torn"  # do it, and cut the connection in the middle of the answer
    LATE = "late"  # hold the call before it is done; then it is done, whether or not anybody waits for it
    SLOW = "slow"  # do it, and hold the answer


IS_DONE = frozenset(Kind) - {Kind.STATUS, Kind.CUT}
"""Kinds of fault whose call takes effect."""

ALWAYS = 10**9  # times


@dataclass(frozen=True, slots=True)
class Fault:
    """Strikes `count` calls that match, after it has let `skip` of them through.

    `method` and `path` are patterns as of a shell; `body`: what the call's body has to contain. `hold_s`: seconds that a late
    or slow call is held; None: until it is released. `then`: the fault that comes when this one has struck for the last time.
    """

    kind: Kind
    method: str = "*"
    path: str = "*"
    body: str = ""
    skip: int = 0
    count: int = 1
    status: int = 503
    hold_s: float | None = None
    then: Fault | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def fault_of(given: Mapping[str, Any]) -> Fault:
    """Return a fault that came as JSON. Raises TypeError and ValueError for what is none."""
    fields = {**given, "kind": Kind(given["kind"])}
    if fields.get("then") is not None:
        fields["then"] = fault_of(fields["then"])
    return Fault(**fields)


def take(faults: Sequence[Fault], method: str, path: str, body: str) -> tuple[Fault | None, list[Fault]]:
    """Return the fault that strikes this call, None for none, and those that are left. Earlier ones go first."""
    struck: Fault | None = None
    left: list[Fault] = []
    for fault in faults:
        if struck is not None or not _matches(fault, method, path, body):
            left.append(fault)
        elif fault.skip:
            left.append(replace(fault, skip=fault.skip - 1))
        else:
            struck = fault
            if fault.count > 1:
                left.append(replace(fault, count=fault.count - 1))
            elif fault.then is not None:
                left.append(fault.then)
    return struck, left


def _matches(fault: Fault, method: str, path: str, body: str) -> bool:
    return fnmatchcase(method, fault.method) and fnmatchcase(path, fault.path) and fault.body in body
