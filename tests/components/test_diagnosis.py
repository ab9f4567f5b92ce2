"""`doctor`: every thing that can be wrong is said in words. Real model, real stores, real folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background import diagnosis
from morgan.background.diagnosis import Finding, Level
from morgan.background.ipc.client import Client
from morgan.background.ipc.records import Point
from morgan.background.supervisor.config import Config, load
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.fingerprint import fingerprint, stamp
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reranker import CrossEncoderReranker
from morgan.background.workers.vectors import STAMP_KEY

from .tiny_models import tiny_cross_encoder

TEXTS = ["zinc in the gut", "iron in the blood", "copper wires", "gold and its price", "lead paint", "tin cans"]


def config_of(tmp_path: Path, **env: str) -> Config:
    folders = {"MORGAN_STATE_DIR": str(tmp_path / "state"), "MORGAN_RUNTIME_DIR": str(tmp_path / "run")}
    return load(env={"HOME": str(tmp_path)} | folders | env)


@pytest.fixture
def store() -> QdrantStore:
    return QdrantStore(QdrantClient(":memory:"))


def filled(
    store: QdrantStore, embedder: SentenceTransformerEmbedder, name: str = "docs", field: str = "text", **payload: Any
) -> np.ndarray:
    store.create(name, 384)
    vectors = embedder.embed(TEXTS)
    rows = enumerate(zip(TEXTS, vectors, strict=True), start=1)
    store.upsert(name, [Point(id=i, payload={field: t} | payload, vector=v.tobytes()) for i, (t, v) in rows])
    return vectors


def of_docs(store: QdrantStore, embedder: SentenceTransformerEmbedder | None) -> list[Finding]:
    return list(diagnosis.of_collection(store.info("docs"), store, embedder, "text"))


def test_vectors_of_the_configured_model_are_recognised(
    store: QdrantStore, embedder: SentenceTransformerEmbedder
) -> None:
    filled(store, embedder)
    (found,) = of_docs(store, embedder)
    assert (found.level, found.about) == (Level.OK, "collection docs")


def test_vectors_of_another_model_are_told_from_vectors_of_changed_texts(
    store: QdrantStore, embedder: SentenceTransformerEmbedder
) -> None:
    vectors = filled(store, embedder)
    shifted = np.roll(vectors, 1, axis=0)
    marks = [stamp(fingerprint(text), embedder.name, embedder.revision) for text in TEXTS]
    rows = list(zip(TEXTS, shifted, marks, strict=True))
    store.upsert("docs", [Point(id=i, payload={"text": t}, vector=v.tobytes()) for i, (t, v, _) in enumerate(rows, 1)])
    (found,) = of_docs(store, embedder)
    assert found.level is Level.PROBLEM
    assert "run reindex" in found.words
    assert "force_rebuild" not in found.words
    stamped = [
        Point(id=i, payload={"text": t, STAMP_KEY: m}, vector=v.tobytes()) for i, (t, v, m) in enumerate(rows, start=1)
    ]
    store.upsert("docs", stamped)
    (found,) = of_docs(store, embedder)
    assert "force_rebuild" in found.words


def test_a_missing_text_field_is_answered_with_the_longest_one(
    store: QdrantStore, embedder: SentenceTransformerEmbedder
) -> None:
    filled(store, embedder, field="body", lang="en", pages=3)
    (found,) = of_docs(store, embedder)
    assert found.level is Level.PROBLEM
    assert "'body'" in found.words


def test_points_without_a_text_are_counted(store: QdrantStore, embedder: SentenceTransformerEmbedder) -> None:
    vectors = filled(store, embedder)
    store.upsert("docs", [Point(id=99, payload={"title": "no text"}, vector=vectors[0].tobytes())])
    hint, fine = of_docs(store, embedder)
    assert (hint.level, fine.level) == (Level.HINT, Level.OK)
    assert hint.words.startswith("1 of the first 7 points")


def test_another_vector_size_is_a_problem(store: QdrantStore, embedder: SentenceTransformerEmbedder) -> None:
    store.create("docs", 3)
    store.upsert("docs", [Point(id=1, payload={"text": "zinc"}, vector=np.ones(3, "<f4").tobytes())])
    (found,) = of_docs(store, embedder)
    assert found.level is Level.PROBLEM
    assert "3 dimensions" in found.words
    assert "384" in found.words


def test_scheduled_collections_that_do_not_exist_are_named(
    tmp_path: Path, store: QdrantStore, embedder: SentenceTransformerEmbedder
) -> None:
    filled(store, embedder, name="morgan_code")
    found = list(diagnosis.of_collections(config_of(tmp_path), store, embedder))
    assert [one.about for one in found if one.level is Level.HINT] == [
        "collection morgan_knowledge",
        "collection morgan_memories",
        "collection morgan_web_content",
    ]


def test_a_server_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    config = config_of(tmp_path, MORGAN_STORE_URL="http://127.0.0.1:9", MORGAN_STORE_TIMEOUT_S="1")
    store, (found,) = diagnosis.of_store(config, is_running=False)
    assert store is None
    assert found.level is Level.PROBLEM
    assert "does not answer" in found.words


def test_an_embedded_store_is_opened_if_it_is_there_and_named_if_another_has_it(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    store, (found,) = diagnosis.of_store(config, is_running=False)
    assert (store, found.level) == (None, Level.HINT)
    held = EdgeStore(tmp_path / "state" / "vectors")
    store, (found,) = diagnosis.of_store(config, is_running=False)
    assert (store, found.level) == (None, Level.PROBLEM)
    held.close()
    store, (found,) = diagnosis.of_store(config, is_running=False)
    assert found.level is Level.OK
    assert store is not None
    store.close()


def test_a_model_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    embedder, (found,) = diagnosis.of_model(config_of(tmp_path, MORGAN_MODEL_NAME=str(tmp_path / "none")))
    assert embedder is None
    assert found.level is Level.PROBLEM


def test_the_reranker_is_named_and_one_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    def said(**env: str) -> list[tuple[Level, str]]:
        return [(one.level, one.words) for one in diagnosis.of_reranker(config_of(tmp_path, **env))]

    ((level, words),) = said()
    assert (level, words.startswith("late interaction")) == (Level.OK, True)
    ((level, words),) = said(MORGAN_RERANKER_CROSS_ENCODER=str(tmp_path / "none"))
    assert (level, "[reranker] cross_encoder" in words) == (Level.PROBLEM, True)
    name = str(tiny_cross_encoder(tmp_path / "cross"))
    wanted = (Level.OK, f"cross-encoder {name}")
    assert said(MORGAN_RERANKER_CROSS_ENCODER=name, MORGAN_MODEL_LOADER="reference") == [wanted]
    with_graph = CrossEncoderReranker(name, graph_folder=config_of(tmp_path).worker_settings().model.graph_folder)
    loaded, (level, words) = said(MORGAN_RERANKER_CROSS_ENCODER=name)
    assert (loaded, level) == (wanted, Level.HINT)
    assert "makes a graph at its next start" in words
    assert with_graph.is_open
    assert with_graph.adopt() is not None
    loaded, (level, words) = said(MORGAN_RERANKER_CROSS_ENCODER=name)
    assert (loaded, level, "the same scores" in words) == (wanted, Level.OK, True)


def test_too_little_shared_memory_a_slow_folder_and_a_long_path_are_said(tmp_path: Path) -> None:
    (fine,) = diagnosis.of_runtime_dir(config_of(tmp_path, MORGAN_RUNTIME_DIR=f"/dev/shm/morgan-doctor-{os.getpid()}"))
    assert fine.level is Level.OK
    huge = config_of(tmp_path, MORGAN_CACHE_MAX_CACHED_QUERIES="100000", MORGAN_RUNTIME_DIR="/dev/shm/x")
    (found,) = diagnosis.of_runtime_dir(huge, free=2**20)
    assert found.level is Level.PROBLEM
    assert "1 MiB free" in found.words
    long = config_of(tmp_path, MORGAN_RUNTIME_DIR=f"/dev/shm/{'x' * 120}")
    assert "too long" in next(diagnosis.of_runtime_dir(long)).words


@pytest.mark.parametrize(
    ("controllers", "level"), [("cpu memory", Level.OK), ("memory", Level.HINT), (None, Level.HINT)]
)
def test_whether_the_cpu_controller_is_delegated_is_said(tmp_path: Path, controllers: str | None, level: Level) -> None:
    own = tmp_path / "cgroup" / "user.slice"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/user.slice\n")
    if controllers is not None:
        (own / "cgroup.controllers").write_text(controllers)
        (own / "cgroup.subtree_control").touch()
    (found,) = diagnosis.of_cgroup(tmp_path / "self", tmp_path / "cgroup")
    assert found.level is level


def test_without_a_service_that_is_a_hint(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with Client(runtime_dir=config.runtime_dir()) as client:
        assert not client.is_running()
    (found,) = diagnosis.of_service(config, None)
    assert found.level is Level.HINT
