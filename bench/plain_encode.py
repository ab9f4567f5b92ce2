"""Owns what a user would write instead of a re-index: SentenceTransformer.encode over a list, in a process of its own.

    python -m bench.plain_encode MODEL THREADS     texts as JSON lines on stdin, a line {"seconds": ..} for each on stdout

The model is loaded and has computed once before the first line is answered. {"texts": [..], "save": FILE} also keeps the
vectors, float32 of shape (N, D), as a .npy file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class Plain:
    """The parent's end of such a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self, texts: Sequence[str], save: Path | None = None) -> float:
        """Return how long `encode` took. Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"texts": list(texts), "save": str(save or "")}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"plain SentenceTransformer.encode ended with code {self._process.wait()}")
        return float(json.loads(line)["seconds"])


@contextmanager
def plain(model: str, threads: int) -> Iterator[Plain]:
    command = [sys.executable, "-m", "bench.plain_encode", model, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Plain(process)
        finally:
            process.kill()


def main(model_name: str, threads: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(model_name, device="cpu")
    model.encode(["a text", "and a longer one beside it"] * 8, show_progress_bar=False)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        # its default: batches of 32, sorted by length; normalised, as what is stored is
        vectors = model.encode(order["texts"], normalize_embeddings=True, show_progress_bar=False)
        seconds = time.perf_counter() - began
        if order["save"]:
            np.save(order["save"], vectors.astype(np.float32))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
