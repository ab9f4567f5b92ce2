"""The fork server has a graph made while workers are at work already; later workers share it, and their vectors are the same."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from morgan.background.data import documents
from morgan.background.ipc import calls
from morgan.background.ipc.client import expect
from morgan.background.workers.reranker import CrossEncoderReranker
from tests.components.test_models import tiny_bert, tiny_embedder

from .daemons import Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]

ADOPTED = " adopted: "
USED = "the fast path of model"


def said(daemon: Daemon, words: str, times: int = 1) -> bool | None:
    return daemon.log.read_text().count(words) >= times or None


@pytest.mark.timeout(400)
def test_a_graph_is_made_beside_the_work_and_used_from_then_on(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    reference = tiny_embedder(tmp_path)
    cross_encoder = tiny_bert(tmp_path / "cross-encoder", labels=1)
    env = {"MORGAN_MODEL_NAME": reference.settings.name, "MORGAN_MODEL_LOADER": "fast"}
    daemon = make_daemon(env | {"MORGAN_RERANKER_CROSS_ENCODER": cross_encoder}).start()
    some = documents()[:12]
    daemon.client.create_collection("docs", 32)
    flat = [1.0] + [0.0] * 31
    daemon.client.upsert("docs", [{"id": d["id"], "vector": flat, "payload": dict(d)} for d in some])
    daemon.until(lambda _: said(daemon, ADOPTED, 2))
    assert len(list((daemon.state / "graphs").glob("*.onnx"))) == 2
    assert daemon.run("reindex", "docs")["documents_embedded"] == 12
    points = daemon.points("docs")
    found = np.stack([np.frombuffer(points[d["id"]][1] or b"", dtype="<f4") for d in some])
    assert np.allclose(found, reference.embed([d["text"] for d in some]), atol=1e-5)
    answer = expect(calls.Embedded, daemon.client.call(calls.Embed(texts=("zinc",))))
    assert np.allclose(np.frombuffer(answer.vectors, dtype="<f4"), reference.embed(["zinc"])[0], atol=1e-5)

    daemon.run("rerank", "docs", queries=["zinc"])
    daemon.until(lambda _: said(daemon, "the fast path of cross-encoder"))
    held = daemon.client.reader.get("zinc", "docs")
    assert held is not None
    plain = CrossEncoderReranker(cross_encoder).score("zinc", held.contents, held.scores)
    assert np.allclose(held.rerank_scores, plain, atol=1e-6)

    # the next service has it from the start, and no vector is made again
    daemon.stop()
    uses = daemon.log.read_text().count(USED)
    daemon.start()
    daemon.until(lambda _: said(daemon, USED, uses + 1))
    assert daemon.run("reindex", "docs")["documents_embedded"] == 0
    assert daemon.log.read_text().count(ADOPTED) == 2


@pytest.mark.timeout(400)
def test_a_fork_server_killed_while_a_graph_is_made_takes_the_maker_with_it(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    name = tiny_embedder(tmp_path).settings.name
    daemon = make_daemon({"MORGAN_MODEL_NAME": name, "MORGAN_MODEL_LOADER": "auto"}).start()
    for child in daemon.children():
        if child.name() == "morgan-zygote":
            child.send_signal(signal.SIGKILL)
    daemon.until(lambda _: said(daemon, ADOPTED))
    assert len(list((daemon.state / "graphs").glob("*.onnx"))) == 1
    assert not list((daemon.state / "graphs").glob("making-*"))
