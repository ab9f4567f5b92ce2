"""Owns how a worker makes itself small to the scheduler. Called before any other thread exists: all of it is per thread."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil


def be_courteous() -> list[str]:
    """Give way to everything else; return in words what is in force.

    Nice alone yields nothing to other sessions where the kernel groups by session (research: 2.1x the latency), hence
    the autogroup. It is of the whole session, so this process must have one of its own. A step that is not permitted is
    left out: the CPU budget holds without it.
    """
    in_force = []
    me = psutil.Process()
    with suppress(psutil.Error, OSError):
        me.nice(19)
        in_force.append("nice 19")
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
        in_force.append("autogroup 19")
    with suppress(psutil.Error, OSError):
        me.ionice(psutil.IOPRIO_CLASS_IDLE)
        in_force.append("ionice idle")
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        in_force.append("SCHED_IDLE")
    return in_force
