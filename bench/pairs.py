"""Owns a process that scores candidates of queries in one of several ways, so that each has its threads to itself.

    python -m bench.pairs WAY MODEL THREADS [GRAPHS]

On stdin one JSON line an order, {"questions": [[query, [text, ..]], ..]}; on stdout one line an answer, {"seconds": ..,
"cpu_s": .., "scores": [[..], ..]}. WAY is `plain`: CrossEncoder.predict for each query by itself, with its defaults, as a user
would; `together`: our reranker, the pairs of all queries together; `paced`: the same as a task runs it, cut so that a pause
takes effect soon; `fast` and `fast paced`: both by the model's graph, which is made in the folder GRAPHS first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Question = tuple[str, Sequence[str]]  # a query and the texts of its candidates
Score = Callable[[Sequence[Question]], list[list[float]]]


@dataclass(frozen=True, slots=True)
class Scored:
    seconds: float
    cpu_s: float
    scores: list[npt.NDArray[np.float64]]


class Scorer:
    """The parent's end of such a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def score(self, questions: Sequence[Question]) -> Scored:
        """Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"questions": questions}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that scores pairs ended with code {self._process.wait()}")
        found = json.loads(line)
        return Scored(found["seconds"], found["cpu_s"], [np.array(one) for one in found["scores"]])


@contextmanager
def scorer(way: str, model: str, threads: int, graphs: str = "") -> Iterator[Scorer]:
    command = [sys.executable, "-m", "bench.pairs", way, model, str(threads), graphs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Scorer(process)
        finally:
            process.kill()


def plain(model_name: str, threads: int) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(model_name, device="cpu", local_files_only=True)

    def score(questions: Sequence[Question]) -> list[list[float]]:
        return [
            model.predict([(query, text) for text in texts], show_progress_bar=False).tolist()
            for query, texts in questions
        ]

    return score


def ours(way: str, model_name: str, graphs: str) -> Score:
    from morgan.background.workers.reranker import CrossEncoderReranker
    from morgan.background.workers.scoring import Question as Asked

    folder = f"{graphs}/{way}" if way.startswith("fast") else ""  # each its own: only one process makes one at a time
    reranker = CrossEncoderReranker(model_name, graph_folder=folder)
    if folder and reranker.is_open and (verdict := reranker.adopt()) is not None and not verdict.is_adopted:
        raise SystemExit(verdict.reason)
    pace = (lambda: None) if way.endswith("paced") else None

    def score(questions: Sequence[Question]) -> list[list[float]]:
        asked = [Asked(query, texts, np.zeros(len(texts), dtype=np.float32)) for query, texts in questions]
        return [one.tolist() for one in reranker.score_many(asked, pace=pace)]

    return score


def main(way: str, model_name: str, threads: int, graphs: str = "") -> None:
    score = plain(model_name, threads) if way == "plain" else ours(way, model_name, graphs)
    for line in sys.stdin:
        questions = json.loads(line)["questions"]
        began, cpu_before_s = time.perf_counter(), time.process_time()
        scores = score(questions)
        took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_before_s}
        print(json.dumps(took | {"scores": scores}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
