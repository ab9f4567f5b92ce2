"""The learn task on a collection in memory. What is learned is plain: words tell what is relevant, and vectors do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from qdrant_client import QdrantClient

from morgan.background.ipc.errors import CollectionNotFound, InvalidArgument
from morgan.background.ipc.records import Point, QueryJob, TaskType
from morgan.background.ipc.settings import LearningSettings, RerankSettings, WorkerSettings
from morgan.background.workers.cases import Part, part_of
from morgan.background.workers.learned_reranker import Rerankers
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reranker import LateInteractionReranker, as_reranker
from morgan.background.workers.search import compute
from morgan.background.workers.shelf import InUse, Shelf
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS
from morgan.background.workers.vectors import Vectors

from .tiny_models import tiny_cross_encoder

SIZE, DOCUMENTS = 16, 80
NOISE = "the of and in is by with from over under into"


class FakeNoiseEmbedder:
    """Vectors and tokens from a hash of the whole text: what they say of two texts is chance."""

    name, revision, size = "fake-noise", "0", SIZE

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        seeds = [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
        rows = np.array([np.random.default_rng(seed).normal(size=SIZE) for seed in seeds], dtype=np.float32).reshape(
            -1, SIZE
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        return list(self.embed([f"token {text}" for text in texts])[:, None, :])


def text_of(number: int) -> str:
    draw = random.Random(number)
    others = draw.sample(range(DOCUMENTS), 3)  # words of other documents, once each, which BM25 counts too
    return " ".join(
        [f"w{number} w{number} w{number}", *(f"w{other}" for other in others), *draw.sample(NOISE.split(), 6)]
    )


def queries_of(count: int) -> tuple[QueryJob, ...]:
    return tuple(
        QueryJob(text=f"what of w{n % DOCUMENTS} in {n}", judgments={str(n % DOCUMENTS): 1.0}) for n in range(count)
    )


QUERIES = queries_of(120)


@pytest.fixture(scope="module")
def store() -> QdrantStore:
    store = QdrantStore(QdrantClient(":memory:"))
    store.create("docs", SIZE)
    texts = [text_of(n) for n in range(DOCUMENTS)]
    vectors = FakeNoiseEmbedder().embed(texts)
    rows = zip(texts, vectors, strict=True)
    store.upsert("docs", [Point(id=n, payload={"text": t}, vector=v.tobytes()) for n, (t, v) in enumerate(rows)])
    return store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross_encoder(tmp_path_factory.mktemp("tiny") / "model")


def tools_of(store: QdrantStore, folder: Path, reranker: Any = None, **learning: Any) -> Tools:
    embedder: Any = FakeNoiseEmbedder()
    settings = WorkerSettings(
        rerank=RerankSettings(candidates=DOCUMENTS), learning=LearningSettings(folder=str(folder), **learning)
    )
    configured = reranker or LateInteractionReranker(embedder)
    rerankers = Rerankers.of_settings(settings, configured, lambda _: embedder)
    return Tools(store, embedder, configured, settings, lambda: 1e9, lambda: None, rerankers=rerankers)


def attempt(
    tools: Tools,
    queries: Sequence[QueryJob] = QUERIES,
    *,
    params: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
    stop: Callable[[Step], bool] = lambda _: False,
    task_id: str = "learn_1",
) -> tuple[Outcome | Verdict, list[Step]]:
    steps: list[Step] = []

    def note(step: Step) -> Verdict:
        steps.append(step)
        return Verdict.PAUSE if stop(step) else Verdict.GO_ON

    job = Job(task_id, TaskType.LEARN, "docs", params or {}, tuple(queries), checkpoint)
    return drive(TASKS[TaskType.LEARN](job, tools), note), steps  # type: ignore[operator]


def learned(tools: Tools, queries: Sequence[QueryJob] = QUERIES, **options: Any) -> tuple[Outcome, list[Step]]:
    ended, steps = attempt(tools, queries, **options)
    assert isinstance(ended, Outcome)
    return ended, steps


def first_of(tools: Tools, query: QueryJob) -> int | str:
    ((_, result, _),) = compute([query], "docs", tools, limit=1, candidates=DOCUMENTS, is_reranked=True)
    assert result is not None
    return result.ids[0]


def test_what_is_shown_to_be_better_is_used_by_every_search_of_that_collection(
    store: QdrantStore, tmp_path: Path
) -> None:
    tools, elsewhere = tools_of(store, tmp_path), tools_of(store, tmp_path)
    ended, steps = learned(tools)
    found = ended.result
    assert found["adopted"], found["reason"]
    assert ended.metric == "nDCG@10"
    assert ended.before_score is not None
    assert ended.after_score is not None
    assert ended.after_score > ended.before_score
    assert found["gain_low"] > 0
    assert found["judged_queries"] == found["fit_queries"] + found["choose_queries"] + found["held_out_queries"] == 120
    assert found["weights"]["BM25"] > found["weights"]["dense"]
    assert found["training_steps"] == 0  # too few judgments for a model: weights alone
    assert found["reranker_before"] == "late interaction (fake-noise)"
    (change,) = [change for step in steps for change in step.changes]
    assert (change.names, change.is_whole, change.is_soft) == (("docs",), True, True)
    for one in (tools, elsewhere):  # another process looks it up by itself
        assert one.reranking("docs").name == found["reranker"]
        assert one.reranking("others") is one.reranker
    held_out = [query for query in QUERIES if part_of(query.text) is Part.HELD_OUT]
    hits = [str(first_of(elsewhere, query)) in query.judgments for query in held_out]
    before = [str(first_of(replace(elsewhere, rerankers=None), query)) in query.judgments for query in held_out]
    assert sum(hits) > sum(before)


def test_one_command_goes_back_and_again_forth(store: QdrantStore, tmp_path: Path) -> None:
    tools = tools_of(store, tmp_path)
    with pytest.raises(InvalidArgument, match="nothing to go back to"):
        attempt(tools, params={"undo": True})
    name = learned(tools)[0].result["reranker"]
    ended, steps = learned(tools, params={"undo": True})
    assert ended.result["reranker"] == "late interaction (fake-noise)"
    assert [change.is_soft for step in steps for change in step.changes] == [True]
    assert tools.reranking("docs") is tools.reranker
    assert learned(tools, params={"undo": True})[0].result["reranker"] == name
    assert tools.reranking("docs").name == name


def test_what_is_not_shown_to_be_better_is_not_used_and_leaves_nothing(store: QdrantStore, tmp_path: Path) -> None:
    class Perfect:
        name = "perfect"

        def score(self, query: str, texts: Sequence[str], *_: Any, **__: Any) -> Any:
            return np.array([text.split()[0] == query.split()[2] for text in texts], dtype=np.float32)

    tools = tools_of(store, tmp_path, as_reranker(Perfect()))
    ended, steps = learned(tools)
    assert not ended.result["adopted"]
    assert "not shown to be better" in ended.result["reason"]
    assert ended.before_score == 1.0
    assert not any(step.changes for step in steps)
    assert tools.reranking("docs") is tools.reranker
    assert list(Shelf(tmp_path, "docs").making.iterdir()) == []


def test_too_few_judgments_are_a_reason_and_not_an_error(store: QdrantStore, tmp_path: Path) -> None:
    known_irrelevant = QueryJob(text="judged", judgments={"1": 0.0})
    ended, _ = learned(tools_of(store, tmp_path), [*queries_of(49), known_irrelevant])
    assert ended.is_skipped
    assert ended.result["reason"].startswith("49 queries have a relevant document, 50 are needed: record_feedback")
    assert not any(tmp_path.iterdir())
    nowhere = tools_of(store, tmp_path)
    nowhere = replace(nowhere, settings=WorkerSettings())
    assert "no folder" in learned(nowhere)[0].result["reason"]


def test_a_collection_that_does_not_exist_is_an_error(store: QdrantStore, tmp_path: Path) -> None:
    tools = tools_of(store, tmp_path)
    with pytest.raises(CollectionNotFound):
        drive(TASKS[TaskType.LEARN](Job("t", TaskType.LEARN, "none"), tools), lambda _: Verdict.GO_ON)  # type: ignore[operator]


def test_a_cross_encoder_is_trained_paused_gone_on_with_and_judged(
    store: QdrantStore, tmp_path: Path, tiny: Path
) -> None:
    def fresh(folder: Path) -> Tools:
        made = tools_of(store, folder, min_judged=20, train_from=20, epochs=2)
        settings = msgspec.structs.replace(made.settings, rerank=RerankSettings(candidates=12, cross_encoder=str(tiny)))
        return replace(made, settings=settings)

    queries = queries_of(40)
    whole = learned(fresh(tmp_path / "a"), queries)[0].result
    assert whole["training_steps"] > 3
    tools, seen = fresh(tmp_path / "b"), 0

    def at_third(step: Step) -> bool:
        nonlocal seen
        seen += step.progress.note.startswith("training")
        return seen == 3

    ended, steps = attempt(tools, queries, stop=at_third)
    assert ended is Verdict.PAUSE
    assert (Shelf(tmp_path / "b", "docs").making / "learn_1" / "state.pt").exists()
    ended, rest = attempt(tools, queries, checkpoint=steps[-1].checkpoint)
    assert isinstance(ended, Outcome)
    notes = [step.progress for step in rest if step.progress.note.startswith("training")]
    assert notes[0].done == 4
    same = ("training_steps", "quality_before", "quality_after", "weights")
    assert {key: ended.result[key] for key in same} == {key: whole[key] for key in same}
    assert steps[-1].progress.total == whole["training_steps"]


def test_an_attempt_that_ended_while_comparing_compares_no_query_twice(store: QdrantStore, tmp_path: Path) -> None:
    def comparing(step: Step) -> bool:
        return step.progress.note.startswith("comparing")

    tools = tools_of(store, tmp_path)
    ended, steps = attempt(tools, stop=comparing)
    assert ended is Verdict.PAUSE
    scored: list[str] = []

    class Noted:
        name = tools.reranker.name

        def score(self, query: str, *given: Any, **options: Any) -> Any:
            scored.append(query)
            return tools.reranker.score(query, *given, **options)

    again: Any = Noted()
    rest = Rerankers.of_settings(tools.settings, again, lambda _: tools.embedder)
    ended, _ = attempt(replace(tools, rerankers=rest), checkpoint=steps[-1].checkpoint)
    assert isinstance(ended, Outcome)
    held_out = [query.text for query in QUERIES if part_of(query.text) is Part.HELD_OUT]
    assert len(scored) == len(set(scored)) == len(held_out) - 4


def test_what_was_learned_with_another_model_or_in_place_of_another_reranker_is_not_used(
    store: QdrantStore, tmp_path: Path
) -> None:
    tools = tools_of(store, tmp_path)
    assert learned(tools)[0].result["adopted"]

    class Other(FakeNoiseEmbedder):
        name = "another"

    configured, other = tools.reranker, Other()
    rerankers = Rerankers.of_settings(tools.settings, configured, lambda _: other)
    assert rerankers.of("docs") is configured
    other_configured = as_reranker(LateInteractionReranker(other))
    assert (
        Rerankers.of_settings(tools.settings, other_configured, lambda _: tools.embedder).of("docs") is other_configured
    )


def test_a_damaged_folder_is_the_configured_reranker_and_not_an_error(store: QdrantStore, tmp_path: Path) -> None:
    tools = tools_of(store, tmp_path)
    version = learned(tools)[0].result["reranker"].removeprefix("learned ")
    shelf = Shelf(tmp_path, "docs")
    assert shelf.in_use() == InUse(now=version)
    (shelf.folder / version / "learned.json").write_bytes(b'{"version": 3}')
    assert tools_of(store, tmp_path).reranking("docs").name == "late interaction (fake-noise)"
    shelf.use_path.write_bytes(b"\0")
    assert tools_of(store, tmp_path).reranking("docs").name == "late interaction (fake-noise)"


def test_the_last_two_are_kept_and_names_never_share_a_folder(store: QdrantStore, tmp_path: Path) -> None:
    tools = tools_of(store, tmp_path)
    name = learned(tools)[0].result["reranker"].removeprefix("learned ")
    shelf = Shelf(tmp_path, "docs")
    record = shelf.read(name)
    assert record is not None
    for version in ("second", "third"):
        shelf.adopt(shelf.begin(f"task-{version}"), msgspec.structs.replace(record, version=version))
    assert shelf.in_use() == InUse(now="third", before="second")
    assert sorted(path.name for path in shelf.folder.iterdir()) == ["second", "third", "use.json"]
    folders = {Shelf(tmp_path, one).folder for one in ("docs", "docs ", "..", "x" * 255, "x" * 254, "é" * 200)}
    assert len(folders) == 6
    assert {folder.parent for folder in folders} == {tmp_path}


def test_a_query_stays_in_its_part_however_many_are_judged() -> None:
    parts = [part_of(query.text) for query in queries_of(2000)]
    shares = {part: parts.count(part) / len(parts) for part in Part}
    assert shares[Part.FIT] == pytest.approx(0.55, abs=0.04)
    assert shares[Part.HELD_OUT] == pytest.approx(0.25, abs=0.04)
