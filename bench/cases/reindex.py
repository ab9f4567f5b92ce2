"""`bench reindex`: what a re-index costs beside plain SentenceTransformer.encode, once more with 1 % changed, and as it grows.

rounds:  encode ─ reference loader ─ fast path   on one thread, on two (two collections, two workers; one collection alone)
growth:  fast path on SciFact and on 12,500, 25,000, 50,000 short texts ─▶ 1 % of the texts changed ─▶ again
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from morgan.background.cli.tasks import follow
from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.records import Point, TaskStatus
from morgan.background.workers.models import resolve

from ..daemon import Ended, Service, Settings, serving
from ..measure import interleaved
from ..plain_encode import Plain, plain
from ..report import Goal, Options, Result, Table
from ..scifact import Corpus, shipped, whole

NAME = "reindex"
SUMMARY = "documents/s against plain SentenceTransformer.encode, a second run with 1 % changed, growth, and memory"

MODEL = "all-MiniLM-L6-v2"
SIZE = 384
THREADS = (1, 2)
ROUNDS = 3
WARM_UP = 24  # documents
ROUND_DOCUMENTS, QUICK_DOCUMENTS = 200, 24
GROWTH, QUICK_GROWTH = (12_500, 25_000, 50_000), (250, 500)
CHANGED = 0.01
WORDS = (6, 12)  # of a short text
LOAD_AT_ONCE = 500  # points a call
SCROLLED = 256
LOADERS = ("reference", "fast")
ALONE = ", one collection"  # whose worker has as many threads as there are CPUs
WHOLE, WHOLE_S = 0.9, 15.0  # of the machine that the service may use before a round, and seconds to wait for that
LEAST_CPUS = (
    1.7  # granted to one collection: with less the machine had not two to give, and there is nothing to compare
)
VERDICT_S = 300.0  # the graph is made at the lowest priority
LOOK_S = 0.2
FLAT = np.full(SIZE, SIZE**-0.5, dtype=np.float32).tobytes()  # a placeholder: nobody depends on it

Arm = tuple[str, int]  # what computes, and on how many threads


@dataclass(frozen=True, slots=True)
class Full:
    """A collection's first re-index, and one after CHANGED of its texts were."""

    name: str
    points: int
    first: Ended
    second: Ended
    worker_peak_kib: int  # the most of any worker of the service so far
    owner_peak_kib: int

    @property
    def share_embedded(self) -> float:
        return int(self.second.result["documents_embedded"]) / self.points

    @property
    def share_of_time(self) -> float:
        return self.second.wall_s / self.first.wall_s


def run(options: Options) -> Result:
    quick = options.is_quick
    corpus = shipped(QUICK_DOCUMENTS) if quick else whole(options.data, Path.cwd())
    texts = [document["text"] for document in corpus.documents]
    some = random.Random(0).sample(texts, min(QUICK_DOCUMENTS if quick else ROUND_DOCUMENTS, len(texts)))
    with ExitStack() as open_until_end:
        plains = {n: open_until_end.enter_context(plain(resolve(MODEL), n)) for n in THREADS}
        services = {loader: open_until_end.enter_context(serving(_settings(loader, threads=1))) for loader in LOADERS}
        wide = {loader: open_until_end.enter_context(serving(_settings(loader, threads=0))) for loader in LOADERS}
        _await_verdict(wide["fast"])
        verdict = _await_verdict(services["fast"])
        names = (f"r{number}" for number in itertools.count())
        arms: dict[Arm, Callable[[], float]] = {}
        for n in THREADS:
            arms["encode", n] = partial(plains[n].seconds, some)
            for loader, service in services.items():
                arms[loader, n] = partial(_timed, service, names, some, n)
        granted: dict[str, list[float]] = {loader: [] for loader in LOADERS}
        for loader, service in wide.items():
            arms[loader + ALONE, max(THREADS)] = partial(_timed, service, names, some, 1, granted[loader])
        for service in services.values():  # each worker learns its batch size, and takes its pages
            _timed(service, names, some[:WARM_UP], max(THREADS))
        for service in wide.values():
            _timed(service, names, some[:WARM_UP], 1)
        rates: dict[Arm, list[float]] = {arm: [] for arm in arms}
        for arm in interleaved(list(arms), 1 if quick else ROUNDS):
            rates[arm].append(len(some) / arms[arm]())
        cosines = _cosines(plains[THREADS[0]], services["fast"], some)
        fast = services["fast"]
        grown = [_full(fast, "scifact", texts)]
        grown += [_full(fast, f"short{n}", short_texts(n, texts)) for n in (QUICK_GROWTH if quick else GROWTH)]
    return _result(corpus, len(some), rates, cosines, grown, verdict, granted, is_quick=quick)


def _settings(loader: str, threads: int) -> Settings:
    return {
        # open: this measures what the task does with a machine, not how it makes room for others
        "limits": {"active_hours_cpu_limit": 1.0, "quiet_hours_cpu_limit": 1.0, "memory_limit": 1.0},
        "schedule": {"auto": False},
        "service": {"workers": max(THREADS)},
        "model": {"loader": loader, "name": MODEL, "threads": threads},
    }


# --- what is done -------------------------------------------------------------------------------------------------------


def _await_verdict(service: Service) -> str:
    """Return the line of the log in which the graph is adopted or refused. Raises TimeoutError."""
    end_at = time.monotonic() + VERDICT_S
    while time.monotonic() < end_at:
        for line in service.log().splitlines():
            if "fast path of " in line and (" adopted: " in line or " refused: " in line):
                return line.partition("fast path of ")[2]
        time.sleep(LOOK_S)
    raise TimeoutError(f"no verdict on the graph of {MODEL} in {VERDICT_S:.0f} s\n{service.log_tail()}")


def _timed(
    service: Service,
    names: Iterator[str],
    texts: Sequence[str],
    collections: int,
    granted: list[float] | None = None,
) -> float:
    """Return how long a re-index of `texts` takes, dealt out to so many collections.

    How many CPUs each task was granted is added to `granted`.
    """
    parts = {next(names): texts[start::collections] for start in range(collections)}
    for name, part in parts.items():
        _load(service.client, name, part)
    service.settle()
    _await_budget(service)
    began_at = time.monotonic()
    ids = [_submit(service.client, name) for name in parts]
    for task_id in ids:
        record = follow(service.client, task_id)
        if record.status is not TaskStatus.COMPLETED:
            raise RuntimeError(f"{task_id} is {record.status.value}: {record.error_message}\n{service.log_tail()}")
    wall_s = time.monotonic() - began_at
    if granted is not None:
        ended = expect(messages.ExecutionList, service.client.request(messages.ListExecutions(limit=len(ids))))
        granted += [one.budget or 0.0 for one in ended.executions]
    return wall_s


def _await_budget(service: Service) -> None:
    """Return when the service may use the machine again, which another arm had; or after WHOLE_S."""
    end_at = time.monotonic() + WHOLE_S
    while service.client.status()["resources"]["budget"] < WHOLE and time.monotonic() < end_at:
        time.sleep(LOOK_S)


def _submit(client: Client, collection: str) -> str:
    request = messages.Submit(task_type="reindex", collection=collection, is_forced=True)
    return expect(messages.Submitted, client.request(request)).task_id


def _load(client: Client, name: str, texts: Sequence[str]) -> None:
    client.create_collection(name, SIZE)
    for start in range(0, len(texts), LOAD_AT_ONCE):
        some = texts[start : start + LOAD_AT_ONCE]
        client.upsert(name, [Point(id=start + n, payload={"text": text}, vector=FLAT) for n, text in enumerate(some)])


def _cosines(reference: Plain, service: Service, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return each document's cosine between what the service has stored and what `encode` gives."""
    name = "compared"
    _load(service.client, name, texts)
    service.run("reindex", name)
    stored = np.zeros((len(texts), SIZE), dtype=np.float64)
    after = None
    while True:
        page = expect(
            calls.Page,
            service.client.call(calls.Scroll(collection=name, after=after, limit=SCROLLED, with_vectors=True)),
        )
        for point in page.points:
            stored[int(point.id)] = np.frombuffer(point.vector or b"", dtype="<f4")
        if (after := page.next_after) is None:
            break
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "vectors.npy"
        reference.seconds(texts, saved)
        wanted = np.load(saved).astype(np.float64)
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(wanted, axis=1)
    return (stored * wanted).sum(axis=1) / lengths


def _full(service: Service, name: str, texts: Sequence[str]) -> Full:
    _load(service.client, name, texts)
    service.settle()
    first = service.run("reindex", name)
    chosen = random.Random(1).sample(range(len(texts)), max(round(CHANGED * len(texts)), 1))
    points = [Point(id=n, payload={"text": f"Revised: {texts[n]}"}, vector=FLAT) for n in chosen]
    for start in range(0, len(points), LOAD_AT_ONCE):
        service.client.upsert(name, points[start : start + LOAD_AT_ONCE])
    service.settle()
    second = service.run("reindex", name)
    usage = service.usage()
    peaks = {is_owner: max(u.peak_rss_kib for u in usage if _is(u.name, is_owner)) for is_owner in (False, True)}
    return Full(name, len(texts), first, second, peaks[False], peaks[True])


def _is(name: str, is_owner: bool) -> bool:
    return name == "owner" if is_owner else name.startswith("worker")


def short_texts(count: int, texts: Sequence[str]) -> list[str]:
    """Return as many different texts of a few words, of the words of `texts`: always the same."""
    chosen = random.Random(2)
    words = sorted({word for text in texts for word in text.split()})
    return [f"{n} " + " ".join(chosen.choices(words, k=chosen.randint(*WORDS))) for n in range(count)]


# --- what it says -------------------------------------------------------------------------------------------------------


def ratios(rates: Mapping[Arm, Sequence[float]], loader: str, threads: int) -> list[float]:
    """Return in each round how many times the documents/s of `encode` with as many threads."""
    return [mine / theirs for mine, theirs in zip(rates[loader, threads], rates["encode", threads], strict=True)]


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of the growth, by least squares in logarithms: 1 is linear, 2 quadratic."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _result(
    corpus: Corpus,
    sample: int,
    rates: Mapping[Arm, Sequence[float]],
    cosines: np.ndarray[Any, np.dtype[np.float64]],
    grown: Sequence[Full],
    verdict: str,
    granted: Mapping[str, Sequence[float]],
    *,
    is_quick: bool,
) -> Result:
    medians = {arm: statistics.median(ratios(rates, *arm)) for arm in rates if arm[0] != "encode"}
    synthetic = grown[1:]
    exponent = slope([one.points for one in synthetic], [one.first.wall_s for one in synthetic])
    memory = synthetic[-1].worker_peak_kib / synthetic[0].worker_peak_kib
    largest = synthetic[-1]
    why = "--quick has too few documents to say" if is_quick else ""
    both = max(THREADS)
    cpus = {loader: statistics.median(ones) if ones else 0.0 for loader, ones in granted.items()}

    def alone(loader: str, target: float) -> Goal:
        few = "" if cpus[loader] >= LEAST_CPUS else f"others used the machine: {cpus[loader]:.1f} CPUs were granted"
        return Goal.at_least(None if is_quick or few else medians[loader + ALONE, both], target, why or few)

    return Result(
        bench=NAME,
        tables=[
            _rates_table(rates),
            _growth_table(grown),
        ],
        figures={
            "corpus": corpus.name,
            "documents_a_round": sample,
            "documents_per_s": {f"{name}, {n}": [round(rate, 2) for rate in ones] for (name, n), ones in rates.items()},
            "ratios": {f"{loader}, {n}": round(value, 3) for (loader, n), value in medians.items()},
            "cpus_granted_to_one_collection": {
                loader: [round(one, 2) for one in ones] for loader, ones in granted.items()
            },
            "least_cosine": round(float(cosines.min()), 7),
            "verdict": verdict,
            "growth_exponent": round(exponent, 3),
            "growth": [_figures(one) for one in grown],
        },
        goals={
            "reference loader on two threads, times encode": Goal.at_least(
                None if is_quick else medians["reference", both], 0.97, why
            ),
            "fast path on two threads, times encode": Goal.at_least(
                None if is_quick else medians["fast", both], 1.7, why
            ),
            "reference loader, one collection alone on two CPUs, times encode": alone("reference", 0.97),
            "fast path, one collection alone on two CPUs, times encode": alone("fast", 1.7),
            "least cosine of the fast path's vectors with encode's": Goal.at_least(float(cosines.min()), 0.9999),
            "embedded again with 1 % changed, SciFact": Goal.at_most(
                None if is_quick else grown[0].share_embedded, 0.02, why
            ),
            "embedded again with 1 % changed, largest": Goal.at_most(largest.share_embedded, 0.02),
            "time of it, SciFact": Goal.at_most(None if is_quick else grown[0].share_of_time, 0.05, why),
            "time of it, largest": Goal.at_most(None if is_quick else largest.share_of_time, 0.05, why),
            "exponent of growth": Goal.at_most(None if is_quick else exponent, 1.1, why),
            "a worker's peak memory, largest against smallest": Goal.at_most(None if is_quick else memory, 1.1, why),
        },
        notes=[
            f"A round is {sample} abstracts of {corpus.name}. `encode` is SentenceTransformer.encode with its defaults and as"
            " many torch threads; ours are forced tasks, a thread each, on as many collections, or one collection alone"
            " with as many threads as there are CPUs, and their time is all of it: reading, embedding, writing, checkpoints.",
            "Growth: the fast path in one worker, one thread, on points with a placeholder for a vector.",
            f"The graph: {verdict}",
        ],
    )


def _rates_table(rates: Mapping[Arm, Sequence[float]]) -> Table:
    rows = []
    for (name, n), ones in rates.items():
        times = ratios(rates, name, n)
        rows.append(
            [
                f"{name}, {n} thread{'s' * (n > 1)}",
                f"{statistics.median(ones):.1f}",
                f"{min(ones):.1f} to {max(ones):.1f}",
                f"{statistics.median(times):.2f}",
            ]
        )
    return Table("Documents a second", ["", "median", "rounds", "times encode"], rows)


def _growth_table(grown: Sequence[Full]) -> Table:
    rows = [
        [
            one.name,
            f"{one.points:,}",
            f"{one.first.wall_s:.1f}",
            f"{one.points / one.first.wall_s:.0f}",
            f"{one.second.wall_s:.2f}",
            f"{100 * one.share_of_time:.1f} %",
            f"{100 * one.share_embedded:.2f} %",
            f"{one.worker_peak_kib / 1024:.0f}",
            f"{one.owner_peak_kib / 1024:.0f}",
        ]
        for one in grown
    ]
    columns = ["", "points", "first s", "points/s", "1 % s", "of first", "embedded", "worker MiB", "owner MiB"]
    return Table("A first re-index, and one after 1 % of the texts changed", columns, rows)


def _figures(one: Full) -> dict[str, Any]:
    return {
        "name": one.name,
        "points": one.points,
        "first_s": round(one.first.wall_s, 2),
        "first_cpu_s": {name: round(used, 2) for name, used in one.first.cpu_s.items()},
        "second_s": round(one.second.wall_s, 3),
        "second_cpu_s": {name: round(used, 2) for name, used in one.second.cpu_s.items()},
        "embedded_again": int(one.second.result["documents_embedded"]),
        "worker_peak_mib": round(one.worker_peak_kib / 1024, 1),
        "owner_peak_mib": round(one.owner_peak_kib / 1024, 1),
    }
