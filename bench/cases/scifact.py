"""`bench scifact`: a full re-index and a rerank through the daemon, and what both did to nDCG@10.

titles' vectors ─▶ search ─▶ re-index ─▶ search ─▶ rerank ─▶ read
                   (stale)               (dense)             (reranked): lists read back from shared memory
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morgan.background.data import Document
from morgan.background.ipc import calls, messages, wire
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import Point, PointId
from morgan.background.workers.quality import Difference, ndcg, paired_bootstrap

from ..daemon import Ended, Service, Settings, Usage, as_maps, serving
from ..measure import Latency, latency
from ..report import Goal, Options, Result, Table
from ..scifact import Corpus, shipped, whole

NAME = "scifact"
SUMMARY = "full re-index and rerank of SciFact through the daemon: nDCG@10 before and after, rates, memory, latencies"

COLLECTION = "scifact"
K = 10
SETTINGS: Settings = {
    # open: this measures what the tasks do with a machine, not how they make room for others
    "limits": {"active_hours_cpu_limit": 1.0, "quiet_hours_cpu_limit": 1.0, "memory_limit": 1.0},
    "schedule": {"auto": False},
}
BATCH = 64  # documents a call while loading
FRAME_ROOM = 1024  # bytes of a Submit besides its queries
REPEATED = 200  # fewer than a reader keeps decoded
PUBLISH_S = 30.0  # from the owner's answer to the entry in shared memory, on a busy machine
LOOK_S = 0.002
RERANKED_CALLS = 3  # reranked searches through the owner: seconds each
QUICK_DOCUMENTS = 120  # a re-index of some ten seconds
STALE, DENSE, RERANKED = "vectors of titles alone", "dense, after the re-index", "reranked"

Lists = list[list[PointId]]  # a ranking for each claim


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one query each. `owner` embeds and searches, `reranking_owner` reranks too; the others read shared memory."""

    owner: Latency
    reranking_owner: Latency
    first: Latency
    repeated: Latency


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured, before anything is said of it."""

    ready_s: float
    load_s: float
    lists: Mapping[str, Lists]
    reindex: Ended
    reranks: Sequence[Ended]
    latencies: Latencies
    usage: list[Usage]


def run(options: Options) -> Result:
    corpus = shipped(QUICK_DOCUMENTS) if options.is_quick else whole(options.data, Path.cwd())
    began_at = time.monotonic()
    with serving(SETTINGS) as service:
        service.client.create_collection(COLLECTION)  # answered when the owner has its model
        found = _measure(service, corpus, time.monotonic() - began_at)
    return _result(corpus, found, is_quick=options.is_quick)


# --- what is done -------------------------------------------------------------------------------------------------------


def _measure(service: Service, corpus: Corpus, ready_s: float) -> Run:
    client, texts = service.client, [claim["text"] for claim in corpus.claims]
    began_at = time.monotonic()
    load_titles(client, corpus.documents)
    load_s = time.monotonic() - began_at
    record_judgments(client, corpus)
    lists = {STALE: _searched(client, texts)[0]}
    # what is not cached is not computed again after the re-index, in the middle of what is timed here
    client.request(messages.Invalidate(collection=COLLECTION))
    reindex = service.run("reindex", COLLECTION)
    service.settle()
    lists[DENSE], owner = _searched(client, texts)
    service.settle()
    began_at = time.time()
    reranks = [service.run("rerank", COLLECTION, {"queries": some}) for some in in_frames(texts)]
    lists[RERANKED] = _read_back(client, texts, began_at, is_reranked=True)
    first, repeated = _read_timed(client, texts)
    usage = service.usage()  # before the owner reranks too, which it does not do for the tasks
    _, reranking_owner = _searched(client, texts[:RERANKED_CALLS], is_reranked=True)
    latencies = Latencies(owner, reranking_owner, first, repeated)
    return Run(ready_s, load_s, lists, reindex, reranks, latencies, usage)


def load_titles(client: Client, documents: Sequence[Document]) -> None:
    """Insert the documents with the vectors of their titles: an index made before the full texts were to be searched.

    They carry no stamp, as points of another program do not: the re-index embeds every one of them.
    """
    for some in batches(documents, BATCH):
        found = expect(calls.Embedded, client.call(calls.Embed(texts=tuple(one["title"] for one in some))))
        vectors = np.frombuffer(found.vectors, dtype="<f4").reshape(found.count, found.size)
        client.upsert(COLLECTION, [point_of(one, row) for one, row in zip(some, vectors, strict=True)])


def point_of(document: Document, vector: np.ndarray[Any, np.dtype[np.float32]]) -> Point:
    payload = {key: document[key] for key in ("title", "text", "source")}
    return Point(id=document["id"], payload=payload, vector=vector.tobytes())


def record_judgments(client: Client, corpus: Corpus) -> None:
    for claim in corpus.claims:
        for document_id, grade in claim["judgments"].items():
            client.request(
                messages.Feedback(query=claim["text"], collection=COLLECTION, document_id=document_id, relevance=grade)
            )


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def in_frames(texts: Iterable[str]) -> list[list[str]]:
    """Return `texts` in groups that each fit a request."""
    groups: list[list[str]] = [[]]
    used = FRAME_ROOM
    for text in texts:
        size = len(text.encode()) + 5  # the header msgpack puts before a text
        if used + size > wire.MAX_CLIENT_BYTES:
            groups.append([])
            used = FRAME_ROOM
        groups[-1].append(text)
        used += size
    return groups


def _searched(client: Client, texts: Sequence[str], *, is_reranked: bool = False) -> tuple[Lists, Latency]:
    """Let the owner compute every query; return the lists as they then are in shared memory, and how long it took."""
    samples, began_at = [], time.time()
    for text in texts:
        asked = time.perf_counter_ns()
        call = calls.SearchText(collection=COLLECTION, text=text, limit=K, is_reranked=is_reranked)
        client.call(call)
        samples.append(time.perf_counter_ns() - asked)
    return _read_back(client, texts, began_at, is_reranked=is_reranked), latency(samples)


def _read_back(client: Client, texts: Sequence[str], since: float, *, is_reranked: bool) -> Lists:
    """Return each query's ids from shared memory, computed after `since`. Raises TimeoutError if one does not come."""
    lists, end_at = [], time.monotonic() + PUBLISH_S
    for text in texts:
        while True:
            held = client.reader.get(text, COLLECTION)
            if held is not None and held.computed_at >= since and bool(len(held.rerank_scores)) == is_reranked:
                lists.append(list(held.ids))
                break
            if time.monotonic() > end_at:
                raise TimeoutError(f"no result of {text!r} reached shared memory within {PUBLISH_S:.0f} s")
            time.sleep(LOOK_S)
    return lists


def _read_timed(client: Client, texts: Sequence[str]) -> tuple[Latency, Latency]:
    """Return how long a first and a repeated read of everything take, through a reader that has decoded nothing yet."""
    reader = ResultReader(client.runtime.results, counters_dir=client.runtime.readers)
    reader.get("", COLLECTION)  # opens and maps the file: once a process, not part of a lookup
    try:
        first = _timed_reads(reader, texts)
        some = texts[:REPEATED]
        _timed_reads(reader, some)
        repeated = array("q")
        for _ in range(20):
            repeated.extend(_timed_reads(reader, some))
    finally:
        reader.close()
    return latency(first), latency(repeated)


def _timed_reads(reader: ResultReader, texts: Sequence[str]) -> array[int]:
    now, samples = time.perf_counter_ns, array("q")
    for text in texts:
        began = now()
        found = reader.get(text, COLLECTION)
        if found is None:
            raise LookupError(f"{text!r} is not in shared memory any more")
        _ = found.ids, found.scores, found.rerank_scores, found.contents, found.sources, found.metadata
        samples.append(now() - began)
    return samples


# --- what it says -------------------------------------------------------------------------------------------------------


def per_query(lists: Lists, corpus: Corpus) -> list[float]:
    """Return nDCG@10 of each claim's list."""
    return [ndcg(ids, claim["judgments"], K) for ids, claim in zip(lists, corpus.claims, strict=True)]


def by_ir_measures(lists: Lists, corpus: Corpus) -> float | None:
    """Return the mean nDCG@10 as ir-measures (trec_eval) computes it; None where it is not installed."""
    if importlib.util.find_spec("ir_measures") is None:
        return None
    import ir_measures

    measure = ir_measures.nDCG @ K
    judged = [
        ir_measures.Qrel(str(number), document, int(grade))
        for number, claim in enumerate(corpus.claims)
        for document, grade in claim["judgments"].items()
    ]
    ranked = [
        ir_measures.ScoredDoc(str(number), str(document), float(-rank))
        for number, ids in enumerate(lists)
        for rank, document in enumerate(ids)
    ]
    return float(ir_measures.calc_aggregate([measure], judged, ranked)[measure])


def _result(corpus: Corpus, found: Run, *, is_quick: bool) -> Result:
    scores = {name: per_query(lists, corpus) for name, lists in found.lists.items()}
    means = {name: statistics.fmean(ones) for name, ones in scores.items()}
    gains = {
        "re-index": paired_bootstrap(scores[STALE], scores[DENSE]),
        "rerank": paired_bootstrap(scores[DENSE], scores[RERANKED]),
    }
    checked = {name: by_ir_measures(lists, corpus) for name, lists in found.lists.items()}
    figures = _figures(corpus, found, means, gains, checked)
    peers = {"ir-measures": importlib.metadata.version("ir-measures")} if checked[DENSE] is not None else {}
    return Result(
        bench=NAME,
        tables=[
            _quality_table(means, gains, checked, found),
            _work_table(figures),
            _latency_table(found.latencies),
            _process_table(found.usage),
        ],
        figures=figures,
        goals=_goals(means, gains, checked, found, is_quick=is_quick),
        notes=_notes(corpus, found, is_quick=is_quick, is_checked=bool(peers)),
        versions=peers,
    )


def _goals(
    means: Mapping[str, float],
    gains: Mapping[str, Difference],
    checked: Mapping[str, float | None],
    found: Run,
    *,
    is_quick: bool,
) -> dict[str, Goal]:
    quick = "--quick works on the corpus that ships with the package" if is_quick else ""
    apart = max((abs(means[name] - other) for name, other in checked.items() if other is not None), default=None)
    supervisor_mib = next(one.rss_kib for one in found.usage if one.name == "supervisor") / 1024
    return {
        "dense nDCG@10 after re-index": Goal.at_least(None if is_quick else means[DENSE], 0.64, quick),
        "reranked nDCG@10": Goal.at_least(None if is_quick else means[RERANKED], 0.70, quick),
        "gain of the rerank, low end of its 95 % interval": Goal.at_least(
            None if is_quick else gains["rerank"].low, 0, quick
        ),
        "nDCG@10: largest distance from ir-measures": Goal.at_most(
            apart, 1e-4, "" if apart is not None else "not installed: pip install '.[bench]' brings ir-measures"
        ),
        "supervisor's resident memory in MiB, shared results included": Goal.at_most(supervisor_mib, 60),
    }


def _task_figures(ended: Sequence[Ended], done_key: str) -> dict[str, Any]:
    """Return the figures of tasks of one kind; seconds and CPU seconds are sums over them."""
    done = sum(int(one.result[done_key]) for one in ended)
    seconds = sum(float(one.result["processing_time_seconds"]) for one in ended)
    cpu_s = sum(one.execution.cpu_s for one in ended)
    beside_s: dict[str, float] = {}
    for one in ended:
        for name, used in one.cpu_s.items():
            beside_s[name] = beside_s.get(name, 0.0) + used
    return {
        "tasks": len(ended),
        "done": done,
        "seconds": round(seconds, 2),
        "wall_s": round(sum(one.wall_s for one in ended), 2),
        "cpu_s": round(cpu_s, 2),
        "per_s": round(done / seconds, 3),
        "per_cpu_s": round(done / cpu_s, 3),
        "core_share": round(
            cpu_s / sum(one.wall_s for one in ended), 3
        ),  # far below 1: others were at work, and the worker gave way
        "cpu_s_by_process": {name: round(used, 2) for name, used in beside_s.items()},
    }


def _figures(
    corpus: Corpus,
    found: Run,
    means: Mapping[str, float],
    gains: Mapping[str, Difference],
    checked: Mapping[str, float | None],
) -> dict[str, Any]:
    ended = {"re-index": [found.reindex], "rerank": found.reranks}
    lat = found.latencies
    return {
        "corpus": corpus.name,
        "documents": len(corpus.documents),
        "claims": len(corpus.claims),
        "judgments": corpus.judgments,
        "ready_s": round(found.ready_s, 2),
        "load_s": round(found.load_s, 2),
        "ndcg_at_10": {name: round(mean, 5) for name, mean in means.items()},
        "gains": {name: {key: round(v, 5) for key, v in asdict(gain).items()} for name, gain in gains.items()},
        "ir_measures": {name: None if value is None else round(value, 5) for name, value in checked.items()},
        "as_the_tasks_measured": {
            name: {"before": _weighted(tasks, "quality_before"), "after": _weighted(tasks, "quality_after")}
            for name, tasks in ended.items()
        },
        "re-index": _task_figures([found.reindex], "documents_embedded"),
        "rerank": _task_figures(found.reranks, "queries_processed") | {"reranker": found.reranks[0].result["reranker"]},
        "latency": {name: asdict(getattr(lat, name)) for name in ("owner", "reranking_owner", "first", "repeated")},
        "workers": sum(one.name.startswith("worker") for one in found.usage),
        "processes": as_maps(found.usage),
    }


def _weighted(ended: Sequence[Ended], key: str) -> float | None:
    """Return the mean of a score over tasks, by the queries each judged; None where none was measured."""
    measured = [(one.result[key], one.result.get("judged_queries", 1)) for one in ended if one.result[key] is not None]
    total = sum(count for _, count in measured)
    return round(sum(score * count for score, count in measured) / total, 5) if total else None


def _quality_table(
    means: Mapping[str, float], gains: Mapping[str, Difference], checked: Mapping[str, float | None], found: Run
) -> Table:
    gain_of = {STALE: None, DENSE: gains["re-index"], RERANKED: gains["rerank"]}
    task_of = {
        STALE: _weighted([found.reindex], "quality_before"),
        DENSE: _weighted([found.reindex], "quality_after"),
        RERANKED: _weighted(found.reranks, "quality_after"),
    }
    rows = []
    for name, mean in means.items():
        gain, other, task = gain_of[name], checked[name], task_of[name]
        rows.append(
            (
                name,
                f"{mean:.4f}",
                "" if gain is None else f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
                "-" if task is None else f"{task:.4f}",
                "-" if other is None else f"{other:.4f}",
            )
        )
    return Table(
        "nDCG@10 of the lists in shared memory; gain over the line above with its 95 % interval (paired bootstrap)",
        ("order", "nDCG@10", "gain", "the task said", "ir-measures"),
        rows,
    )


def _work_table(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, unit in (("re-index", "documents"), ("rerank", "queries")):
        one = figures[name]
        beside = one["cpu_s_by_process"]
        rows.append(
            (
                f"{name}, {one['done']} {unit}",
                f"{one['seconds']:.1f}",
                f"{one['per_s']:.2f}",
                f"{one['cpu_s']:.1f}",
                f"{one['per_cpu_s']:.2f}",
                f"{one['core_share']:.2f}",
                f"{beside['supervisor']:.2f}",
                f"{beside['owner']:.2f}",
            )
        )
    return Table(
        "What the tasks did; CPU s of the worker (loading its model included), the supervisor and the owner meanwhile",
        (
            "task",
            "seconds",
            "per second",
            "worker CPU s",
            "per CPU s",
            "share of a core",
            "supervisor CPU s",
            "owner CPU s",
        ),
        rows,
    )


def _latency_table(found: Latencies) -> Table:
    rows = [
        ("owner: embed and search", found.owner),
        ("owner: embed, search, rerank", found.reranking_owner),
        ("shared memory, first read", found.first),
        ("shared memory, repeated read", found.repeated),
    ]
    return Table(
        "One claim's 10 results, everything decoded; milliseconds",
        ("from", "p50", "p99", "lookups"),
        [(name, f"{one.p50_ns / 1e6:.4g}", f"{one.p99_ns / 1e6:.4g}", str(one.count)) for name, one in rows],
    )


def _process_table(found: Sequence[Usage]) -> Table:
    def mib(kib: int | None) -> str:
        return "-" if kib is None else f"{kib / 1024:.0f}"

    return Table(
        "Processes when all was done; MiB",
        ("process", "RSS", "PSS", "peak RSS", "threads", "CPU s"),
        [
            (one.name, mib(one.rss_kib), mib(one.pss_kib), mib(one.peak_rss_kib), str(one.threads), f"{one.cpu_s:.1f}")
            for one in found
        ],
    )


def _notes(corpus: Corpus, found: Run, *, is_quick: bool, is_checked: bool) -> list[str]:
    workers = sum(one.name.startswith("worker") for one in found.usage)
    notes = [
        f"{corpus.name}: {len(corpus.documents):,} documents, {len(corpus.claims)} claims, {corpus.judgments} judgments;"
        " nothing was fitted to them",
        f"{workers} task worker{'s' if workers != 1 else ''} with one torch thread each, pinned, niced and SCHED_IDLE;"
        " tasks forced and limits at 1.0; one task at a time works on a collection",
        f"the owner answered after {found.ready_s:.1f} s (its model loaded); documents with the vectors of their titles"
        f" were loaded in {found.load_s:.1f} s",
        "the re-index's seconds include its two measurements, the claims searched exactly before and after",
        "a share of a core far below 1 says that others were at work and the worker gave way: then only per CPU s compares",
        "the goals for nDCG@10 are sanity checks: a figure below them says that something broke on the way",
        f"the rerank was handed in as {len(found.reranks)} task{'s' if len(found.reranks) != 1 else ''}:"
        f" a request holds {wire.MAX_CLIENT_BYTES // 1024} KiB",
        "SciFact: Wadden et al. 2020; claims CC BY 4.0, abstracts ODC-By 1.0",
    ]
    if is_quick:
        notes.insert(
            0, "--quick: the corpus that ships with the package, small and easy; its figures say that it runs, not more"
        )
    if not is_checked:
        notes.append("ir-measures is not installed: pip install '.[bench]' brings it, and the scores are checked by it")
    return notes
