"""Owns `demo`: the whole service on the corpus that ships with the package, in a folder of its own.

titles embedded ─▶ schedule, re-index the full texts ─▶ searches counted ─▶ warm, rerank ─▶ read in a second process
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import Query, documents, queries
from ..ipc import calls, launch, messages
from ..ipc.client import UPSERT_BATCH, Client, expect
from ..ipc.errors import MorganError
from ..ipc.paths import RuntimePaths
from ..ipc.records import Point, TaskRecord, TaskStatus
from ..spawned import SpawnedLane
from ..supervisor.config import load
from . import render
from .progress import Progress
from .session import print_json
from .tasks import follow

COLLECTION = "morgan_knowledge"
SEARCHES = 3  # of each query: what cache.min_frequency asks for before it counts as popular
SEARCHED = 20  # queries searched through the client; the application makes the other searches itself and reports them
PATIENCE_S = 30.0  # a machine that has nothing to spare for so long is busy: the demo then goes on without the budget
START_S = 120.0  # the store owner loads the model: 10 s here, more on a slow disk

CONFIG = """# The demo's own: defaults, but for the automatic schedule.
[schedule]
auto = false
"""


@dataclass(slots=True)
class Budget:
    """What the task workers used while tasks ran, beside what they were granted; shares of the machine."""

    used: list[float] = field(default_factory=list)
    granted: list[float] = field(default_factory=list)
    was_forced: bool = False

    def note(self, client: Client) -> None:
        resources = expect(messages.Report, client.request(messages.Resources())).report
        self.used.append(resources["own_cpu"])
        self.granted.append(resources["budget"])

    def summary(self) -> dict[str, Any]:
        count = max(len(self.used), 1)
        return {
            "was_kept": None if self.was_forced else sum(self.used) <= sum(self.granted) + 0.03 * count,
            "used_share": sum(self.used) / count,
            "granted_share": sum(self.granted) / count,
            "readings": len(self.used),
        }


def run(args: argparse.Namespace) -> int:
    for name in [name for name in os.environ if name.startswith("MORGAN_")]:
        del os.environ[name]  # the demo must not reach the user's own service or server
    began = time.monotonic()
    with _folders(args.keep) as (state_dir, runtime_dir):
        lane = _lane(state_dir, runtime_dir)
        try:
            found = _demo(lane, Client(runtime_dir=runtime_dir, state_dir=state_dir), runtime_dir)
        except MorganError as error:
            lane.close()
            _show_log(state_dir)
            raise error from None
        lane.close()
    found["seconds"] = time.monotonic() - began
    print_json(found) if args.json else print(summary(found, args.keep))
    return 0


@contextlib.contextmanager
def _folders(keep: str | None) -> Iterator[tuple[Path, Path]]:
    """Yield a state and a runtime directory; both are removed at the end, but for the state that is to be kept."""
    shm = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        base = shm if os.access(shm, os.W_OK) else None
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="morgan-demo-", dir=base))
        state = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="morgan-demo-"))
        yield Path(state).absolute(), Path(runtime)


def _lane(state_dir: Path, runtime_dir: Path) -> SpawnedLane:
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = state_dir / "config.toml"
    file.write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, "MORGAN_STATE_DIR": str(state_dir), "MORGAN_RUNTIME_DIR": str(runtime_dir)}
    return SpawnedLane(load(file, env))


def _show_log(state_dir: Path) -> None:
    log = state_dir / "service.log"
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        print("the service's log ends with:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)


def _demo(lane: SpawnedLane, client: Client, runtime_dir: Path) -> dict[str, Any]:
    corpus, claims, budget = documents(), queries(), Budget()
    with client:
        started = _timed("starting the service: supervisor, store owner with the embedded engine and the model")
        lane.start()
        client.call(calls.Embed(texts=("ready?",)), START_S)
        started_s = started()
        _say(f"indexing {len(corpus)} abstracts of SciFact by their titles alone, as an earlier index may have them")
        _index_titles(client)
        for claim in claims:
            for document_id, relevance in claim["judgments"].items():
                ask = messages.Feedback(
                    query=claim["text"], collection=COLLECTION, document_id=document_id, relevance=relevance
                )
                client.request(ask)
        schedule = messages.AddSchedule(task_type="reindex", collection=COLLECTION, frequency="weekly")
        planned = expect(messages.ScheduleList, client.request(schedule)).schedules[0]
        _say(f"re-indexing: full texts; from now on every week, next on {render.clock(planned.next_run_at)}")
        tasks = {"reindex": _task(client, budget, "reindex")}
        _say(f"searching {SEARCHED} claims, {SEARCHES} times each")
        searched = _search(client, claims)
        _say("precomputing the popular queries that are not in shared memory yet")
        tasks["warm"] = _task(client, budget, "warm")
        _say("reranking all popular queries by late interaction")
        tasks["rerank"] = _task(client, budget, "rerank")
        _say("reading the results in a second process")
        read = _read_elsewhere(runtime_dir, claims)
        status = client.status()
    return {
        "documents": len(corpus),
        "queries": len(claims),
        "start_s": started_s,
        "next_reindex_at": planned.next_run_at,
        "tasks": {name: _outcome(record) for name, record in tasks.items()},
        "searches": searched,
        "read": read,
        "budget": budget.summary() | {"limit_now": status["resources"]["reason"]},
        "cache": status["cache"],
        "execution": status["execution"],
    }


def _index_titles(client: Client) -> None:
    client.create_collection(COLLECTION)
    corpus, progress = documents(), Progress()
    for start in range(0, len(corpus), UPSERT_BATCH):
        some = corpus[start : start + UPSERT_BATCH]
        texts = tuple(document["title"] for document in some)
        answer = expect(calls.Embedded, client.call(calls.Embed(texts=texts)))
        row = len(answer.vectors) // answer.count
        vectors = (answer.vectors[i * row : (i + 1) * row] for i in range(answer.count))
        payloads = ({key: document[key] for key in ("title", "text", "source")} for document in some)
        client.upsert(
            COLLECTION,
            [Point(id=d["id"], payload=p, vector=v) for d, p, v in zip(some, payloads, vectors, strict=True)],
        )
        progress.show(start + len(some), len(corpus), "titles")
    progress.clear()


def _task(client: Client, budget: Budget, task_type: str) -> TaskRecord:
    """Run a task under the budget, as the service would. Raises MorganError if it does not complete."""

    def submit(*, is_forced: bool) -> str:
        ask = messages.Submit(task_type=task_type, collection=COLLECTION, priority=1, is_forced=is_forced)
        return expect(messages.Submitted, client.request(ask)).task_id

    began = time.monotonic()

    def watch(record: TaskRecord) -> None:
        if record.status is TaskStatus.RUNNING:
            budget.note(client)
        elif not record.is_forced and not record.attempt and time.monotonic() - began > PATIENCE_S:
            _say("this machine has nothing to spare now: the demo goes on without the budget")
            budget.was_forced = True
            submit(is_forced=True)  # an equal pending task is raised, not doubled

    record = follow(client, submit(is_forced=budget.was_forced), watch=watch)
    if record.status is not TaskStatus.COMPLETED or record.result is None:
        reason = record.error_message or (record.result or {}).get("reason")
        raise MorganError(f"{record.task_id} ended as {record.status.value}: {reason}")
    return record


def _search(client: Client, claims: list[Query]) -> dict[str, Any]:
    """Search some claims through the client, and report searches of the others; return the times in seconds."""
    missed: list[float] = []
    hit: list[float] = []
    for _ in range(SEARCHES):
        for claim in claims[:SEARCHED]:
            found = client.search(claim["text"], COLLECTION)
            (hit if found.is_precomputed else missed).append(found.response_s)
        for claim in claims[SEARCHED:]:
            ask = messages.Track(rid=1, query=claim["text"], collection=COLLECTION)
            client.request(ask)
    return {"count": len(missed) + len(hit), "hits": len(hit), "miss_p50_s": _p50(missed), "hit_p50_s": _p50(hit)}


def _read_elsewhere(runtime_dir: Path, claims: list[Query]) -> dict[str, Any]:
    """Let another process look all claims up; return what it measured."""
    wanted = json.dumps([claim["text"] for claim in claims])
    paths = RuntimePaths(runtime_dir)
    command = launch.command("cli.demo_reader", str(paths.results), str(paths.readers), COLLECTION)
    done = subprocess.run(
        command, input=wanted, env=launch.environment({}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MorganError(f"the reading process failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["hits"] < len(claims):
        raise MorganError(f"the reading process found {found['hits']} of {len(claims)} results in shared memory")
    return found


def _outcome(record: TaskRecord) -> dict[str, Any]:
    assert record.result is not None
    assert record.completed_at is not None
    assert record.started_at is not None
    return {"task_id": record.task_id, "seconds": record.completed_at - record.started_at} | record.result


def _p50(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _say(line: str) -> None:
    print(f"* {line}", file=sys.stderr, flush=True)


def _timed(line: str) -> Any:
    _say(line)
    began = time.monotonic()
    return lambda: time.monotonic() - began


def summary(found: Mapping[str, Any], keep: str | None) -> str:
    """Return the demo's last screen: what ran, quality before and after, latencies, the CPU budget."""
    reindex, warm, rerank = (found["tasks"][name] for name in ("reindex", "warm", "rerank"))
    searched, read, budget = found["searches"], found["read"], found["budget"]
    ran = [
        (
            "re-index",
            f"{reindex['documents_embedded']} of {reindex['documents_processed']} documents",
            *_scores(reindex),
        ),
        ("warm", f"{warm['precomputed_count']} queries that had no result", *_scores(warm)),
        ("rerank", f"{rerank['queries_processed']} popular queries", *_scores(rerank)),
    ]
    seconds = [render.duration(task["seconds"]) for task in (reindex, warm, rerank)]
    rows = [(name, did, took, *scores) for (name, did, *scores), took in zip(ran, seconds, strict=True)]
    if budget["was_kept"] is None:
        kept = "not asked: the machine was busy, and the demo ran without it"
    else:
        kept = (
            f"used {render.percent(budget['used_share'])} of the machine on average, granted"
            f" {render.percent(budget['granted_share'])} ({'kept' if budget['was_kept'] else 'exceeded'},"
            f" {budget['readings']} readings)"
        )
    lines = [
        f"{found['documents']} documents, {found['queries']} judged queries, {render.duration(found['seconds'])} in all,"
        f" {render.duration(found['start_s'])} of them to start",
        "",
        render.table(("task", "worked on", "took", "nDCG@10 before", "after"), rows),
        "",
        f"a search, computed         {_micro(searched['miss_p50_s'])} (median of {searched['count'] - searched['hits']})",
        f"from shared memory, first  {_micro(read['first_p50_s'])} (median of {read['hits']}, in process {read['pid']})",
        f"from shared memory, again  {_micro(read['again_p50_s'])}",
        f"CPU budget                 {kept}",
        f"                           {budget['limit_now']}",
        f"next re-index              {render.clock(found['next_reindex_at'])}",
    ]
    if keep:
        lines += ["", f"kept: morgan-background serve --config {keep}/config.toml --state-dir {keep}"]
    return "\n".join(lines)


def _scores(task: Mapping[str, Any]) -> tuple[str | None, str | None]:
    before, after = task["quality_before"], task["quality_after"]
    return tuple(None if score is None else f"{score:.3f}" for score in (before, after))  # type: ignore[return-value]


def _micro(seconds: float | None) -> str:
    if seconds is None:
        return render.MISSING
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else render.duration(seconds)
