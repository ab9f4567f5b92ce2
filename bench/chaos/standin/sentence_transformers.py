"""A stand-in for sentence-transformers, for the chaos soak alone: real models take ten seconds of each restart.

It is no model. A text's vector is a hash of it, and two numbers that no other call has: so that a vector which was
written a second time differs from the one before. Each text that is embedded is a line in the file $CHAOS_EMBEDDED.
"""

from __future__ import annotations

import hashlib
import os
import select
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SIZE = 32
HASHED = 30  # of them are the text's; the rest is the call's


def of_text(text: str) -> Any:
    """Return the part of a vector that is the text's, of length 1."""
    raw = hashlib.sha256(text.encode()).digest()[:HASHED]
    part = np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 127.5
    return part / np.linalg.norm(part)


class SentenceTransformer:
    max_seq_length = 256

    def __init__(self, name: str, *, device: str, local_files_only: bool) -> None:
        self._pause_s = float(os.environ.get("CHAOS_EMBED_S", "0"))

    def get_embedding_dimension(self) -> int:
        return SIZE

    def parameters(self) -> list[Any]:
        return []

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def encode(self, texts: Sequence[str], **_options: Any) -> Any:
        # A step takes some time, so that kills come in the middle of one. Not by time.sleep: libfaketime makes that fail.
        select.select([], [], [], self._pause_s)
        if log := os.environ.get("CHAOS_EMBEDDED"):
            lines = "".join(f"{os.getpid()} {text}\n" for text in texts)
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(fd, lines.encode())
            os.close(fd)
        own = np.frombuffer(os.urandom(2 * len(texts)), dtype=np.int8).reshape(len(texts), 2) / np.float32(512)
        rows = np.hstack([np.stack([of_text(text) for text in texts]), own]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
