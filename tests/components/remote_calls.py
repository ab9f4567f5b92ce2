"""Owns the calls that remote mode makes to a server, by name, and the faults that tests have strike them."""

from __future__ import annotations

from typing import Any

from bench.fake_qdrant.faults import Fault, Kind

AT_ONCE = (Kind.STATUS, Kind.FAILED, Kind.CUT, Kind.LOST, Kind.TORN)
HELD = (Kind.LATE, Kind.SLOW)  # until the client has left
KINDS = (*AT_ONCE, *HELD)
IN_TURN = (*AT_ONCE, Kind.LATE)  # where each of many calls fails: a slow one is a lost one that costs time

READS = (
    ("GET", "/"),
    ("GET", "/collections"),
    ("GET", "/aliases"),
    ("GET", "/collections/*__v?"),
    ("POST", "*/points/scroll"),
    ("POST", "*/points"),
)
QUERY = ("POST", "*/points/query/batch")
CREATE = ("PUT", "/collections/*__v?")
ALIASES = ("POST", "/collections/aliases")
UPSERT = ("PUT", "*/points")
DELETE = ("POST", "*/points/delete")
DROP = ("DELETE", "*")
VECTORS = ("PUT", "*/points/vectors")
BATCH = ("POST", "*/points/batch")


def fault(kind: Kind, call: tuple[str, str], **fields: Any) -> Fault:
    return Fault(kind, *call, **fields)
