"""Owns the three things that a process of ours asks of Linux by prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become_subreaper() -> None:
    """Let processes that lose their parent below this one become this one's children. Raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that is its parent ends: also while it is stopped or starved.

    Cleared by a fork and by setuid, so it is not the only means: see workers/link.py. Raises OSError.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_name(name: str) -> None:
    """Show this process as `name`, of which 15 bytes are kept, in ps and top. Raises OSError."""
    _prctl(PR_SET_NAME, name.encode())
