"""Owns how a worker is made small to the scheduler: by the fork server, before a second thread of it exists.

All of it is per thread and inherited. Not by the worker itself: two workers less have the pages of psutil to themselves.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from ..ipc import prctl

SLICE_NS = (
    100_000  # the least there is: a worker that wakes just before others do keeps them waiting for it, not for 3 ms
)


def pin(pid: int, cpus: Collection[int]) -> None:
    """Have the process `pid` run on `cpus`; 0 is this one, here and below.

    A CPU that was taken away meanwhile is no error: the supervisor looks again in seconds.
    """
    with suppress(psutil.Error, OSError, ValueError):
        psutil.Process(pid or None).cpu_affinity(list(cpus))


def make_courteous(pid: int) -> list[str]:
    """Let the process `pid` give way to everything else; return in words what is in force.

    Nice alone yields nothing to other sessions where the kernel groups by session (research: 2.1x the latency), hence
    the autogroup. It is of the whole session, so the process must have one of its own. A step that is not permitted is
    left out: the CPU budget holds without it.
    """
    in_force = []
    with suppress(psutil.Error, OSError):
        psutil.Process(pid or None).nice(19)
        in_force.append("nice 19")
    with suppress(OSError):  # before SCHED_IDLE, under which the kernel takes no slice
        prctl.set_slice(pid, SLICE_NS, 19)
        in_force.append("short slice")
    with suppress(OSError):
        Path(f"/proc/{pid or 'self'}/autogroup").write_text("19")
        in_force.append("autogroup 19")
    with suppress(psutil.Error, OSError):
        psutil.Process(pid or None).ionice(psutil.IOPRIO_CLASS_IDLE)
        in_force.append("ionice idle")
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        in_force.append("SCHED_IDLE")
    return in_force
