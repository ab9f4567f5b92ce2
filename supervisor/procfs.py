"""Owns what /proc tells of another process of ours. A process that has ended reads as nothing: asleep, 0."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """Return the pid of its parent, 0 if it is not there."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def is_runnable(pid: int) -> bool:
    """Say whether a thread of it has a CPU or waits for one: it is not stuck, however long it has not been heard of."""
    stats = (_text(f"/proc/{pid}/task/{thread}/stat") for thread in threads(pid))
    return any(stat.rpartition(")")[2].split()[:1] == ["R"] for stat in stats)


def delay_ns(pid: int) -> int:
    """Return how long its first thread has waited for a CPU in all, in ns; 0 where the kernel does not count that."""
    fields = _text(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) if len(fields) > 1 else 0


def rss_kib(pid: int) -> int:
    """Return its resident memory in KiB; what it shares with the fork server counts for each."""
    fields = _text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_KIB if len(fields) > 1 else 0


def set_cpus(pid: int, cpus: tuple[int, ...]) -> None:
    """Move all its threads to `cpus`. What is not permitted, or gone, is left as it is."""
    for thread in threads(pid):
        with suppress(OSError):
            os.sched_setaffinity(thread, cpus)
