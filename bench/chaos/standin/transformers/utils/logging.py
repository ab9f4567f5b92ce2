"""See sentence_transformers.py: what the workers call of transformers, without it."""

from __future__ import annotations


def is_progress_bar_enabled() -> bool:
    return False


def get_verbosity() -> int:
    return 0


def set_verbosity(_level: int) -> None:
    pass


def set_verbosity_error() -> None:
    pass


def enable_progress_bar() -> None:
    pass


def disable_progress_bar() -> None:
    pass
