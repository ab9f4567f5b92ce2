"""The training of a cross-encoder: what it comes to, what it survives. The model is tiny: weights do not matter here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from morgan.background.ipc import launch
from morgan.background.ipc.errors import ModelUnavailable
from morgan.background.workers.reranker import CrossEncoderReranker
from morgan.background.workers.trainable import CrossEncoderModel
from morgan.background.workers.training import Example, Plan, Training

from .tiny_models import tiny_cross_encoder

ROOT = Path(__file__).parents[2]
PLAN = Plan(epochs=2, queries=2, others=2, learning_rate=1e-2, frozen_layers=1, max_tokens=32)
EXAMPLES = [Example(one, f"{one} {one}", ("zz", "yy x", "ww", "vv")) for one in ("ab", "cd", "ef", "gh", "ij", "kl")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross_encoder(tmp_path_factory.mktemp("tiny") / "model")


def training_of(tiny: Path, examples: Sequence[Example] = EXAMPLES, plan: Plan = PLAN) -> Training:
    return Training(CrossEncoderModel(str(tiny)), examples, plan)


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in training.model.module.state_dict().items()}


def test_a_training_that_was_cut_off_anywhere_comes_to_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    whole = training_of(tiny)
    losses = [at.loss for at in whole.run()]
    assert len(losses) == whole.steps == 6
    state = tmp_path / "state.pt"
    later: list[float] = []
    for _ in range(whole.steps):  # another object each time, as another process would have
        part = training_of(tiny)
        assert part.restore(state) is bool(later)
        later += [at.loss for at in islice(part.run(), 1)]
        part.save(state)
    assert later == losses
    wanted, found = weights_of(whole), weights_of(part)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert list(part.run()) == []


def test_what_is_frozen_stays_and_the_rest_learns_to_tell_what_is_relevant(tiny: Path) -> None:
    training = training_of(tiny, plan=msgspec.structs.replace(PLAN, epochs=12))
    before = weights_of(training)
    losses = [at.loss for at in training.run()]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    changed = {name for name, one in weights_of(training).items() if not torch.equal(one, before[name])}
    assert not any("embeddings" in name or "layer.0" in name for name in changed)
    assert any("layer.1" in name for name in changed)
    assert any("classifier" in name for name in changed)


def test_it_is_paced_after_each_group_and_a_pace_that_raises_leaves_it_where_the_last_step_was(
    tiny: Path, tmp_path: Path
) -> None:
    paces: list[int] = []

    class Stopped(Exception):
        pass

    def pace() -> None:
        paces.append(1)
        if len(paces) == 5:
            raise Stopped

    training = training_of(tiny)
    with pytest.raises(Stopped):
        list(training.run(pace))
    assert training.step == 2  # of two groups each; the fifth was in the third
    training.save(tmp_path / "state.pt")
    rest = training_of(tiny)
    assert rest.restore(tmp_path / "state.pt")
    assert [at.step for at in rest.run()] == [3, 4, 5, 6]
    whole = training_of(tiny)
    list(whole.run())
    assert all(torch.equal(one, weights_of(whole)[name]) for name, one in weights_of(rest).items())


def test_a_state_that_is_damaged_or_of_something_else_is_not_gone_on_from(tiny: Path, tmp_path: Path) -> None:
    training, state = training_of(tiny), tmp_path / "state.pt"
    next(training.run())
    training.save(state)
    assert training_of(tiny).restore(state)
    assert not training_of(tiny, EXAMPLES[:-1]).restore(state)
    assert not training_of(tiny, plan=msgspec.structs.replace(PLAN, seed=1)).restore(state)
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    cut = training_of(tiny)
    assert not cut.restore(state)
    assert cut.step == 0
    state.write_bytes(b"")
    assert not training_of(tiny).restore(state)


def test_what_is_written_is_a_cross_encoder_that_scores_as_the_trained_model_does(tiny: Path, tmp_path: Path) -> None:
    training = training_of(tiny)
    list(training.run())
    training.model.write(tmp_path / "made", 32)
    texts = ["ab ab", "zz", "cd " * 60]
    with torch.inference_mode():
        wanted = training.model.scores("ab", texts, 32).numpy()
    found = CrossEncoderReranker(str(tmp_path / "made")).score("ab", texts, np.zeros(3, dtype=np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # of logits: no sigmoid flattens them


def test_bad_input_is_refused_in_words(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs an example"):
        training_of(tiny, [])
    with pytest.raises(ModelUnavailable, match="no model folder"):
        CrossEncoderModel(str(tmp_path / "nowhere"))


KILLED = """
import sys
from pathlib import Path
from tests.components.test_training import training_of
tiny, state = map(Path, sys.argv[1:])
training = training_of(tiny)
for at in training.run():
    training.save(state)
    print(at.step, flush=True)
"""


def test_a_training_whose_process_was_killed_comes_to_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    command = [sys.executable, "-c", KILLED, str(tiny), str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=launch.environment({})) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "3\n":
            assert process.poll() is None
        process.kill()  # in the middle of the fourth step, or while it is saved
    rest = training_of(tiny)
    assert rest.restore(state)
    assert rest.step >= 3
    list(rest.run())
    whole = training_of(tiny)
    list(whole.run())
    assert all(torch.equal(one, weights_of(whole)[name]) for name, one in weights_of(rest).items())
