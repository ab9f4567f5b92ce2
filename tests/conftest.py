"""Fixtures of the tests of the public face: real vectors of a part of the shipped corpus, and clients filled with them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from morgan.background.data import Document, documents, queries

if TYPE_CHECKING:
    from qdrant_client import QdrantClient  # its import takes a second: late, for runs that do not need it

    from morgan.background.workers.models import SentenceTransformerEmbedder

SIZE = 384  # of the default model's vectors
JUDGED_QUERIES = queries()[:6]
CPU_TREE = Path("/sys/fs/cgroup/cpu")  # of control groups of version 1
DOCUMENTS = 24
FIRST = ("processes", Path(__file__).parent.name, "faults")  # folders

Fill = Callable[..., "QdrantClient"]


class Shelf(NamedTuple):
    """Some documents of the shipped corpus, among them all that JUDGED_QUERIES name, each with its vector."""

    documents: list[Document]
    vectors: list[list[float]]


class WordOverlap:
    """An application's own reranking service: the share of a query's words that a document has."""

    def rerank(self, query: str, documents: list[str]) -> list[float]:
        words = set(query.lower().split())
        return [len(words & set(text.lower().split())) / len(words) for text in documents]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those begin that wait for services the most: two processes of pytest-xdist take a file after the other."""
    items.sort(key=lambda item: FIRST.index(folder) if (folder := item.path.parent.name) in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def embedder() -> SentenceTransformerEmbedder:
    """The default model, loaded once: the import of torch alone takes seconds."""
    from morgan.background.ipc.settings import ModelSettings
    from morgan.background.workers.models import SentenceTransformerEmbedder

    found = SentenceTransformerEmbedder(ModelSettings())
    assert found.size == SIZE
    return found


@pytest.fixture(scope="session")
def shelf(embedder: SentenceTransformerEmbedder) -> Shelf:
    judged = {int(name) for query in JUDGED_QUERIES for name in query["judgments"]}
    chosen = sorted(documents(), key=lambda one: one["id"] not in judged)[:DOCUMENTS]
    return Shelf(chosen, embedder.embed([one["text"] for one in chosen]).tolist())


@pytest.fixture(scope="session")
def fill(shelf: Shelf, embedder: SentenceTransformerEmbedder) -> Fill:
    """Return a function that makes an in-memory Qdrant with the named collections, all holding the shelf.

    `shift` gives each document the vector of another one, and the stamp that says so: its text was changed since.
    """
    from qdrant_client import QdrantClient, models

    from morgan.background.workers.fingerprint import fingerprint, stamp
    from morgan.background.workers.vectors import STAMP_KEY

    def filled(*names: str, shift: int = 0, empty: tuple[str, ...] = ()) -> QdrantClient:
        client = QdrantClient(":memory:")
        for name in (*names, *empty):
            params = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
            client.create_collection(name, vectors_config=params)
        vectors = shelf.vectors[shift:] + shelf.vectors[:shift]
        others = shelf.documents[shift:] + shelf.documents[:shift]
        points = [
            models.PointStruct(
                id=one["id"],
                vector=vector,
                payload={"title": one["title"], "text": one["text"], "source": one["source"]}
                | ({STAMP_KEY: stamp(fingerprint(other["text"]), embedder.name, embedder.revision)} if shift else {}),
            )
            for one, other, vector in zip(shelf.documents, others, vectors, strict=True)
        ]
        for name in names:
            client.upsert(name, points)
        return client

    return filled


@pytest.fixture
def own_state(tmp_path: Path) -> Iterator[Path]:
    """An environment whose service, store and configuration are this test's alone. Returns the state directory."""
    with own_environment(tmp_path):
        yield tmp_path / "state"


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Have what is configured by the environment, and the service that is found by it, below `folder`."""
    shm = Path("/dev/shm")
    # not below `folder`: a socket's path holds 107 bytes
    runtime = tempfile.mkdtemp(prefix="morgan-test-", dir=shm if os.access(shm, os.W_OK) else None)
    with pytest.MonkeyPatch.context() as patch:
        for name in [key for key in os.environ if key.startswith("MORGAN_")]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("MORGAN_MODEL_LOADER", "reference")  # else each service makes a graph of its model first
        patch.setenv("MORGAN_STATE_DIR", str(folder / "state"))
        patch.setenv("MORGAN_RUNTIME_DIR", runtime)
        yield
    shutil.rmtree(runtime)


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of a test's own in the v1 tree: set up before what is put into it starts, removed after it."""
    if not os.access(CPU_TREE, os.W_OK) or not (CPU_TREE / "cpu.shares").exists():
        pytest.skip("no v1 tree of control groups that may be written")
    folder = CPU_TREE / f"morgan-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()
