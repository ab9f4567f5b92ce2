"""`bench rerank`: what reranking costs beside plain CrossEncoder.predict, and what an application waits for it, before and after.

rounds of pairs, a process a way: plain │ together │ paced │ fast ...
the service: index ─▶ search and rerank at query time ─▶ rerank task ─▶ read from shared memory
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morgan.background.data import Document
from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.reader import ResultReader
from morgan.background.workers.bm25 import bm25

from ..daemon import Service, Settings, serving
from ..measure import Latency, interleaved, latency
from ..pairs import Question, Scored, scorer
from ..report import Goal, Options, Result, Table
from ..scifact import Corpus, shipped, whole
from ..untrained import untrained

NAME = "rerank"
SUMMARY = "reranking beside plain CrossEncoder.predict: pairs a second, the first result, latency before and after"

COLLECTION = "reranked"
PLAIN = "plain"
WAYS = {
    PLAIN: "CrossEncoder.predict, a query at a time",
    "together": "ours, several queries at once",
    "paced": "ours as in a task, cut for pauses",
    "fast": "fast path, several queries at once",
    "fast paced": "fast path as in a task",
}
THREADS = 1  # as a worker has, and plain the same: what compares is the computing, not how many cores it takes
K = 10
LOOK_S = 0.002
PUBLISH_S = 300.0  # for each query of a task: a worker under SCHED_IDLE gets little of a busy machine
VERDICT_S = 900.0  # until the graphs of both models are made and judged, at the lowest priority
GRAPHS = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    documents: int
    candidates: int
    queries: int  # a round
    rounds: int
    searches: int  # through the owner, reranked at query time
    task_queries: int


FULL = Sizes(documents=400, candidates=50, queries=3, rounds=3, searches=5, task_queries=8)
QUICK = Sizes(documents=40, candidates=10, queries=2, rounds=1, searches=2, task_queries=3)


@dataclass(frozen=True, slots=True)
class Served:
    """What an application sees: latencies of one query, and the seconds from a task's handing in to its results."""

    at_query_time: Latency
    vector_search: Latency
    first_read: Latency
    repeated_read: Latency
    first_result_s: float
    all_results_s: float
    reranker: str


def run(options: Options) -> Result:
    sizes = QUICK if options.is_quick else FULL
    corpus = shipped(sizes.documents) if options.is_quick else whole(options.data, Path.cwd())
    documents = part_of(corpus, sizes)
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        model = options.model or untrained(Path(folder))
        rounds = _rounds(str(model), documents, corpus, sizes)
        with serving(_settings(str(model), sizes)) as service:
            served = _served(service, documents, corpus, sizes)
        return _result(corpus, len(documents), model.name, sizes, rounds, served, is_quick=options.is_quick)


def _settings(model: str, sizes: Sizes) -> Settings:
    return {
        # open: this measures what the task does with a machine, not how it makes room for others
        "limits": {"active_hours_cpu_limit": 1.0, "quiet_hours_cpu_limit": 1.0, "memory_limit": 1.0},
        "schedule": {"auto": False},
        "service": {"workers": 1},
        "reranker": {"cross_encoder": model, "candidates": sizes.candidates},
    }


def part_of(corpus: Corpus, sizes: Sizes) -> list[Document]:
    """Return about so many documents: those judged for the claims that are used, and others in the corpus's order."""
    used = corpus.claims[: sizes.task_queries + sizes.searches]
    judged = {document_id for claim in used for document_id in claim["judgments"]}
    wanted = [one for one in corpus.documents if str(one["id"]) in judged]
    others = [one for one in corpus.documents if str(one["id"]) not in judged]
    return (wanted + others)[: sizes.documents]


# --- pairs --------------------------------------------------------------------------------------------------------------


def _rounds(model: str, documents: Sequence[Document], corpus: Corpus, sizes: Sizes) -> dict[str, list[Scored]]:
    """Score each round's queries in every way; each round has its own queries."""
    texts = [document["text"] for document in documents]
    claims = [claim["text"] for claim in corpus.claims]
    warm_up, *rounds = (
        questions_of([claims[(start + n) % len(claims)] for n in range(sizes.queries)], texts, sizes.candidates)
        for start in range(0, (sizes.rounds + 1) * sizes.queries, sizes.queries)
    )
    found: dict[str, list[Scored]] = {way: [] for way in WAYS}
    with ExitStack() as open_until_end:
        graphs = open_until_end.enter_context(tempfile.TemporaryDirectory(prefix="bench-graphs-"))
        scorers = {way: open_until_end.enter_context(scorer(way, model, THREADS, graphs)) for way in WAYS}
        for one in scorers.values():  # loads, and learns its batch size
            one.score(warm_up[:1])
        for way in interleaved(list(WAYS), sizes.rounds):
            found[way].append(scorers[way].score(rounds[len(found[way])]))
    return found


def questions_of(claims: Sequence[str], texts: Sequence[str], count: int) -> list[Question]:
    """Return each claim with the `count` texts that BM25 finds for it: candidates as alike as a search's."""
    return [(claim, [texts[row] for row in np.argsort(-bm25(claim, texts), kind="stable")[:count]]) for claim in claims]


def largest_difference(rounds: Mapping[str, Sequence[Scored]]) -> float:
    """Return how far a score of ours is from plain predict's at most."""
    return max(
        float(np.abs(a - b).max())
        for way in rounds
        for theirs, mine in zip(rounds[PLAIN], rounds[way], strict=True)
        for a, b in zip(theirs.scores, mine.scores, strict=True)
    )


def times_plain(rounds: Mapping[str, Sequence[Scored]], way: str) -> float:
    """Return how many times plain predict's pairs a CPU second: the median of the rounds' ratios."""
    return statistics.median(theirs.cpu_s / mine.cpu_s for theirs, mine in zip(rounds[PLAIN], rounds[way], strict=True))


# --- the service --------------------------------------------------------------------------------------------------------


def _served(service: Service, documents: Sequence[Document], corpus: Corpus, sizes: Sizes) -> Served:
    client, texts = service.client, [claim["text"] for claim in corpus.claims]
    client.create_collection(COLLECTION)
    for start in range(0, len(documents), 32):
        client.upsert(COLLECTION, [dict(one) for one in documents[start : start + 32]])
    service.settle()
    if sizes is FULL:  # else the making of graphs is measured as well
        _await_graphs(service)
    asked, tasked = texts[: sizes.searches], texts[sizes.searches : sizes.searches + sizes.task_queries]
    _searches(client, ["the first search loads the models"], is_reranked=True)
    vector_search = _searches(client, asked, is_reranked=False)
    at_query_time = _searches(client, asked, is_reranked=True)
    first_s, all_s, reranker = _task(service, tasked)
    first_read, repeated_read = _reads(client, tasked)
    return Served(latency(at_query_time), latency(vector_search), first_read, repeated_read, first_s, all_s, reranker)


def _await_graphs(service: Service) -> None:
    """Return when the graphs of the embedding model and of the cross-encoder are judged. Raises TimeoutError."""
    end_at = time.monotonic() + VERDICT_S
    while (log := service.log()).count(" adopted: ") + log.count(" refused: ") < GRAPHS:
        if time.monotonic() > end_at:
            raise TimeoutError(f"no verdict on the graphs in {VERDICT_S:.0f} s\n{service.log_tail()}")
        time.sleep(0.25)


def _searches(client: Client, texts: Sequence[str], *, is_reranked: bool) -> list[int]:
    """Let the owner search, and rerank, while the application waits; return the nanoseconds of each."""
    took = []
    for text in texts:
        began = time.perf_counter_ns()
        client.call(calls.SearchText(collection=COLLECTION, text=text, limit=K, is_reranked=is_reranked))
        took.append(time.perf_counter_ns() - began)
    return took


def _task(service: Service, texts: Sequence[str]) -> tuple[float, float, str]:
    """Hand in a rerank of these queries. Return the seconds until the first and the last result can be read, and by what."""
    client, began_at = service.client, time.monotonic()
    request = messages.Submit(
        task_type="rerank", collection=COLLECTION, params={"queries": list(texts)}, is_forced=True
    )
    task_id = expect(messages.Submitted, client.request(request)).task_id
    left, seen_s = set(texts), []
    while left:
        for text in list(left):
            if (held := client.reader.get(text, COLLECTION)) is not None and len(held.rerank_scores):
                left.remove(text)
                seen_s.append(time.monotonic() - began_at)
        if time.monotonic() - began_at > PUBLISH_S * len(texts):
            raise TimeoutError(f"{len(left)} results did not come\n{service.log_tail()}")
        time.sleep(LOOK_S)
    service.settle()
    task = expect(messages.TaskReply, client.request(messages.GetTask(task_id=task_id))).task
    return seen_s[0], seen_s[-1], str((task.result or {})["reranker"])


def _reads(client: Client, texts: Sequence[str]) -> tuple[Latency, Latency]:
    """Read every result, all of it, through a reader that has decoded nothing yet; then again and again."""
    reader = ResultReader(client.runtime.results, counters_dir=client.runtime.readers)
    reader.get("", COLLECTION)  # opens and maps the file: once a process, not part of a lookup
    try:
        first = [_read(reader, text) for text in texts]
        repeated = [_read(reader, text) for _ in range(100) for text in texts]
    finally:
        reader.close()
    return latency(first), latency(repeated)


def _read(reader: ResultReader, text: str) -> int:
    began = time.perf_counter_ns()
    found = reader.get(text, COLLECTION)
    if found is None or not len(found.rerank_scores):
        raise LookupError(f"{text!r} is not in shared memory with its rerank scores")
    _ = found.ids, found.scores, found.rerank_scores, found.contents, found.sources, found.metadata
    return time.perf_counter_ns() - began


# --- what it says -------------------------------------------------------------------------------------------------------


def _result(
    corpus: Corpus,
    documents: int,
    model: str,
    sizes: Sizes,
    rounds: Mapping[str, Sequence[Scored]],
    served: Served,
    *,
    is_quick: bool,
) -> Result:
    pairs = sizes.queries * sizes.candidates
    ratios = {way: times_plain(rounds, way) for way in WAYS}
    best = max(ratio for way, ratio in ratios.items() if way != PLAIN)
    why = "--quick has too few pairs to say" if is_quick else ""
    gain = served.at_query_time.p50_ns / served.first_read.p50_ns
    figures: dict[str, Any] = {
        "corpus": corpus.name,
        "documents": documents,
        "model": model,
        "candidates": sizes.candidates,
        "pairs_a_round": pairs,
        "pairs_per_cpu_s": {way: [round(pairs / one.cpu_s, 2) for one in ones] for way, ones in rounds.items()},
        "pairs_per_s": {way: [round(pairs / one.seconds, 2) for one in ones] for way, ones in rounds.items()},
        "times_plain": {way: round(ratio, 3) for way, ratio in ratios.items()},
        "score_spread": round(float(np.std(np.concatenate(rounds[PLAIN][0].scores))), 4),
        "largest_score_difference": largest_difference(rounds),
        "first_result_s": round(served.first_result_s, 3),
        "all_results_s": round(served.all_results_s, 3),
        "task_queries": sizes.task_queries,
        "latency_ms": {
            "search and rerank at query time": served.at_query_time.p50_ns / 1e6,
            "vector search at query time": served.vector_search.p50_ns / 1e6,
            "from the store, first read": served.first_read.p50_ns / 1e6,
            "from the store, repeated": served.repeated_read.p50_ns / 1e6,
        },
        "times_faster_first_read": round(gain),
        "times_faster_repeated": round(served.at_query_time.p50_ns / served.repeated_read.p50_ns),
    }
    return Result(
        bench=NAME,
        tables=[_pairs_table(rounds, ratios, sizes), _latency_table(served)],
        figures=figures,
        goals={
            "pairs a CPU second, times plain predict": Goal.at_least(None if is_quick else best, 1.3, why),
            "as in a task, times plain predict": Goal.at_least(None if is_quick else ratios["fast paced"], 1.3, why),
            "largest difference of a score from plain predict's": Goal.at_most(largest_difference(rounds), 1e-4),
        },
        notes=[
            f"the cross-encoder is {model}, {THREADS} thread each way; {corpus.name}, {documents} documents, the"
            f" {sizes.candidates} best of each claim by BM25",
            "a round is its own queries, the ways in turn; CPU seconds compare where others use the machine as well",
            f"a rerank task of {sizes.task_queries} queries had its first result in shared memory after"
            f" {served.first_result_s:.1f} s, and all of them after {served.all_results_s:.1f} s",
            "SciFact: Wadden et al. 2020; claims CC BY 4.0, abstracts ODC-By 1.0",
        ],
    )


def _pairs_table(rounds: Mapping[str, Sequence[Scored]], ratios: Mapping[str, float], sizes: Sizes) -> Table:
    pairs = sizes.queries * sizes.candidates
    rows = []
    for way, ones in rounds.items():
        per_cpu_s = [pairs / one.cpu_s for one in ones]
        median = statistics.median(per_cpu_s)
        rows.append(
            (
                WAYS[way],
                f"{median:.1f}",
                f"{min(per_cpu_s):.1f} to {max(per_cpu_s):.1f}",
                f"{median / sizes.candidates:.2f}",
                f"{statistics.median(pairs / one.seconds for one in ones):.1f}",
                f"{ratios[way]:.2f}",
            )
        )
    columns = ("", "candidates / CPU s", "rounds", "queries / CPU s", "candidates / s", "times plain")
    return Table(f"Scoring {sizes.candidates} candidates a query, {sizes.queries} queries a round", columns, rows)


def _latency_table(served: Served) -> Table:
    rows = [
        (name, f"{one.p50_ns / 1e6:.4g}", f"{one.p99_ns / 1e6:.4g}", str(one.count))
        for name, one in (
            ("before: search and rerank at query time", served.at_query_time),
            ("before: vector search alone", served.vector_search),
            ("after: from the store, first read", served.first_read),
            ("after: from the store, repeated read", served.repeated_read),
        )
    ]
    return Table(f"One query's {K} reranked results; milliseconds", ("", "p50", "p99", "queries"), rows)
