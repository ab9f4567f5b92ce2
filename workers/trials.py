"""Owns what other graphs would do: small indexes of a sample of a collection's vectors, in the embedded engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ipc.records import IndexSettings
from .edge import ENGINE_EF_CONSTRUCT, ENGINE_M
from .proposals import Trial
from .quality import recall
from .vectors import Vectors

K = 10
TRIAL_EF = 32  # of every trial: low enough that graphs differ on a sample
UPSERT = 500  # points at once: 5 ms of the engine
OVERSAMPLING = 2.0  # candidates of int8 vectors that are compared again by the original ones


def configurations(now: IndexSettings) -> list[tuple[int, int, bool]]:
    """Return m, ef_construct and whether int8: as it is now, twice of both, and as it is now in int8."""
    m, ef_construct = now.m or ENGINE_M, now.ef_construct or ENGINE_EF_CONSTRUCT
    return [(m, ef_construct, False), (2 * m, 2 * ef_construct, False), (m, ef_construct, True)]


def tried(
    vectors: Vectors,
    queries: Vectors,
    distance: str,
    configured: Sequence[tuple[int, int, bool]],
    pace: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Trial]:
    """Build an index of `vectors`, shape (N, D), for each configuration, and search it with each row of `queries`.

    Yields nothing where the engine is not installed. Building holds the interpreter: some seconds for 10,000 vectors.
    """
    try:
        import qdrant_edge as edge
    except ImportError:
        return
    for m, ef_construct, is_int8 in configured:
        with tempfile.TemporaryDirectory(prefix="morgan-trial-") as folder:
            began = clock()
            shard = _built(edge, Path(folder) / "shard", vectors, distance, (m, ef_construct, is_int8), pace)
            build_s = clock() - began
            try:
                found, took_ms = [], []
                for query in queries:
                    pace()
                    exact = _ids(edge, shard, query, exact=True)
                    began = clock()
                    near = _ids(edge, shard, query, exact=False)
                    took_ms.append((clock() - began) * 1000)
                    found.append(recall(near, exact))
            finally:
                shard.close()
        yield Trial(m, ef_construct, is_int8, float(np.mean(found)), float(np.median(took_ms)), build_s)


def _built(
    edge: Any,
    path: Path,
    vectors: Vectors,
    distance: str,
    configuration: tuple[int, int, bool],
    pace: Callable[[], None],
) -> Any:
    m, ef_construct, is_int8 = configuration
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=vectors.shape[1], distance=getattr(edge.Distance, distance.capitalize())),
        hnsw_config=edge.HnswIndexConfig(m=m, ef_construct=ef_construct, full_scan_threshold=1, max_indexing_threads=1),
        quantization_config=edge.ScalarQuantizationConfig(edge.ScalarType.Int8) if is_int8 else None,
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        wal_enabled=False,  # it is thrown away
    )
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), config)
    for start in range(0, len(vectors), UPSERT):
        pace()
        points = [edge.Point(n, vectors[n].tolist(), {}) for n in range(start, min(start + UPSERT, len(vectors)))]
        shard.update(edge.UpdateOperation.upsert_points(points))
    pace()
    while shard.optimize():
        pace()
    return shard


def _ids(edge: Any, shard: Any, query: Vectors, *, exact: bool) -> list[int]:
    rescoring = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
    request = edge.QueryRequest(
        query=edge.Query.Nearest(query.tolist()),
        limit=K,
        params=edge.SearchParams(exact=exact, hnsw_ef=TRIAL_EF, quantization=rescoring),
    )
    (points,) = shard.query_batch(edge.QueryBatchRequest([request]))
    return [point.id for point in points]
