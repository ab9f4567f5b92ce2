"""See sentence_transformers.py beside this: what the workers call of torch, without it."""

from __future__ import annotations


def get_num_threads() -> int:
    return 1


def set_num_threads(_count: int) -> None:
    pass


def manual_seed(_seed: int) -> None:
    pass
