"""Owns the processes of the store benchmark: one writer and some readers, told what to do through pipes.

bench ──write, stop──▶ writer ──put, 100/s──▶ store under test ◀──get── readers ◀──read── bench
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from morgan.background.ipc.records import ComputedResult

from .measure import Latency, latency
from .payload import ENTRIES, ROWS, results
from .stores import OURS, Store

UPDATES_PER_S = 100
HOT = 64  # queries of the repeated reads: what an application asks again and again
CHECKED = 8  # queries of the freshness check: each is replaced hundreds of times a second
BATCH = 50  # lookups between two looks at the clock when throughput is measured


class Shape(Enum):
    REPEATED = "repeated read, all touched"  # 64 popular queries, again and again
    HANDED_OUT = "first read, text untouched"  # all queries in turn; nothing was kept
    IDS_SCORES = "first read, ids + scores"
    EVERYTHING = "first read, everything"


@dataclass(frozen=True, slots=True)
class Reading:
    latency: Latency
    lookups_per_s: float  # without a clock between the lookups
    misses: int


@dataclass(frozen=True, slots=True)
class Freshness:
    reads: int
    stale: int  # older than a write that was acknowledged before the lookup began
    mixed: int  # of two writes at once
    misses: int


# --- the reader's loops: the touch is in the loop, a call for it would cost as much as a dict lookup --------------------


def _read(get: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float, shape: Shape) -> Reading:
    samples, misses = _LOOPS[shape](get, arguments, seconds / 2)
    count, elapsed_s = 0, 0.0
    touch, turns = _TOUCH[shape], cycle(arguments)
    began = time.perf_counter()
    while elapsed_s < seconds / 2:
        for _ in range(BATCH):
            touch(get(*next(turns)))
        count += BATCH
        elapsed_s = time.perf_counter() - began
    return Reading(latency(samples), count / elapsed_s, misses)


def _loop_everything(
    get: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float
) -> tuple[list[int], int]:
    now, samples, misses = time.perf_counter_ns, list[int](), 0
    end_ns = now() + int(seconds * 1e9)
    for one in cycle(arguments):
        began = now()
        found = get(*one)
        if found is None:
            misses += 1
        else:
            _ = found.ids, found.scores, found.contents, found.sources, found.metadata
        ended = now()
        samples.append(ended - began)
        if ended > end_ns:
            break
    return samples, misses


def _loop_ids(get: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float) -> tuple[list[int], int]:
    now, samples, misses = time.perf_counter_ns, list[int](), 0
    end_ns = now() + int(seconds * 1e9)
    for one in cycle(arguments):
        began = now()
        found = get(*one)
        if found is None:
            misses += 1
        else:
            _ = found.ids, found.scores
        ended = now()
        samples.append(ended - began)
        if ended > end_ns:
            break
    return samples, misses


def _loop_nothing(
    get: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float
) -> tuple[list[int], int]:
    now, samples, misses = time.perf_counter_ns, list[int](), 0
    end_ns = now() + int(seconds * 1e9)
    for one in cycle(arguments):
        began = now()
        if get(*one) is None:
            misses += 1
        ended = now()
        samples.append(ended - began)
        if ended > end_ns:
            break
    return samples, misses


_LOOPS = {
    Shape.REPEATED: _loop_everything,
    Shape.HANDED_OUT: _loop_nothing,
    Shape.IDS_SCORES: _loop_ids,
    Shape.EVERYTHING: _loop_everything,
}
_TOUCH: dict[Shape, Callable[[Any], object]] = {
    Shape.REPEATED: lambda found: (found.ids, found.scores, found.contents, found.sources, found.metadata),
    Shape.HANDED_OUT: lambda found: found,
    Shape.IDS_SCORES: lambda found: (found.ids, found.scores),
    Shape.EVERYTHING: lambda found: (found.ids, found.scores, found.contents, found.sources, found.metadata),
}


# --- freshness: the version of a write is its computed_at, and every score of it ----------------------------------------


def versioned(result: ComputedResult, version: int) -> ComputedResult:
    """Return `result` as the write number `version`: any mix of two writes shows."""
    scores = np.full(ROWS, float(version), dtype="<f4").tobytes()
    return msgspec.structs.replace(result, scores=scores, rerank_scores=scores, computed_at=float(version))


def _acknowledged(path: Path) -> memoryview[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(fd, 8 * CHECKED)).cast("Q")
    finally:
        os.close(fd)


def _verify(get: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], acks: Path, seconds: float) -> Freshness:
    words = _acknowledged(acks)
    reads = stale = mixed = misses = 0
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        for word, one in enumerate(arguments):
            acknowledged = words[word]
            result = get(*one)
            reads += 1
            if result is None:
                misses += 1
                continue
            stale += result.computed_at < acknowledged
            # before the first write of the check an entry is as it was filled
            mixed += acknowledged > 0 and bool((result.scores != np.float32(result.computed_at)).any())
    return Freshness(reads, stale, mixed, misses)


# --- the processes ------------------------------------------------------------------------------------------------------


def reader_process(pipe: Connection, stores: Sequence[Store]) -> None:
    """Obey ("read", store, shape, seconds) and ("verify", acks, seconds); None ends it."""
    by_name = {store.name: store for store in stores}
    titles = [result.query_text for result in results()]
    opened: dict[tuple[str, bool], Any] = {}

    def lookup(name: str, *, is_keeping: bool) -> Any:
        if (name, is_keeping) not in opened:
            opened[name, is_keeping] = by_name[name].reader(is_keeping=is_keeping)
        return opened[name, is_keeping]

    chance = random.Random(os.getpid())
    while (order := pipe.recv()) is not None:
        match order:
            case ("read", name, shape, seconds):
                is_keeping = shape is Shape.REPEATED
                found = lookup(name, is_keeping=is_keeping)
                texts = titles[:HOT] if is_keeping else chance.sample(titles, len(titles))
                arguments = [found.arguments(text) for text in texts]
                for one in arguments if is_keeping else arguments[:1]:
                    found.get(*one)
                pipe.send(_read(found.get, arguments, seconds, shape))
            case ("verify", acks, seconds):
                found = lookup(OURS, is_keeping=True)
                pipe.send(_verify(found.get, [found.arguments(text) for text in titles[:CHECKED]], acks, seconds))


def writer_process(pipe: Connection, stores: Sequence[Store]) -> None:
    """Obey ("fill", store), ("write", store) until ("stop",), ("replace", acks) until ("stop",); None ends it."""
    entries, chance = results(), random.Random(1)
    by_name, opened = {store.name: store for store in stores}, dict[str, Callable[[ComputedResult], None]]()
    while (order := pipe.recv()) is not None:
        match order:
            case ("fill", name):
                opened[name] = by_name[name].writer()
                for result in entries:
                    opened[name](result)
                pipe.send(len(entries))
            case ("write", name):
                pipe.send(_update(opened[name], entries, chance, pipe))
            case ("replace", acks):
                pipe.send(_replace(opened[OURS], entries, acks, pipe))


def _update(
    put: Callable[[ComputedResult], None], entries: list[ComputedResult], chance: random.Random, pipe: Connection
) -> int:
    count, due = 0, time.monotonic()
    while not pipe.poll(max(due - time.monotonic(), 0)):
        put(entries[chance.randrange(ENTRIES)])
        count += 1
        due = max(due + 1 / UPDATES_PER_S, time.monotonic() - 0.05)
    pipe.recv()
    return count


def _replace(put: Callable[[ComputedResult], None], entries: list[ComputedResult], acks: Path, pipe: Connection) -> int:
    words, version = _acknowledged(acks), 0
    while not pipe.poll(0):
        version += 1
        for word in range(CHECKED):
            put(versioned(entries[word], version))
            words[word] = version  # acknowledged from here on
    pipe.recv()
    for word in range(CHECKED):
        put(entries[word])
    return version * CHECKED


class Crew:
    """The writer and the readers of a run; leave the block to end them."""

    def __init__(self, stores: Sequence[Store], readers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for target in (writer_process, *[reader_process] * readers):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, stores), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._writer, *self._readers = self._pipes

    def fill(self, name: str) -> int:
        """Write all entries; return how many."""
        self._writer.send(("fill", name))
        count: int = self._writer.recv()
        return count

    def read(self, name: str, shape: Shape, seconds: float, readers: int) -> list[Reading]:
        """Return what `readers` processes measured at once while the writer updated the same store."""
        self._writer.send(("write", name))
        found: list[Reading] = self._ask(("read", name, shape, seconds), readers)
        self._writer.send(("stop",))
        self._writer.recv()
        return found

    def verify(self, acks: Path, seconds: float, readers: int) -> tuple[int, list[Freshness]]:
        """Return how many writes were made at full speed, and what the readers saw meanwhile."""
        acks.write_bytes(bytes(8 * CHECKED))
        self._writer.send(("replace", acks))
        found: list[Freshness] = self._ask(("verify", acks, seconds), readers)
        self._writer.send(("stop",))
        return self._writer.recv(), found

    def _ask(self, order: tuple[Any, ...], readers: int) -> list[Any]:
        for pipe in self._readers[:readers]:
            pipe.send(order)
        return [pipe.recv() for pipe in self._readers[:readers]]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
