"""Owns what /proc tells of another process of ours. A process that has ended reads as nothing: asleep, 0."""

from __future__ import annotations

import os
import time

import psutil

MAX_TEXT = 65536  # bytes: the files read here are of some lines
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
LOOKS = (
    50  # at a process's threads, at most: one whose threads start and end every 0.1 ms took 41 once in 200,000 moves
)


def read_text(path: str) -> str | None:
    """Return a small file of the kernel's in one read; None where it cannot be read. A third of what pathlib takes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, MAX_TEXT).decode(errors="replace")
    except OSError:  # ESRCH: the process has ended meanwhile
        return None
    finally:
        os.close(fd)


def _text(path: str) -> str:
    return read_text(path) or ""


def parent(pid: int) -> int:
    """Return the pid of its parent, 0 if it is not there."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def children(pid: int) -> list[int]:
    """Return the pids of what its first thread has forked and not waited for; none where the kernel does not list them."""
    return [int(child) for child in _text(f"/proc/{pid}/task/{pid}/children").split()]


def name(pid: int) -> str:
    """Return what it calls itself, 15 characters of it; "" where it is not there."""
    return _text(f"/proc/{pid}/comm").strip()


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


def cpu_s(pid: int) -> float | None:
    """Return the CPU time of all its threads; None once it has ended.

    The process's CPU clock: 1-2 us a read and finer than psutil's 10 ms. Its id is made as clock_getcpuclockid does.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def rss_kib(pid: int) -> int:
    """Return its resident memory in KiB; what it shares with the fork server counts for each."""
    fields = _text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_KIB if len(fields) > 1 else 0


def cpu_ticks() -> dict[int, int]:
    """Return for each CPU how long anybody used it, in ticks of the kernel's clock; empty where it does not say."""
    found = {}
    for line in _text("/proc/stat").split("\n")[1:]:
        if not line.startswith("cpu"):
            break
        name, *fields = line.split()
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)  # guests are in user
        found[int(name[3:])] = user + nice + system + irq + softirq + steal
    return found


def is_stopped(pid: int) -> bool:
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] == ["T"]


def set_cpus(pid: int, cpus: tuple[int, ...]) -> None:
    """Move all its threads to `cpus`. What is not permitted, or gone, is left as it is.

    A new thread has the CPUs of the one that started it: so further looks find those that one not moved yet has started,
    until two in a row find each thread where it belongs: the kernel's list is not made in one moment, and one that ended
    after it was listed may have started another.
    """
    settled = 0
    for _ in range(LOOKS):
        were_there = [_is_at(thread, cpus) for thread in threads(pid)]
        settled = settled + 1 if all(were_there) else 0
        if settled == 2:
            return


def _is_at(thread: int, cpus: tuple[int, ...]) -> bool:
    """Say whether it has these CPUs already; move it if not."""
    try:
        if os.sched_getaffinity(thread) == set(cpus):
            return True
        os.sched_setaffinity(thread, cpus)
    except OSError:
        pass  # gone, or not ours to move: the next look tells
    return False


def courtesy(pid: int) -> list[str]:
    """Return in words what makes it give way to others: what holds for each of its threads. Empty where it has ended."""
    try:
        each = [_courtesy_of(thread) for thread in threads(pid)]
    except (OSError, psutil.NoSuchProcess):  # one of them ended in between: the next look has the others
        return []
    common = ["stopped"] * is_stopped(pid) + [
        words for words in (each[0] if each else []) if all(words in other for other in each)
    ]
    return common + ["autogroup 19"] * ("nice 19" in _text(f"/proc/{pid}/autogroup"))


def _courtesy_of(thread: int) -> list[str]:
    cpus = sorted(os.sched_getaffinity(thread))
    words = []
    if len(cpus) < (os.cpu_count() or 1):
        words.append(f"on CPU {', '.join(map(str, cpus))}")
    if os.getpriority(os.PRIO_PROCESS, thread) == 19:
        words.append("nice 19")
    if os.sched_getscheduler(thread) == os.SCHED_IDLE:
        words.append("SCHED_IDLE")
    if psutil.Process(thread).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE:
        words.append("idle I/O")
    return words
