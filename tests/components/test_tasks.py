from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult, Point, QueryJob, TaskType
from morgan.background.ipc.settings import RerankSettings, WorkerSettings
from morgan.background.ipc.store import ResultStore
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reranker import LateInteractionReranker, as_reranker
from morgan.background.workers.search import compute
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS
from morgan.background.workers.vectors import STAMP_KEY

TEXTS = ["zinc in the gut", "iron in the blood", "copper wires", "gold and its price", "uptake of zinc", "lead paint"]
QUERIES = tuple(QueryJob(text=text) for text in ("zinc uptake", "price of gold", "copper", "blood iron", "paint"))
NOW = 1_000.0


@pytest.fixture
def tools(embedder: SentenceTransformerEmbedder) -> Tools:
    """A collection "c" in memory, of one point a text, ids from 1."""
    store = QdrantStore(QdrantClient(":memory:"))
    store.create("c", 384)
    fill(store, "c", embedder)
    settings = WorkerSettings(rerank=RerankSettings(top_k=3, candidates=5))
    return Tools(store, embedder, LateInteractionReranker(embedder), settings, lambda: NOW, lambda: None)


def fill(store: QdrantStore, name: str, embedder: SentenceTransformerEmbedder) -> None:
    rows = enumerate(zip(TEXTS, embedder.embed(TEXTS), strict=True), start=1)
    payload = {"source": None, "day": date(2026, 1, 2), STAMP_KEY: {"fp": "x"}}
    store.upsert(name, [Point(id=i, payload=payload | {"text": t}, vector=v.tobytes()) for i, (t, v) in rows])


def run(
    kind: TaskType, tools: Tools, queries: Iterable[QueryJob], checkpoint: Any = None, stop_after: int = 100
) -> tuple[Outcome | Verdict, list[Step]]:
    steps: list[Step] = []

    def on_step(step: Step) -> Verdict:
        steps.append(step)
        return Verdict.PAUSE if len(steps) == stop_after else Verdict.GO_ON

    return drive(TASKS[kind](Job("t", kind, "c", {}, tuple(queries), checkpoint), tools), on_step), steps


def finished(kind: TaskType, tools: Tools, queries: Iterable[QueryJob], checkpoint: Any = None) -> Outcome:
    ended, _ = run(kind, tools, queries, checkpoint)
    assert isinstance(ended, Outcome)
    return ended


def one(tools: Tools, job: QueryJob, collection: str = "c", **options: Any) -> ComputedResult:
    ((_, result, _),) = compute(
        [job], collection, tools, **{"limit": 3, "candidates": 5, "is_reranked": True} | options
    )
    assert result is not None
    return result


def test_each_query_is_published_with_its_best_rows_first(tools: Tools) -> None:
    ended, steps = run(TaskType.RERANK, tools, QUERIES)
    assert isinstance(ended, Outcome)
    results = [result for step in steps for result in step.results]
    assert [result.query_text for result in results] == [query.text for query in QUERIES]
    assert [result.ids[0] for result in results] == [5, 4, 3, 2, 6]
    assert all(len(result.ids) == 3 for result in results)
    assert ended.result["queries_processed"] == ended.result["precomputed_count"] == 5
    assert steps[-1].progress.done == steps[-1].progress.total == 5
    assert steps[-1].progress.eta_s == 0.0


def test_a_row_holds_its_text_and_plain_metadata_and_no_stamp(tools: Tools) -> None:
    found = one(tools, QUERIES[0], scope="s")
    assert found.contents[0] == "uptake of zinc"
    assert found.sources == ("", "", "")
    assert found.metadata[0] == {"day": "2026-01-02"}
    assert (found.computed_at, found.scope, len(found.embedding)) == (NOW, "s", 4 * 384)
    ordered = np.frombuffer(found.rerank_scores, "<f4")
    assert (np.diff(ordered) <= 0).all()
    assert len(ordered) == len(np.frombuffer(found.scores, "<f4")) == 3
    assert found.cost_s > 0
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ComputedResult) == found


def test_quality_is_of_the_judgments_where_there_are_any_and_of_nothing_where_nothing_is_known(tools: Tools) -> None:
    assert (one(tools, QUERIES[0]).quality_basis, one(tools, QUERIES[0]).rerank_scores == b"") == ("similarity", False)
    judged = one(tools, QueryJob(text="zinc uptake", judgments={"5": 1.0}))
    assert (judged.quality, judged.quality_basis) == (1.0, "judgments")
    disliked = one(tools, QueryJob(text="zinc uptake", judgments={"5": 0.0}))
    assert disliked.quality_basis == "similarity"
    assert one(tools, QUERIES[0], is_reranked=False).rerank_scores == b""


def test_distances_reach_the_reranker_as_higher_is_better_and_are_no_quality(tools: Tools) -> None:
    assert isinstance(tools.store, QdrantStore)
    tools.store.create("e", 384, distance="euclid")
    fill(tools.store, "e", tools.embedder)  # type: ignore[arg-type]
    given: list[float] = []

    def score(query: str, texts: list[str], dense: Any, *, pace: Any = None) -> Any:
        given.extend(dense)
        return dense

    found = one(replace(tools, reranker=SimpleNamespace(name="dense", score=score)), QUERIES[0], "e")
    assert given == sorted(given, reverse=True)
    assert found.ids[0] == 5
    assert (found.quality, found.quality_basis) == (None, "")


def test_reranking_is_measured_on_the_judged_queries_alone(tools: Tools) -> None:
    worst_first = as_reranker(SimpleNamespace(rerank=lambda _, texts: list(range(len(texts)))))
    judged = QueryJob(text="zinc uptake", judgments={"5": 2.0, "1": 1.0})
    ended = finished(TaskType.RERANK, replace(tools, reranker=worst_first), (judged, *QUERIES))
    assert ended.metric == "nDCG@10"
    assert ended.before_score == 1.0
    assert ended.after_score == 0.0
    assert (ended.result["judged_queries"], ended.result["quality_improvement"]) == (1, -1.0)
    unjudged = finished(TaskType.RERANK, tools, QUERIES)
    assert (unjudged.metric, unjudged.result["quality_improvement"]) == (None, None)


@pytest.mark.parametrize("kind", [TaskType.RERANK, TaskType.WARM])
def test_a_paused_task_does_each_query_once_though_it_is_handed_others_later(kind: TaskType, tools: Tools) -> None:
    verdict, steps = run(kind, tools, QUERIES, stop_after=1)
    assert verdict is Verdict.PAUSE
    checkpoint = json.loads(json.dumps(steps[0].checkpoint))
    done = {result.query_text for result in steps[0].results}
    left = tuple(query for query in QUERIES if query.text not in done)  # a warm task is not handed what is cached
    for handed in (left, (*reversed(QUERIES),)):
        ended, later = run(kind, tools, handed, checkpoint)
        assert sorted(result.query_text for step in later for result in step.results) == sorted(q.text for q in left)
        assert isinstance(ended, Outcome)
        assert (ended.is_skipped, ended.result["precomputed_count"]) == (False, 5)


def test_a_task_whose_queries_were_all_done_before_it_was_stopped_completes(tools: Tools) -> None:
    _, steps = run(TaskType.WARM, tools, QUERIES)
    ended = finished(TaskType.WARM, tools, (), steps[-1].checkpoint)
    assert (ended.is_skipped, ended.result["precomputed_count"]) == (False, 5)


def test_the_first_result_comes_alone_and_the_others_together(tools: Tools) -> None:
    _, steps = run(TaskType.RERANK, tools, QUERIES)
    assert [len(step.results) for step in steps] == [1, 2, 2]


def test_a_query_that_cannot_be_reranked_keeps_the_vector_searchs_order_and_the_others_do_not(tools: Tools) -> None:
    def rerank(query: str, texts: list[str]) -> list[float]:
        return [float("nan")] * len(texts) if "copper" in query else [float(len(text)) for text in texts]

    mixed = replace(tools, reranker=as_reranker(SimpleNamespace(rerank=rerank)))
    ended, steps = run(TaskType.RERANK, mixed, QUERIES)
    assert isinstance(ended, Outcome)
    found = {result.query_text: result for step in steps for result in step.results}
    assert {text for text, result in found.items() if not result.rerank_scores} == {"copper"}
    assert (np.diff(np.frombuffer(found["copper"].scores, "<f4")) <= 0).all()
    wanted = {"success": True, "precomputed_count": 5, "reranked_count": 4, "queries_not_reranked": 1}
    assert {key: ended.result[key] for key in wanted} == wanted
    assert "NaN" in ended.result["reranker_problem"]
    assert ended.result["error_message"].startswith("1 results keep the vector search's order")


def test_a_result_that_is_not_reranked_does_not_replace_one_that_is_and_still_holds(
    tools: Tools, tmp_path: Path
) -> None:
    def fails(query: str, texts: list[str]) -> list[float]:
        raise ConnectionError("down")

    text = "zinc uptake"
    results = ResultStore(tmp_path / "results")
    results.put(one(tools, QueryJob(text=text)), expires_at=NOW + 10)
    reader = ResultReader(tmp_path / "results")
    broken = replace(
        tools,
        reranker=as_reranker(SimpleNamespace(rerank=fails)),
        cached=lambda text, collection: reader.get_at(text, collection, "", NOW),
    )
    ended, steps = run(TaskType.RERANK, broken, [QueryJob(text=text)])
    assert isinstance(ended, Outcome)
    assert [step.results for step in steps] == [()]
    assert (ended.result["queries_not_reranked"], ended.result["precomputed_count"]) == (1, 0)
    tools.store.delete("c", [5])  # one of its rows: it holds no more
    _, steps = run(TaskType.RERANK, broken, [QueryJob(text=text)])
    assert [result.rerank_scores for step in steps for result in step.results] == [b""]
    reader.close()
    results.close()


@pytest.mark.parametrize("kind", [TaskType.RERANK, TaskType.WARM])
def test_without_queries_or_points_a_task_is_skipped_with_a_reason(kind: TaskType, tools: Tools) -> None:
    none = finished(kind, tools, ())
    assert none.is_skipped
    assert none.result["reason"]
    tools.store.delete("c", range(1, 7))
    empty = finished(kind, tools, QUERIES)
    assert (empty.is_skipped, empty.result["reason"]) == (True, "empty collection")
