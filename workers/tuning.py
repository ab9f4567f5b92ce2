"""Owns the tune task: measure an index, propose other settings, and apply them only where that is asked for.

queries ─▶ recall and latency at each depth ─▶ filters without an index ─▶ trials on a sample ─▶ proposals ─▶ applied?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np

from ..ipc.records import Point, TaskProgress
from .measuring import K, with_sentences
from .proposals import Depth, Filtered, propose
from .quality import recall
from .sizes import check_size
from .task import Job, Outcome, Step, Steps, Tools
from .trials import configurations, tried
from .vectors import STAMP_KEY, Tunable, Vectors

DEPTHS = (0, 16, 32, 64, 128, 256, 512)  # values of ef; 0 is as the collection is configured
AT_ONCE = 8  # queries between two steps
SAMPLE = 10_000  # vectors of a trial: its graph is built in 1 to 3 s of CPU
FILTER_QUERIES = 20  # searches that the latency of a filter is the median of


def tune(job: Job, tools: Tools) -> Steps:
    """Measure the index of `job.collection` and say what to change.

    Params: apply makes the changes that can be made; fields names payload fields that filters use, beside those that the
    owner has seen. Raises VectorSizeMismatch.
    """
    began_at, store = tools.clock(), cast(Tunable, tools.store)
    info, index = tools.store.info(job.collection), store.index_info(job.collection)
    embedder = tools.searching(job.collection)
    settings = tools.settings
    if info.points == 0:
        return Outcome(result={"success": True, "collection_name": job.collection, "reason": "empty"}, is_skipped=True)
    check_size(info, embedder)
    queries = with_sentences(job.queries, settings.gate.queries, tools.store, job.collection, settings.model.text_field)
    vectors = np.zeros((0, info.vector_size), dtype=np.float32)
    if queries:
        vectors = embedder.embed([query.text for query in queries], pace=tools.pace)
    depths = yield from _depths(job.collection, vectors, tools, has_graph=bool(index.indexed_vectors))
    points, _ = tools.store.scroll(job.collection, limit=settings.scroll_size)
    uses: dict[str, int] = {**dict.fromkeys(job.params.get("fields", ()), 0), **tools.filters(job.collection)}
    wanted = _fields(points, {name: count for name, count in uses.items() if name not in index.payload})
    filtered = [
        Filtered(name, kind, count, _filtered_ms(job.collection, vectors, {name: value}, tools))
        for name, kind, count, value in wanted
        if len(vectors)
    ]
    trials = []
    if index.indexed_vectors and len(vectors):
        sample = yield from _sample(job.collection, info.vector_size, tools)
        for trial in tried(sample, vectors, info.distance, configurations(index.settings), tools.pace):
            trials.append(trial)
            yield Step(TaskProgress(done=len(trials), total=3, note="trying other graphs on a sample"))
    proposals = propose(info, index, depths, trials, filtered, settings.tuning.recall_goal)
    applied: list[str] = []
    after_ms: dict[str, float] = {}
    is_applied = bool(job.params.get("apply", settings.tuning.apply)) and bool(proposals.reasons)
    if is_applied:
        yield Step(TaskProgress(note="applying what is proposed"))
        applied = store.configure_index(job.collection, proposals.settings, proposals.payload)
        after_ms = {name: _filtered_ms(job.collection, vectors, {name: value}, tools) for name, _, _, value in wanted}
    return Outcome(
        result={
            "success": True,
            "collection_name": job.collection,
            "queries": len(queries),
            "indexed_vectors": index.indexed_vectors,
            "index": msgspec.to_builtins(index.settings),
            "payload_indexes": dict(index.payload),
            "depths": msgspec.to_builtins(depths),
            "filters": [msgspec.to_builtins(one) | {"p50_ms_after": after_ms.get(one.field)} for one in filtered],
            "trials": msgspec.to_builtins(trials),
            "trials_on": min(info.points, SAMPLE) if trials else 0,
            "proposals": list(proposals.reasons),
            "proposals_by_hand": list(proposals.by_hand),
            "notes": list(proposals.notes),
            "applied": applied,
            "processing_time_seconds": tools.clock() - began_at,
            "error_message": None,
        }
    )


def _depths(
    collection: str,
    vectors: Vectors,
    tools: Tools,
    *,
    has_graph: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Step, None, list[Depth]]:
    """Search with every query at every depth, in another order each time, and compare with exact search."""
    depths = DEPTHS if has_graph else DEPTHS[:1]
    found: dict[int, list[float]] = {ef: [] for ef in depths}
    took_ms: dict[int, list[float]] = {ef: [] for ef in depths}
    for row in range(len(vectors)):
        query = vectors[row : row + 1]
        (exact,) = tools.store.search(collection, query, limit=K, exact=True)
        wanted = [hit.id for hit in exact]
        turn = row % len(depths)
        for ef in (*depths[turn:], *depths[:turn]):
            tools.pace()
            began = clock()
            (hits,) = tools.store.search(collection, query, limit=K, ef=ef)
            took_ms[ef].append((clock() - began) * 1000)
            found[ef].append(recall([hit.id for hit in hits], wanted))
        if row % AT_ONCE == AT_ONCE - 1:
            yield Step(TaskProgress(done=row + 1, total=len(vectors), note="measuring recall and latency"))
    return [
        Depth(ef, float(np.mean(found[ef])), *(float(np.percentile(took_ms[ef], share)) for share in (50, 95)))
        for ef in depths
        if found[ef]
    ]


def _sample(collection: str, size: int, tools: Tools) -> Generator[Step, None, Vectors]:
    """Return the first vectors of a collection, in the order of its ids: at most SAMPLE, shape (N, D)."""
    rows: list[Vectors] = []
    after = None
    while len(rows) < SAMPLE:
        tools.pace()
        points, after = tools.store.scroll(collection, after=after, limit=256, with_vectors=True)
        rows += [np.frombuffer(point.vector, dtype="<f4") for point in points if point.vector is not None]
        yield Step(TaskProgress(done=len(rows), total=SAMPLE, note="reading a sample of the vectors"))
        if after is None:
            break
    return np.array(rows[:SAMPLE], dtype=np.float32).reshape(-1, size)


def _fields(points: Sequence[Point], uses: Mapping[str, int]) -> list[tuple[str, str, int, Any]]:
    """Return of each field that filters use: its name, the kind of its index, the count, and a value to search with.

    Fields that no point has, or that hold what no filter matches, are left out.
    """
    found = []
    for name, count in uses.items():
        value = next((one for point in points for one in values_at(point.payload, name)), None)
        kind = "bool" if isinstance(value, bool) else {str: "keyword", int: "integer"}.get(type(value))
        if kind is not None and name.split(".")[0] != STAMP_KEY:
            found.append((name, kind, count, value))
    return found


def values_at(payload: Mapping[str, Any], path: str) -> Iterable[Any]:
    """Yield what a payload has at a path of keys, `a.b`; the items of a list one by one."""
    at: Any = payload
    for key in path.split("."):
        if not isinstance(at, Mapping) or key not in at:
            return
        at = at[key]
    yield from at if isinstance(at, list) else [at]


def _filtered_ms(
    collection: str,
    vectors: Vectors,
    query_filter: Mapping[str, Any],
    tools: Tools,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median time of a search with a filter, in milliseconds."""
    took_ms = []
    for row in range(min(len(vectors), FILTER_QUERIES)):
        tools.pace()
        began = clock()
        tools.store.search(collection, vectors[row : row + 1], limit=K, query_filter=query_filter)
        took_ms.append((clock() - began) * 1000)
    return float(np.median(took_ms))
