"""Owns what a process of ours asks of Linux that Python has no call for: by prctl(2) and sched_setattr(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


# linux/sched.h, and where the call has that number
SCHED_BATCH = 3
SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("sched_policy", ctypes.c_uint32),
        ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", ctypes.c_uint32),
        ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64),
        ("sched_period", ctypes.c_uint64),
    )


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


def set_slice(pid: int, slice_ns: int, nice: int) -> None:
    """Have the thread `pid` (0: this one) run for `slice_ns` at once where others wait, as a SCHED_BATCH one of `nice`.

    Kept under another policy, and inherited. Raises OSError; a kernel before Linux 6.12 takes it and does nothing.
    """
    number = SYS_SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    attributes = _SchedAttr(ctypes.sizeof(_SchedAttr), SCHED_BATCH, 0, nice, 0, slice_ns, 0, 0)
    if _libc.syscall(number, pid, ctypes.byref(attributes), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
