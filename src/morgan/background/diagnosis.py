"""Owns what can be wrong with an installation: each check looks at one thing and says what it found and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np
import psutil

from .ipc import layout
from .ipc.client import Client
from .ipc.errors import MorganError
from .ipc.paths import RuntimePaths
from .ipc.records import CollectionInfo, Point
from .ipc.sockets import MAX_SOCKET_PATH
from .ipc.store import BYTES_PER_ENTRY
from .supervisor.config import Config
from .workers.fingerprint import fingerprint, is_stale, stamp
from .workers.handover import Handover, make_embedder
from .workers.open_store import open_store
from .workers.reranker import CrossEncoderReranker
from .workers.task import Embedder
from .workers.vectors import VectorStore, Versioned

SAMPLE = 64  # points looked at for their fields
COMPARED = 5  # of them embedded again and compared
SAME_COSINE = 0.99  # the same model on another machine or in half precision stays above; another text or model does not


class Level(StrEnum):
    OK = "ok"
    HINT = "hint"  # works, but not as well as it could
    PROBLEM = "problem"  # does not work


class Finding(msgspec.Struct, frozen=True):
    level: Level
    about: str
    words: str


def of_configuration(config: Config) -> Iterator[Finding]:
    """A file that is wrong never gets here: loading it raises ConfigError."""
    where = f"read from {config.source}" if config.source else "defaults: no file was found"
    yield Finding(Level.OK, "configuration", f"{where}; state in {config.state_dir()}")


def of_service(config: Config, client: Client | None) -> Iterator[Finding]:
    if client is None:
        words = f"none runs for {config.state_dir()}: `morgan-background serve` starts one"
        yield Finding(Level.HINT, "service", words)
        return
    report = client.status()
    yield Finding(Level.OK, "service", f"runs as pid {report['pid']}")
    for problem in report["problems"]:
        yield Finding(Level.PROBLEM, "service", problem)


def of_runtime_dir(config: Config, free: int | None = None) -> Iterator[Finding]:
    """Room for the results, a file system in memory, and a path that fits into a socket's address.

    `free` is in bytes; looked up if not given.
    """
    folder, about = config.runtime_dir(), "shared memory"
    longest = max((len(os.fsencode(path)) for path in _sockets(folder)), default=0)
    if longest > MAX_SOCKET_PATH:
        words = f"{folder} is too long for a Unix socket by {longest - MAX_SOCKET_PATH} bytes: set MORGAN_RUNTIME_DIR"
        yield Finding(Level.PROBLEM, about, words)
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if not os.access(there, os.W_OK):
        yield Finding(Level.PROBLEM, about, f"{there} cannot be written: set MORGAN_RUNTIME_DIR to a folder that can")
        return
    needed = config.cache.max_cached_queries * BYTES_PER_ENTRY
    needed += layout.arena_start(layout.slots_for(config.cache.max_cached_queries))
    if (held := RuntimePaths(folder).results).is_file():
        needed -= held.stat().st_size
    free = psutil.disk_usage(str(there)).free if free is None else free
    if free < needed:
        words = (
            f"{there} has {free / 2**20:.0f} MiB free, {needed / 2**20:.0f} are needed for"
            f" {config.cache.max_cached_queries} results: make it larger, or lower [cache] max_cached_queries"
        )
        yield Finding(Level.PROBLEM, about, words)
    elif (kind := _file_system(there)) not in ("tmpfs", "ramfs"):
        words = f"{folder} is on {kind}, not in memory: set MORGAN_RUNTIME_DIR to a folder in /dev/shm or /run"
        yield Finding(Level.HINT, about, words)
    else:
        yield Finding(Level.OK, about, f"{folder}, {free / 2**20:.0f} MiB free")


def _sockets(folder: Path) -> list[Path]:
    paths = RuntimePaths(folder)
    return [paths.clients, paths.workers, paths.owner]


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`: of the longest mount point above it."""
    real = folder.resolve()
    above = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    return max(above, key=lambda part: len(part.mountpoint)).fstype if above else "an unknown file system"


def of_cgroup(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[Finding]:
    """Whether the kernel's CPU controller may be used for the workers, beside niceness and pacing."""
    about, without = "cgroup", "the CPU budget is kept by niceness, SCHED_IDLE and pacing alone"
    path = next((line[3:].lstrip("/") for line in _lines(proc) if line.startswith("0::")), None)
    own = None if path is None else root / path
    controllers = own / "cgroup.controllers" if own else None
    if own is None or controllers is None or not controllers.is_file():
        yield Finding(Level.HINT, about, f"no cgroup v2 here: {without}")
    elif "cpu" not in controllers.read_text().split() or not os.access(own / "cgroup.subtree_control", os.W_OK):
        words = f"the CPU controller is not delegated (Delegate=cpu memory in the systemd unit): {without}"
        yield Finding(Level.HINT, about, words)
    else:
        yield Finding(Level.OK, about, f"the CPU controller is delegated in {own}")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def of_model(config: Config) -> tuple[Embedder | None, list[Finding]]:
    """Load the configured model. Takes seconds."""
    embedder = make_embedder(config.worker_settings().model)
    try:
        size = embedder.size
    except MorganError as error:
        return None, [Finding(Level.PROBLEM, "model", str(error))]
    found = [Finding(Level.OK, "model", f"{embedder.name}, {size} dimensions")]
    return embedder, [*found, of_fast_path(embedder)] if isinstance(embedder, Handover) else found


def of_fast_path(embedder: Handover) -> Finding:
    """Whether a graph of the model computes, with what was measured of it; else why not."""
    about = "fast path"
    if embedder.fast is not None:
        return Finding(Level.OK, about, embedder.fast.verdict.words)
    if embedder.reason and embedder.settings.loader == "fast":
        return Finding(Level.PROBLEM, about, f"not used: {embedder.reason} ([model] loader)")
    return Finding(Level.HINT, about, f"not used: {embedder.reason or 'the service makes a graph at its next start'}")


def of_reranker(config: Config) -> Iterator[Finding]:
    """Load the configured cross-encoder, and say whether a graph of it computes. Takes seconds."""
    settings, about = config.worker_settings(), "reranker"
    if not (name := settings.rerank.cross_encoder):
        yield Finding(Level.OK, about, "late interaction over the model's tokens, with the vector search and BM25")
        return
    folder = "" if settings.model.loader == "reference" else settings.model.graph_folder
    reranker = CrossEncoderReranker(name, settings.model.device, folder)
    try:
        reranker.load()
        verdict = None if (fast := reranker.choose()) is None else fast.verdict
    except MorganError as error:
        words = f"{error} ([reranker] cross_encoder): until then results are in the order of the vector search"
        yield Finding(Level.PROBLEM, about, words)
        return
    yield Finding(Level.OK, about, f"cross-encoder {name}")
    if verdict is not None:
        yield Finding(Level.OK, "reranker's fast path", verdict.words)
    elif folder:
        words = reranker.reason or "the service makes a graph at its next start"
        yield Finding(Level.HINT, "reranker's fast path", f"not used: {words}")


def of_store(config: Config, *, is_running: bool) -> tuple[VectorStore | None, list[Finding]]:
    """Open the configured store: the embedded one through its owner where the service runs."""
    settings = config.worker_settings().store
    where = f"embedded in {settings.path}" if settings.is_embedded else f"Qdrant at {settings.url}"
    if settings.is_embedded and not is_running and not Path(settings.path).is_dir():
        return None, [Finding(Level.HINT, "vector store", f"{where}: not there yet, the service makes it")]
    try:
        store = open_store(settings, str(RuntimePaths(config.runtime_dir()).owner) if is_running else None)
        count = len(store.collections())
        if isinstance(store, Versioned):
            store.demand_version()
    except MorganError as error:
        return None, [Finding(Level.PROBLEM, "vector store", str(error))]
    return store, [Finding(Level.OK, "vector store", f"{where}, {count} collections")]


def of_collections(config: Config, store: VectorStore, embedder: Embedder | None) -> Iterator[Finding]:
    """Text field, vector size and origin of the vectors of every collection; scheduled ones that do not exist."""
    known = store.collections()
    names = {name for info in known for name in (info.name, *info.aliases)}
    for name in config.schedule.collections if config.schedule.auto else ():
        if name not in names:
            words = "does not exist: its scheduled tasks are skipped ([schedule] collections)"
            yield Finding(Level.HINT, f"collection {name}", words)
    for info in known:
        field = config.worker_settings().of(_configured(info, config)).model.text_field
        yield from of_collection(info, store, embedder, field)


def _configured(info: CollectionInfo, config: Config) -> str:
    """Return the name of a collection that has settings of its own, by which applications know it."""
    return next((name for name in (*info.aliases, info.name) if name in config.collections), info.name)


def of_collection(info: CollectionInfo, store: VectorStore, embedder: Embedder | None, field: str) -> Iterator[Finding]:
    about = f"collection {info.name}"
    points, _ = store.scroll(info.name, limit=SAMPLE, with_vectors=True)
    if not points:
        yield Finding(Level.OK, about, "empty")
        return
    if embedder is not None and info.vector_size != embedder.size:
        words = (
            f"vectors of {info.vector_size} dimensions, the model {embedder.name} makes {embedder.size}:"
            " set [model] name to the model that made them"
        )
        yield Finding(Level.PROBLEM, about, words)
        return
    texts = {point.id: text for point in points if (text := _text(point, field))}
    if not texts:
        words = f"no point has a text in {field!r}" + _suggestion(points)
        yield Finding(Level.PROBLEM, about, words)
        return
    if len(texts) < len(points):
        words = (
            f"{len(points) - len(texts)} of the first {len(points)} points have no text in {field!r}: left as they are"
        )
        yield Finding(Level.HINT, about, words)
    if embedder is not None:
        yield of_vectors(about, [point for point in points if point.id in texts], field, embedder)


def of_vectors(about: str, points: Sequence[Point], field: str, embedder: Embedder) -> Finding:
    """Embed some points' texts again and compare with the stored vectors."""
    some = [point for point in points if point.vector is not None]
    some = some[:: max(len(some) // COMPARED, 1)][:COMPARED]
    if not some:
        return Finding(Level.PROBLEM, about, "its points have no vector: `morgan-background run reindex` makes them")
    texts = [str(point.payload[field]) for point in some]
    fresh = embedder.embed(texts)
    stored = np.stack([np.frombuffer(point.vector or b"", dtype="<f4") for point in some])
    stored = stored / np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-12)
    cosines = (fresh * stored).sum(axis=1)
    if float(cosines.min()) >= SAME_COSINE:
        return Finding(Level.OK, about, f"vectors are the model's: cosine {cosines.min():.4f} or more in {len(some)}")
    wrong = [i for i, cosine in enumerate(cosines) if cosine < SAME_COSINE]
    marks = [stamp(fingerprint(text), embedder.name, embedder.revision) for text in texts]
    words = (
        f"{len(wrong)} of {len(some)} vectors are not {embedder.name}'s of these texts (cosine {cosines.min():.2f}): "
    )
    if all(is_stale(some[i].payload, marks[i]) for i in wrong):
        words += "texts that changed since, or another model's: `morgan-background run reindex` embeds them again"
    else:
        words += "set [model] name to the model that made them, or rebuild with `run reindex --set force_rebuild=true`"
    return Finding(Level.PROBLEM, about, words)


def _text(point: Point, field: str) -> str | None:
    value = point.payload.get(field)
    return value if isinstance(value, str) and value.strip() else None


def _suggestion(points: Sequence[Point]) -> str:
    """Return the words that suggest the field with the most text."""
    lengths: Mapping[str, int] = {
        name: sum(len(p.payload[name]) for p in points if isinstance(p.payload.get(name), str))
        for name in sorted({name for p in points for name, value in p.payload.items() if isinstance(value, str)})
    }
    if not lengths:
        return ": no field holds a text"
    return f"; the longest text is in {max(lengths, key=lambda name: lengths[name])!r}: set [model] text_field"
