"""Owns a lent shard: one of the embedded store's that another process has open for a while, to build its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Lending(Protocol):
    """A store whose collections another process may open for a while: the embedded one, and its owner's callers."""

    def lend(self, name: str) -> Path: ...


def build_index(folder: Path) -> None:
    """Build the graph of a lent shard where it is large enough for one. Holds the GIL meanwhile."""
    import qdrant_edge

    shard = qdrant_edge.EdgeShard.load(str(folder))
    try:
        while shard.optimize():
            pass
        shard.flush()
    finally:
        shard.close()
