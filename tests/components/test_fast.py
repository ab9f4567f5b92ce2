"""The fast path: the same vectors as the reference's, judged before they are used, and the reference wherever it is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from morgan.background import diagnosis
from morgan.background.diagnosis import Level
from morgan.background.ipc import launch
from morgan.background.ipc.settings import ModelSettings, RerankSettings
from morgan.background.supervisor.forkserver import ONE_THREAD
from morgan.background.workers import adoption, handover
from morgan.background.workers.adoption import COMPARED_TEXTS, LEAST_COSINE, compared_texts
from morgan.background.workers.export import NotExportable, recipe_of
from morgan.background.workers.fast import FastEmbedder
from morgan.background.workers.graphs import Verdict
from morgan.background.workers.handover import Handover, make_embedder
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.reranker import CrossEncoderReranker, make_reranker
from tests.components.test_models import tiny_embedder

TEXTS = ["zinc", "", "a much longer sentence about the absorption of zinc in the gut " * 90, "naïve 東京 🙂", "iron"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Handover]:
    """Return a function that makes a model of one small layer, and an embedder of it with a graph folder of its own."""

    def made(pooling: Any = "mean", seed: int = 0, **settings: Any) -> Handover:
        name = tiny_embedder(tmp_path, pooling=pooling, seed=seed).settings.name
        folder = str(tmp_path / "graphs")
        embedder = make_embedder(ModelSettings(name=name, graph_folder=folder, **settings))
        assert isinstance(embedder, Handover)
        return embedder

    return made


def adopted(embedder: Handover) -> Verdict:
    assert embedder.is_open
    verdict = embedder.adopt()
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", ("cls", "mean")])
def test_an_adopted_graph_gives_the_vectors_of_the_reference_under_its_name_and_revision(
    pooling: Any, make: Callable[..., Handover]
) -> None:
    embedder = make(pooling)
    reference = embedder.reference
    before = embedder.embed(TEXTS)  # nobody waits for a graph
    assert embedder.choose() is reference
    verdict = adopted(embedder)
    assert verdict.is_adopted
    assert verdict.texts == COMPARED_TEXTS == len(compared_texts()) >= 64
    assert verdict.least_cosine >= LEAST_COSINE
    after = embedder.embed(TEXTS)
    assert isinstance(embedder.choose(), FastEmbedder)
    assert after.dtype == np.float32
    assert np.allclose(after, before, atol=1e-5)
    assert (embedder.name, embedder.revision, embedder.size) == (reference.name, reference.revision, reference.size)
    for ours, theirs in zip(embedder.token_vectors(TEXTS), reference.token_vectors(TEXTS), strict=True):
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=1e-4)


def test_it_is_paced_between_sub_batches_and_knows_empty_calls(make: Callable[..., Handover]) -> None:
    embedder = make()
    adopted(embedder)
    paces: list[int] = []
    embedder.embed(TEXTS, pace=lambda: paces.append(1))
    embedder.token_vectors(TEXTS, pace=lambda: paces.append(1))
    assert len(paces) >= 2
    assert embedder.embed([]).shape == (0, 32)
    assert embedder.token_vectors([]) == []


def test_several_threads_give_the_vectors_of_one_with_either_loader(make: Callable[..., Handover]) -> None:
    embedder = make()
    adopted(embedder)
    texts, paces = TEXTS * 6, list[int]()
    for one in (embedder.reference, embedder):
        one.batches.watch(lambda: False, lambda: 1)
        alone = one.embed(texts, pace=lambda: None)
        one.batches.watch(lambda: False, lambda: 3)
        together = one.embed(texts, pace=lambda: paces.append(threading.get_ident()))
        assert np.allclose(together, alone, atol=1e-5)
    assert set(paces) == {threading.get_ident()}
    assert sum(one.name.startswith("compute-") for one in threading.enumerate()) >= 2


ELSEWHERE = """
import json, os, sys
import msgspec
from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.handover import make_embedder
embedder = make_embedder(msgspec.json.decode(sys.argv[1], type=ModelSettings))
embedder.load()
threads = len(os.listdir("/proc/self/task"))
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, json.dumps(embedder.embed(["zinc", "copper and iron"]).tolist()).encode())
    os._exit(0)
os.close(writer)
with os.fdopen(reader) as pipe:
    vectors = json.loads(pipe.read())
heavy = [name for name in ("torch", "sentence_transformers", "transformers", "onnx") if name in sys.modules]
print(json.dumps({"threads": threads, "vectors": vectors, "heavy": heavy, "revision": embedder.revision}))
"""


def test_a_later_process_needs_no_torch_has_one_thread_and_a_fork_of_it_computes(make: Callable[..., Handover]) -> None:
    embedder = make()
    adopted(embedder)
    command = [sys.executable, "-c", ELSEWHERE, msgspec.json.encode(embedder.settings).decode()]
    done = subprocess.run(
        command, env=launch.environment(ONE_THREAD), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["threads"], told["heavy"]) == (1, [])
    assert told["revision"] == embedder.reference.revision
    assert np.allclose(told["vectors"], embedder.reference.embed(["zinc", "copper and iron"]), atol=1e-5)


def test_nothing_is_reported_to_the_makers_of_onnxruntime(make: Callable[..., Handover]) -> None:
    embedder = make()
    adopted(embedder)
    embedder.embed(["zinc"])
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_its_files_are_its_users_alone_and_nothing_else_is_left(tmp_path: Path, make: Callable[..., Handover]) -> None:
    (killed := tmp_path / "graphs" / "making-left").mkdir(parents=True, mode=0o700)
    adopted(make())
    assert not killed.exists()
    files = list((tmp_path / "graphs").iterdir())
    assert sorted(path.suffix for path in files) == ["", ".json", ".json", ".onnx"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_other_weights_are_another_graph_and_the_old_one_goes(tmp_path: Path, make: Callable[..., Handover]) -> None:
    adopted(make())
    before = set((tmp_path / "graphs").glob("*.onnx"))
    trained_on = make(seed=1)
    assert adopted(trained_on).is_adopted
    after = set((tmp_path / "graphs").glob("*.onnx"))
    assert len(after) == 1
    assert not before & after


@pytest.mark.parametrize("damaged", ["*.onnx", "*.tokenizer.json", "????????????????.json"])
def test_a_damaged_file_is_made_again(damaged: str, tmp_path: Path, make: Callable[..., Handover]) -> None:
    embedder = make()
    adopted(embedder)
    (path,) = (tmp_path / "graphs").glob(damaged)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = Handover(embedder.settings)
    assert again.choose() is again.reference
    assert adopted(again).is_adopted
    assert isinstance(again.choose(), FastEmbedder)


def test_vectors_that_are_not_the_references_are_refused_with_the_figure_and_not_tried_again(
    tmp_path: Path, make: Callable[..., Handover], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = make()
    other = tiny_embedder(tmp_path / "other", seed=7).model
    real = adoption.export
    monkeypatch.setattr(adoption, "export", lambda _model, *rest: real(other, *rest))
    verdict = adopted(embedder)
    assert not verdict.is_adopted
    assert verdict.least_cosine < LEAST_COSINE
    assert f"cosine {verdict.least_cosine:.6f}" in verdict.reason
    monkeypatch.undo()
    for one in (embedder, Handover(msgspec.structs.replace(embedder.settings, loader="fast"))):
        assert one.choose() is one.reference
        assert not one.is_open
        assert one.reason == verdict.reason
    assert not list((tmp_path / "graphs").glob("*.onnx"))
    levels = [record.levelno for record in caplog.records if "without its fast path" in record.message]
    assert logging.WARNING in levels  # it was asked for


def test_modules_that_cannot_be_reproduced_are_named(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    tiny = tiny_embedder(tmp_path)
    tiny.model.append(Dense(32, 16))
    tiny.model.save(str(tmp_path / "dense"))
    embedder = make_embedder(ModelSettings(name=str(tmp_path / "dense"), graph_folder=str(tmp_path / "graphs")))
    assert isinstance(embedder, Handover)
    verdict = adopted(embedder)
    assert "Transformer, Pooling, Dense" in verdict.reason
    assert embedder.embed(["zinc"]).shape == (1, 16)
    assert embedder.reason == verdict.reason
    with pytest.raises(NotExportable, match="pools by lasttoken"):
        recipe_of(tiny_embedder(tmp_path / "last", pooling="lasttoken").model)
    prompted = SentenceTransformer(tiny_embedder(tmp_path / "p").settings.name, prompts={"q": "query: "})
    prompted.default_prompt_name = "q"
    with pytest.raises(NotExportable, match="prompt"):
        recipe_of(prompted)


def test_8_bit_weights_have_another_revision_and_their_loss_is_kept(make: Callable[..., Handover]) -> None:
    waiting = make(precision="int8")
    verdict = adopted(waiting)
    assert verdict.is_adopted
    assert 0.9 < verdict.least_cosine < verdict.mean_cosine < 1.0
    assert "8-bit weights: cosine 0.9" in verdict.words
    assert waiting.revision == waiting.reference.revision + "-int8"
    assert Handover(waiting.settings).revision == waiting.revision


def test_without_their_graph_8_bit_weights_do_not_come_in_the_middle(make: Callable[..., Handover]) -> None:
    embedder = make(precision="int8")
    assert embedder.revision == embedder.reference.revision
    embedder.adopt()
    assert embedder.choose() is embedder.reference
    assert "no graph" in embedder.reason


def test_only_one_process_makes_a_graph_at_a_time(make: Callable[..., Handover]) -> None:
    embedder = make()
    assert embedder._graph is not None
    with embedder._graph.making() as made:
        assert made is not None
        assert embedder.adopt() is None
    assert adopted(embedder).is_adopted


def test_a_full_disk_is_no_verdict_on_a_model(
    tmp_path: Path, make: Callable[..., Handover], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = make()
    monkeypatch.setattr(adoption, "ROOM", 10**15)
    with pytest.raises(OSError, match="MiB are needed"):
        embedder.adopt()
    assert not list((tmp_path / "graphs").glob("*.json"))
    assert embedder.is_open


def test_what_is_not_installed_is_named_and_the_reference_used(
    make: Callable[..., Handover], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = make()
    adopted(embedder)
    real = adoption.importlib.util.find_spec
    monkeypatch.setattr(
        adoption.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    without = Handover(embedder.settings)
    assert without.choose() is without.reference
    assert "onnxruntime not installed: pip install" in without.reason
    monkeypatch.setattr(adoption.importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    assert isinstance(Handover(embedder.settings).choose(), FastEmbedder)  # onnx is for making one
    assert handover.missing_for_use() == ""


@pytest.mark.parametrize("changed", [{"loader": "reference"}, {"device": "cuda"}, {"graph_folder": ""}])
def test_the_reference_is_what_it_was_where_no_graph_is_wanted(changed: dict[str, str]) -> None:
    settings = msgspec.structs.replace(ModelSettings(graph_folder="/graphs"), **changed)
    assert type(make_embedder(settings)) is SentenceTransformerEmbedder


def test_a_cross_encoder_runs_where_the_embedder_is_told_to() -> None:
    settings = ModelSettings(graph_folder="/graphs", device="cuda:1")
    found = make_reranker(RerankSettings(cross_encoder="any"), make_embedder(settings))
    assert isinstance(found, CrossEncoderReranker)
    assert found._device == "cuda:1"


def test_doctor_says_whether_the_fast_path_is_used_by_what_figures_and_why_not(
    tmp_path: Path, make: Callable[..., Handover]
) -> None:
    embedder = make()
    waiting = diagnosis.of_fast_path(embedder)
    assert (waiting.level, "makes a graph" in waiting.words) == (Level.HINT, True)
    adopted(embedder)
    embedder.choose()
    used = diagnosis.of_fast_path(embedder)
    assert (used.level, "cosine 1.0" in used.words or "cosine 0.9999" in used.words) == (Level.OK, True)
    refused = Handover(msgspec.structs.replace(embedder.settings, loader="fast"))
    refused.reason = "it pools by magic"
    found = diagnosis.of_fast_path(refused)
    assert (found.level, "it pools by magic" in found.words) == (Level.PROBLEM, True)
