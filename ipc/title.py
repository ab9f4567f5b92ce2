"""Owns what /proc and ps show of a process that was forked and went on as something else: not what its parent began as.

/proc/PID/cmdline  arg_start..arg_end    /proc/PID/environ  env_start..env_end    of the process's own memory
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_ARG_START = 48  # proc(5), the number of a field of stat; it is followed by arg_end, env_start and env_end


def set_title(title: str) -> None:
    """Show this process as `title` and with the variables that it has now, as far as there is room for them.

    A forked process would otherwise show its parent's command line, so that who ends one by name ends both, and the
    variables that were meant for its parent alone. Does nothing where the kernel does not say where they are.
    """
    for name, value in os.environ.items():
        os.putenv(name, value)  # the C library's are copies from now on: what is overwritten, nobody reads
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        before = set(Path("/proc/self/environ").read_bytes().split(b"\0"))
    except OSError:
        return
    arg_start, arg_end, env_start, env_end = map(int, fields[_ARG_START - 3 : _ARG_START + 1])
    if 0 < arg_start < arg_end:
        _overwrite(arg_start, arg_end, title.encode())
        ctypes.memset(arg_end - 1, 1, 1)  # no zero there: by that the kernel knows that a title ends at the first one
    if 0 < env_start < env_end:
        room, shown = env_end - env_start - 2, b""
        variables = [key + b"=" + held for key, held in os.environb.items()]
        for variable in sorted(variables, key=lambda one: one not in before):  # those that grew are the ones left out
            shown += variable + b"\0" if len(shown) + len(variable) < room else b""
        _overwrite(env_start, env_end, shown)


def _overwrite(start: int, end: int, text: bytes) -> None:
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, min(len(text), max(end - start - 2, 0)))
