"""Owns one training of a reranker: a loss over groups of one query, optimizer steps that are paced, state on disk.

    examples ─▶ order by seed ─▶ groups of a query: one relevant text, others ─▶ loss, backward, pace ─▶ optimizer step
                                                                                  state file ◀─ save, restore ─┘

Knows neither tasks nor collections: see learning.py, and bench/train_reranker.py. What it comes to depends on the seed, the
examples and the plan alone, also where it was cut off and went on: chance is drawn anew from the seed in every step.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from .fingerprint import fingerprint
from .models import torch_threads

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

STATE_FORMAT = 1  # of the state file: of another one nothing is read, and the training begins anew


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is trained. The numbers are reasoned in docs/design.md, "Learning"."""

    seed: int = 0
    epochs: int = 4  # times that every relevant text is seen
    queries: int = 8  # of an optimizer step
    others: int = 3  # texts beside the relevant one, in a group
    easy: int = 1  # of them, drawn from all others of the query; the rest from the nearest
    hard: int = 20  # how many are the nearest
    max_words: int = 60  # of a text that the model reads (excerpts.py)
    max_tokens: int = 128  # of query and text together
    learning_rate: float = 2e-4
    head_rate: float = 5e-4  # of weights that begin at random
    frozen_layers: int = 2  # of the encoder, from below; its embeddings are frozen always
    warm_up: float = 0.1  # of the steps
    weight_decay: float = 0.01

    def steps(self, examples: int) -> int:
        """Return of how many optimizer steps a training on so many examples is."""
        return max(self.epochs * examples // self.queries, 1)


@dataclass(frozen=True, slots=True)
class Example:
    """A query, a text that is relevant to it, and others, nearest first, that are not."""

    query: str
    relevant: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class At:
    """Where a training stands: optimizer steps done, of how many, and the mean loss of the last step."""

    step: int
    steps: int
    loss: float


class Trainable(Protocol):
    """A model that scores texts against a query."""

    @property
    def module(self) -> torch.nn.Module: ...

    def scores(self, query: str, texts: Sequence[str], max_tokens: int) -> torch.Tensor:
        """Return differentiable scores, shape (len(texts),), on the scale of logits."""
        ...

    def layers(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """Return the embeddings and the encoder's layers from below."""
        ...

    def heads(self) -> Sequence[torch.nn.Module]:
        """Return the modules whose weights began at random."""
        ...

    def write(self, folder: Path, max_tokens: int) -> None:
        """Write the model into a folder, to be loaded by its path and cut at `max_tokens`."""
        ...


class Training:
    """See the module. `threads` of torch; raises ValueError where there is no example."""

    def __init__(self, model: Trainable, examples: Sequence[Example], plan: Plan, threads: int = 1) -> None:
        import torch

        if not examples:
            raise ValueError("a training needs an example")
        self.model, self._examples, self._plan, self._threads = model, tuple(examples), plan, threads
        self.step, self.steps = 0, plan.steps(len(examples))
        embeddings, layers = model.layers()
        for module in (embeddings, *layers[: plan.frozen_layers]):
            module.requires_grad_(False)
        heads = {id(one) for head in model.heads() for one in head.parameters()}
        self._trained = {name: one for name, one in model.module.named_parameters() if one.requires_grad}
        body = [one for one in self._trained.values() if id(one) not in heads]
        head = [one for one in self._trained.values() if id(one) in heads]
        groups = [{"params": body, "rate": plan.learning_rate}, {"params": head, "rate": plan.head_rate}]
        self._optimizer = torch.optim.AdamW([one for one in groups if one["params"]], weight_decay=plan.weight_decay)

    def run(self, pace: Callable[[], None] = lambda: None) -> Iterator[At]:
        """Yield after each optimizer step until all are done. Calls `pace` after each group: some pairs of texts."""
        import torch

        while self.step < self.steps:
            loss, groups = 0.0, self._groups(self.step)
            self.model.module.train()
            self._optimizer.zero_grad(set_to_none=True)
            for number, (query, texts) in enumerate(groups):
                with torch_threads(self._threads), torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self._seed(self.step, number))
                    scores = self.model.scores(query, texts, self._plan.max_tokens)
                    # the softmax of a list with one relevant text (Cao et al. 2007, ListNet's top one)
                    lost = torch.logsumexp(scores, 0) - scores[0]
                    torch.autograd.backward(lost / len(groups))
                    loss += lost.item() / len(groups)
                pace()
            with torch_threads(self._threads):
                torch.nn.utils.clip_grad_norm_(list(self._trained.values()), 1.0)
                for group in self._optimizer.param_groups:
                    group["lr"] = group["rate"] * self._warmth(self.step)
                self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)  # a quarter of what a training holds, between two steps
            self.model.module.eval()
            self.step += 1
            yield At(self.step, self.steps, loss)

    def _groups(self, step: int) -> list[tuple[str, list[str]]]:
        """Return the groups of a step: the query, and texts of which the first is the relevant one."""
        groups = []
        for place in range(step * self._plan.queries, (step + 1) * self._plan.queries):
            example = self._example(place)
            groups.append((example.query, [example.relevant, *self._others(example, place)]))
        return groups

    def _example(self, place: int) -> Example:
        epoch, place = divmod(place, len(self._examples))
        order = list(range(len(self._examples)))
        random.Random(f"{self._plan.seed} {epoch}").shuffle(order)
        return self._examples[order[place]]

    def _others(self, example: Example, place: int) -> list[str]:
        """Draw the other texts: most from the nearest, some from all, which keeps what is plainly wrong low too."""
        draw = random.Random(f"{self._plan.seed} others {place}")
        hard = list(example.others[: self._plan.hard])
        chosen = draw.sample(hard, min(self._plan.others - self._plan.easy, len(hard)))
        rest = [text for text in example.others if text not in chosen]
        return chosen + draw.sample(rest, min(self._plan.others - len(chosen), len(rest)))

    def _seed(self, step: int, group: int) -> int:
        return (self._plan.seed * 1_000_003 + step) * 1009 + group

    def _warmth(self, step: int) -> float:
        """Return the share of the learning rate: up from 0 in the first steps, then down to 0 in a line."""
        done = (step + 1) / self.steps
        return min(done / self._plan.warm_up, 1.0) * (1 - step / self.steps)

    # --- going on later -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write what is needed to go on: weights that are trained, optimizer, step. The file is whole or the earlier one."""
        import torch

        made = path.with_suffix(".new")
        with made.open("wb") as file:
            torch.save(
                {
                    "format": STATE_FORMAT,
                    "of": self._fingerprint,
                    "step": self.step,
                    "weights": {name: one.detach() for name, one in self._trained.items()},
                    "optimizer": self._optimizer.state_dict(),
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)

    def restore(self, path: Path) -> bool:
        """Go on from what `save` wrote; False where there is nothing of this plan and these examples, or it is damaged."""
        import torch

        try:
            # weights_only: what is read is numbers, never code
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if (state["format"], state["of"]) != (STATE_FORMAT, self._fingerprint):
                return False
            with torch.no_grad():
                for name, one in self._trained.items():
                    one.copy_(state["weights"][name])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except FileNotFoundError:
            return False
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be gone on from, so the training begins anew: %s", path, error)
            return False
        return True

    @property
    def _fingerprint(self) -> str:
        """Say what a state is of: it fits no other plan, examples or model."""
        parts = [repr(self._plan), *(f"{one.query}\0{one.relevant}" for one in self._examples)]
        parts += [f"{name} {tuple(one.shape)}" for name, one in self._trained.items()]
        return fingerprint("\n".join(parts))
