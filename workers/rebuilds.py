"""Owns where a rebuild stands: what a checkpoint of it says."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from ..ipc.records import PointId


class Phase(StrEnum):
    BEGIN = "begin"
    BUILD = "build"  # copy all points
    INDEX = "index"  # build the graph
    CATCH_UP = "catch_up"  # copy what was touched meanwhile
    JUDGE = "judge"
    SWAP = "swap"
    SETTLE = "settle"  # it is served: what still reached the old version is brought over
    DONE = "done"


class Shadow(msgspec.Struct, tag="shadow", tag_field="kind"):
    """Where it stands."""

    made_for: str = ""  # collection, model and revision
    phase: Phase = Phase.BEGIN
    base: str = ""
    source: str = ""  # the version in use, by its own name; after the swap by the one it then has
    target: str = ""
    distance: str = ""
    old_model: str = ""  # "" where it is not known
    is_judging: bool = True
    after: PointId | None = None
    token: int = 0  # of the watch, and up to which change what it saw is copied
    seq: int = 0
    points: int = 0  # of the old version at the beginning
    seen: int = 0
    embedded: int = 0
    without_text: int = 0
    again: int = 0  # copied again, or deleted, because they were touched meanwhile
    hold_ms: float = 0.0  # for how long writes were held at most
    slowed_to: float = 0.0  # points a second that writes were slowed to; 0: they were not
    kept_as: str = ""
    kept_until_at: float = 0.0
    verdict: str = ""
    figures: dict[str, Any] = {}
    elapsed_s: float = 0.0
