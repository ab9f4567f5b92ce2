"""`bench aliases`: what aliases add to the hit rate, and whether a similar query's result may be served.

claims ─▶ wordings ─▶ vectors ─▶ top 10 of an exact search: the truth ─▶ a stream of requests through the service's keeper
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morgan.background.data import Document
from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.settings import ModelSettings
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.ledger import upper_bound
from morgan.background.supervisor.popularity import CAPACITY, PER_ENTRY, Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper
from morgan.background.workers.models import SentenceTransformerEmbedder

from ..paraphrases import Asked, all_wordings, stream
from ..policies import WARM_UP
from ..report import Goal, Options, Result, Table
from ..scifact import Corpus, shipped, whole

NAME = "aliases"
SUMMARY = "hit rate with and without aliases at equal bytes, on paraphrased claims; what similar queries may be served"

COLLECTION = "claims"
TOP, CANDIDATES = 10, 50
CHARACTERS = 400  # of a document: a chunk, and records of about 6 KB
REQUESTS, QUICK_REQUESTS = 20_000, 2_000
DOCUMENTS, QUICK_DOCUMENTS = 2_000, 100
SIZES, QUICK_SIZES = (100, 300), (20,)
EXPONENT = 0.9
ONE_PER_S = 30.0
SEED = 7
NOW = 4e9
FOREVER_S = 1e9
SAMPLE = 100  # requests between two looks at the bytes
WANTED = 1.0  # points of hit rate at equal bytes
RATE = 0.05  # of errors a similar query may have
OFF, SAME_ROWS, EQUAL_BYTES, EIGHT_OF_TEN = (
    "no aliases",
    "aliases",
    "aliases, equal bytes",
    "aliases at 0.8, equal bytes",
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Truth:
    """What an exact search finds for each wording: `ids` of shape (Q, CANDIDATES), `scores` alike, `vectors` (Q, D)."""

    texts: Sequence[str]
    vectors: Floats
    ids: npt.NDArray[np.int64]
    scores: Floats
    documents: Sequence[Document]

    def result(self, row: int, at: float) -> ComputedResult:
        ids = self.ids[row]
        rows = [self.documents[one] for one in ids[:TOP]]
        return ComputedResult(
            query_text=self.texts[row],
            collection=COLLECTION,
            ids=tuple(int(one) for one in ids[:TOP]),
            scores=self.scores[row, :TOP].astype("<f4").tobytes(),
            contents=tuple(one["text"][:CHARACTERS] for one in rows),
            sources=tuple(one["source"] for one in rows),
            metadata=tuple({"title": one["title"]} for one in rows),
            computed_at=at,
            embedding=self.vectors[row].astype("<f4").tobytes(),
            candidates=tuple(int(one) for one in ids),
            cutoff=float(self.scores[row, -1]),
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """Shares are of the requests after the warm-up, in percent; bytes the mean of what the records took."""

    entries: int
    hits: float
    alias_hits: float
    other_rows: float  # hits whose rows are not those of the query's own search, in this order
    aliases: float  # on average
    record_bytes: float
    alias_bytes: float
    put_ms: float  # CPU a miss
    audits: Mapping[str, Any]
    bins: Sequence[Mapping[str, float]]

    @property
    def bytes(self) -> float:
        return self.record_bytes + self.alias_bytes


def run(options: Options) -> Result:
    began_s = time.monotonic()
    truth, claims, about = _truth(options)
    embedding_s = time.monotonic() - began_s
    asked = stream(claims, SEED, QUICK_REQUESTS if options.is_quick else REQUESTS, ONE_PER_S, EXPONENT)
    found = {size: _compared(truth, asked, size) for size in (QUICK_SIZES if options.is_quick else SIZES)}
    gains = {size: one[EQUAL_BYTES].hits - one[OFF].hits for size, one in found.items()}
    why = "--quick has 30 claims and 100 documents: no verdict" if options.is_quick else ""
    goals = {
        f"hit rate gained at equal bytes, {size} entries, in points": Goal.at_least(None if why else gain, WANTED, why)
        for size, gain in gains.items()
    }
    other_rows = max(one[name].other_rows for one in found.values() for name in (SAME_ROWS, EQUAL_BYTES))
    goals["hits with other rows than the query's own search, %"] = Goal.at_most(other_rows, 0)
    largest = max(found)
    return Result(
        bench=NAME,
        tables=[_table(size, one) for size, one in found.items()] + [_similar_table(found[largest][OFF])],
        figures={
            "claims": claims,
            "wordings": len(truth.texts),
            "requests": len(asked),
            "embedding_s": embedding_s,
            "points_gained_at_equal_bytes": {str(size): gain for size, gain in gains.items()},
            "hit_percent": {f"{name}, {size}": one.hits for size, some in found.items() for name, one in some.items()},
            "bins": list(found[largest][OFF].bins),
        },
        goals=goals,
        notes=[
            f"{about}; each document is its first {CHARACTERS} characters. The wordings are made by rule from the claims"
            " (bench/paraphrases.py), not by people; vectors are MiniLM's, rows those of an exact search, not reranked.",
            f"{len(asked):,} requests, Zipf {EXPONENT:g} over the claims with drift and bursts, then one of six wordings."
            f" The first {WARM_UP:.0%} are not counted.",
            "Equal bytes: so many fewer entries that records and aliases together take what the records alone took.",
        ],
    )


# --- what is asked, and what is right -----------------------------------------------------------------------------------


def _truth(options: Options) -> tuple[Truth, int, str]:
    corpus = shipped(QUICK_DOCUMENTS) if options.is_quick else _part(whole(options.data, Path(__file__).parent))
    claims = [one["text"] for one in corpus.claims]
    texts = all_wordings(claims, SEED)
    embedder = SentenceTransformerEmbedder(ModelSettings(batch_size=32, threads=2))
    vectors = embedder.embed(texts)
    documents = embedder.embed([one["text"][:CHARACTERS] for one in corpus.documents])
    scores = vectors @ documents.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
    best = np.take_along_axis(scores, order, axis=1)
    about = f"{len(claims):,} claims of {corpus.name} in {len(texts):,} wordings, {len(corpus.documents):,} documents"
    return Truth(texts, vectors, order, best, corpus.documents), len(claims), about


def _part(corpus: Corpus) -> Corpus:
    """Return DOCUMENTS of a corpus: every judged one stays, others are drawn."""
    judged = {document_id for claim in corpus.claims for document_id in claim["judgments"]}
    others = [one for one in corpus.documents if str(one["id"]) not in judged]
    random.Random(SEED).shuffle(others)
    kept = {one["id"] for one in others[: DOCUMENTS - len(judged)]}
    some = [one for one in corpus.documents if one["id"] in kept or str(one["id"]) in judged]
    return Corpus(f"{corpus.name}, a part of its documents", some, corpus.claims)


# --- replays ------------------------------------------------------------------------------------------------------------


def _compared(truth: Truth, asked: Sequence[Asked], size: int) -> dict[str, Replayed]:
    off, whole_size = _replay(truth, asked, size, 0.0), _replay(truth, asked, size, 1.0)
    fewer = _fewer(size, off, whole_size)
    loose = _replay(truth, asked, size, 0.8)
    return {
        OFF: off,
        SAME_ROWS: whole_size,
        EQUAL_BYTES: _replay(truth, asked, fewer, 1.0),
        EIGHT_OF_TEN: _replay(truth, asked, _fewer(size, off, loose), 0.8),
    }


def _fewer(size: int, off: Replayed, one: Replayed) -> int:
    """Return with how many entries, and aliases in proportion, a store takes what `off` took."""
    return int(size * off.bytes / one.bytes)


def _replay(truth: Truth, asked: Sequence[Asked], entries: int, alias_overlap: float) -> Replayed:
    warm = int(len(asked) * WARM_UP)
    hits = alias_hits = other_rows = looks = puts = 0
    put_s = aliases = record_bytes = alias_bytes = 0.0
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "readers").mkdir()
        store = ResultStore(folder / "results", capacity=entries + 1)
        policy = CachePolicy(FOREVER_S, FOREVER_S, max_entries=entries, alias_overlap=alias_overlap)
        popularity = Popularity(max(PER_ENTRY * entries, CAPACITY))
        keeper = ResultKeeper(store, CounterFold(folder / "readers"), popularity, policy)
        for number, one in enumerate(asked):
            now, text = NOW + one.at_s, truth.texts[one.wording]
            entry = store.info(text, COLLECTION)
            if entry is None:
                popularity.track(text, COLLECTION, "", 0.0, now)
                began = time.thread_time()
                keeper.put(truth.result(one.wording, now), now)
                put_s, puts = put_s + time.thread_time() - began, puts + 1
            else:
                keeper.used(entry, 1, now)
                if number >= warm:
                    held = store.get(text, COLLECTION)
                    hits, alias_hits = hits + 1, alias_hits + bool(entry.alias_of)
                    own = truth.ids[one.wording, :TOP].tolist()
                    other_rows += held is None or list(held.ids) != own
            if number >= warm and number % SAMPLE == 0:
                looks += 1
                for info in store.entries():
                    aliases += bool(info.alias_of)
                    alias_bytes += info.size_bytes if info.alias_of else 0
                    record_bytes += 0 if info.alias_of else info.size_bytes
        report = keeper.similar.report()
        bins = keeper.similar.rows(COLLECTION)
        store.destroy()
    counted = (len(asked) - warm) / 100
    return Replayed(
        entries=entries,
        hits=hits / counted,
        alias_hits=alias_hits / counted,
        other_rows=other_rows / counted,
        aliases=aliases / looks,
        record_bytes=record_bytes / looks,
        alias_bytes=alias_bytes / looks,
        put_ms=1000 * put_s / puts,
        audits=report,
        bins=bins,
    )


# --- what is said -------------------------------------------------------------------------------------------------------


def _table(size: int, found: Mapping[str, Replayed]) -> Table:
    rows = [
        (
            name,
            str(one.entries),
            f"{one.hits:.2f}",
            f"{one.alias_hits:.2f}",
            f"{one.other_rows:.2f}",
            f"{one.aliases:.0f}",
            f"{one.bytes / 2**20:.2f}",
            f"{one.alias_bytes / one.aliases / 1024:.1f}" if one.aliases else "",
            f"{one.put_ms:.2f}",
        )
        for name, one in found.items()
    ]
    columns = (
        "",
        "entries",
        "hits %",
        "by aliases %",
        "other rows %",
        "aliases",
        "MiB",
        "KiB an alias",
        "CPU ms a miss",
    )
    return Table(f"{size} entries, or what takes as many bytes", columns, rows)


def _similar_table(off: Replayed) -> Table:
    rows = [
        (
            f"from {one['cosine_from']:g}",
            f"{one['audits']:g}",
            f"{100 * one['errors'] / one['audits']:.1f}" if one["audits"] else "",
            f"{100 * upper_bound(int(one['errors']), int(one['audits']), 0.05):.1f}",
            f"{100 * one['bound']:.1f}",
            "yes" if one["bound"] <= RATE else "no",
        )
        for one in off.bins
    ]
    columns = ("cosine", "audits", "wrong %", "at most, one look %", "certified at most %", f"served at {RATE:.0%}")
    return Table("Misses whose nearest entry's rows are not 8 of 10 of their own, by cosine", columns, rows)
