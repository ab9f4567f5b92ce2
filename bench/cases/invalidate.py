"""`bench invalidate`: how many cached results stay when documents come, and whether any that stays is wrong.

sentences ─▶ vectors ─▶ 50,000 documents ─▶ 1,000 queries cached, exact search ─▶ 10 documents come ─▶ who stays?
                                                                                 └▶ searched again: who changed?
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from morgan.background.ipc.commands import PointsChanged
from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.settings import ModelSettings
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.affected import Change, similarities
from morgan.background.supervisor.popularity import Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper
from morgan.background.workers.models import SentenceTransformerEmbedder

from ..report import Goal, Options, Result, Table
from ..scifact import Corpus, shipped, whole

NAME = "invalidate"
SUMMARY = "cached results that stay when documents are added or deleted, held against an exact search of all queries"

COLLECTION = "sentences"
CANDIDATES, ROWS = 50, 10
ADDED = 10
DOCUMENTS, QUERIES, ROUNDS = 50_000, 1_000, 20
QUICK_DOCUMENTS, QUICK_QUERIES, QUICK_ROUNDS = 800, 100, 5
LEAST_WORDS = 5  # of a sentence that says something
SEED = 11
NOW = 1_000_000.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Round:
    kept: int  # of the cached results, after the change
    altered: int  # whose candidates an exact search finds to be others now
    stale: int  # kept though altered
    seconds: float  # the supervisor's time for the change


def run(options: Options) -> Result:
    size, count, rounds = (
        (QUICK_DOCUMENTS, QUICK_QUERIES, QUICK_ROUNDS) if options.is_quick else (DOCUMENTS, QUERIES, ROUNDS)
    )
    corpus = shipped(1_000) if options.is_quick else whole(options.data, Path(__file__).parent)
    chance = np.random.default_rng(SEED)
    texts = _sentences(corpus)
    chance.shuffle(texts)
    texts = texts[: size + rounds * ADDED]
    size = len(texts) - rounds * ADDED
    asked = [claim["text"] for claim in corpus.claims] + [document["title"] for document in corpus.documents]
    asked = list(dict.fromkeys(asked))[:count]
    embedder = SentenceTransformerEmbedder(ModelSettings(batch_size=32, threads=2))
    began = time.monotonic()
    vectors, queries = embedder.embed(texts), embedder.embed(asked)
    embedding_s = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder:
        added = _measure(Path(folder), vectors, queries, asked, size, rounds, is_deleting=False)
        deleted = _measure(Path(folder), vectors, queries, asked, size, rounds, is_deleting=True)
    shares = {name: [one.kept / len(asked) for one in found] for name, found in (("add", added), ("delete", deleted))}
    return Result(
        bench=NAME,
        tables=[
            Table(
                f"{size:,} sentences of {corpus.name}, {len(asked)} cached results of {CANDIDATES} candidates each,"
                f" {rounds} rounds of {ADDED} documents",
                ("change", "results that stay, %", "altered, %", "stale", "dropped in vain, %", "ms a change"),
                [_row("10 documents added", added, len(asked)), _row("10 documents deleted", deleted, len(asked))],
            )
        ],
        figures={
            "documents": size,
            "results": len(asked),
            "embedding_s": embedding_s,
            "kept_share_added": statistics.fmean(shares["add"]),
            "kept_share_deleted": statistics.fmean(shares["delete"]),
            "stale": sum(one.stale for one in [*added, *deleted]),
            "ms_a_change": 1000 * statistics.median(one.seconds for one in added),
        },
        goals={
            f"share of the results that stay after adding {ADDED} documents to {DOCUMENTS:,}, %": Goal.at_least(
                None if options.is_quick else 100 * statistics.fmean(shares["add"]),
                98,
                f"--quick has {size:,} documents" if options.is_quick else "",
            ),
            "results that stay and are not what an exact search finds": Goal.at_most(
                float(sum(one.stale for one in [*added, *deleted])), 0
            ),
        },
        notes=[
            "to drop the whole collection, as caches without dependencies do, would leave 0 %",
            "altered: the candidates differ after the change, by an exact search of every query",
        ],
    )


def _sentences(corpus: Corpus) -> list[str]:
    found = [
        sentence.strip()
        for document in corpus.documents
        for sentence in document["text"].replace("? ", ". ").split(". ")
    ]
    return list(dict.fromkeys(one for one in found if len(one.split()) >= LEAST_WORDS))


def _row(name: str, rounds: Sequence[Round], count: int) -> tuple[str, ...]:
    kept = 100 * statistics.fmean(one.kept for one in rounds) / count
    altered = 100 * statistics.fmean(one.altered for one in rounds) / count
    stale = sum(one.stale for one in rounds)
    vain = 100 - kept - altered + 100 * stale / len(rounds) / count
    return (name, f"{kept:.2f}", f"{altered:.2f}", str(stale), f"{vain:.2f}", _ms(rounds))


def _ms(rounds: Sequence[Round]) -> str:
    return f"{1000 * statistics.median(one.seconds for one in rounds):.2f}"


def _measure(
    folder: Path, vectors: Floats, queries: Floats, texts: Sequence[str], size: int, rounds: int, *, is_deleting: bool
) -> list[Round]:
    """Return what each round of a change did to a cache that was filled from the documents before it."""
    scores = similarities(queries, vectors, "cosine")
    live = np.zeros(len(vectors), dtype=bool)
    live[:size] = True
    chance, found = np.random.default_rng(SEED), []
    for number in range(rounds):
        before = _nearest(scores, live)
        keeper = _filled(folder / f"{is_deleting}-{number}", queries, texts, before, scores)
        if is_deleting:
            rows = chance.choice(np.flatnonzero(live), ADDED, replace=False)
            event = PointsChanged(seq=0, names=(COLLECTION,), ids=tuple(map(int, rows)))
        else:
            rows = np.arange(size + number * ADDED, size + (number + 1) * ADDED)
            event = PointsChanged(
                seq=0,
                names=(COLLECTION,),
                ids=tuple(map(int, rows)),
                vectors=vectors[rows].tobytes(),
                vector_count=len(rows),
            )
        live[rows] = not is_deleting
        began = time.perf_counter()
        keeper.change(Change.of(event), NOW)
        seconds = time.perf_counter() - began
        after = _nearest(scores, live)
        held = {entry.query_text for entry in keeper.store.entries()}
        # a set that differs without them is another pick among documents of equal similarity at the cut-off
        changed = set(rows.tolist())
        altered = {text for text, old, new in zip(texts, before, after, strict=True) if (set(old) ^ set(new)) & changed}
        found.append(Round(len(held), len(altered), len(held & altered), seconds))
        keeper.store.destroy()
    return found


def _nearest(scores: Floats, live: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Return the CANDIDATES nearest documents of each query, best first, exactly."""
    masked = np.where(live, scores, -np.inf)
    top = np.argpartition(-masked, CANDIDATES, axis=1)[:, :CANDIDATES]
    order = np.argsort(-np.take_along_axis(masked, top, axis=1), axis=1, kind="stable")
    found: list[list[int]] = np.take_along_axis(top, order, axis=1).tolist()
    return found


def _filled(
    folder: Path, queries: Floats, texts: Sequence[str], nearest: list[list[int]], scores: Floats
) -> ResultKeeper:
    """Return a keeper whose store holds a result for every query."""
    folder.mkdir()
    store = ResultStore(folder / "results", capacity=len(texts))
    policy = CachePolicy(max_entries=len(texts))
    keeper = ResultKeeper(store, CounterFold(folder / "readers"), Popularity(), policy)
    for row, (text, ids) in enumerate(zip(texts, nearest, strict=True)):
        best = scores[row, ids]
        result = ComputedResult(
            query_text=text,
            collection=COLLECTION,
            ids=tuple(ids[:ROWS]),
            scores=best[:ROWS].astype("<f4").tobytes(),
            contents=("",) * ROWS,
            sources=("",) * ROWS,
            metadata=({},) * ROWS,
            computed_at=NOW,
            embedding=queries[row].astype("<f4").tobytes(),
            candidates=tuple(ids),
            cutoff=float(best[-1]),
        )
        keeper.put(result, NOW)
    return keeper
