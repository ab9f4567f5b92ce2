"""Owns which points a new version had when it was last compared with the old one.

A point that only the old version has was written to it late, or was copied and has been deleted since: known ids tell the
two apart. They are on the disk before the swap, so that whoever goes on after a crash knows them too.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from ..ipc.paths import make_private
from ..ipc.records import PointId
from .fingerprint import fingerprint


class KnownIds:
    """The ids of a comparison, as 64-bit words: 8 bytes a point. Nothing is known until a comparison is through."""

    def __init__(self, folder: str, base: str) -> None:
        """`folder`: "" keeps them in memory alone. `base` is what the versions are named after."""
        self._path = Path(folder, f"{fingerprint(base)}.ids") if folder else None
        self.begin()

    def begin(self) -> None:
        """Forget all: they are compared anew."""
        self._words = array("Q")
        self._copied, self._gone = set[int](), set[int]()  # since the comparison
        self._is_complete = False

    def compared(self, ids: Iterable[PointId]) -> None:
        """Take in a page of what both versions have."""
        self._words.extend(_word(one) for one in ids)

    def end(self, swap: str) -> None:
        """The comparison is through, or what has come and gone since is to be kept too. `swap` is the name of the swap that
        follows, unlike any other's.

        Raises OSError where the disk does not take the ids.
        """
        if self._copied or self._gone:
            self._words = array("Q", sorted((set(self._words) | self._copied) - self._gone))
            self._copied, self._gone = set(), set()
        self._is_complete = True
        if self._path is None:
            return
        make_private(self._path.parent)
        fresh = self._path.with_suffix(".new")
        body = self._words.tobytes()
        with fresh.open("wb") as file:
            file.write(_checksum(swap, body) + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)

    def recall(self, swap: str) -> bool:
        """Take in the comparison before `swap` that an earlier attempt left on the disk; say whether it was there, whole."""
        self.begin()
        try:
            held = self._path.read_bytes() if self._path is not None else b""
        except FileNotFoundError:
            held = b""
        body = held[8:]
        if len(held) < 8 or len(body) % 8 or held[:8] != _checksum(swap, body):
            return False
        self._words, self._is_complete = array("Q", body), True
        return True

    def copied(self, ids: Iterable[PointId]) -> None:
        """The new version has them now."""
        words = {_word(one) for one in ids}
        self._copied |= words
        self._gone -= words

    def gone(self, ids: Iterable[PointId]) -> None:
        """It does not have them any more: written to the old version again, they are new."""
        words = {_word(one) for one in ids}
        self._gone |= words
        self._copied -= words

    def unknown(self, ids: Sequence[PointId]) -> list[PointId]:
        """Return those that the new version did not have; none where nothing is known."""
        if not self._is_complete or not ids:
            return []
        words = [_word(one) for one in ids]
        was_there = np.isin(np.array(words, dtype=np.uint64), np.frombuffer(self._words, dtype=np.uint64)).tolist()
        return [
            one
            for one, word, was in zip(ids, words, was_there, strict=True)
            if word in self._gone or not (was or word in self._copied)
        ]

    def discard(self) -> None:
        """Delete what is on the disk: the swap is settled."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _checksum(swap: str, body: bytes) -> bytes:
    return xxhash.xxh3_64_digest(body, seed=xxhash.xxh3_64_intdigest(swap.encode()))


def _word(one: PointId) -> int:
    """Return 64 bits of an id: two of one word are taken for one point, at 10^7 points with a chance of 3 in 10^6."""
    return one if isinstance(one, int) else xxhash.xxh3_64_intdigest(one.encode())
