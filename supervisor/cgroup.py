"""Owns the control group of the task workers: in it the kernel gives them what nobody else wants, whatever their session.

    v2, delegated (systemd: Delegate=cpu)     OURS/supervisor/   this process, the fork server, the store owner
                                              OURS/workers/      cpu.idle = 1, or cpu.weight = 1
    v1, in a group that is not the root       OURS/morgan-workers/   cpu.idle = 1, or cpu.shares = 2

Where none is ours to use, niceness, SCHED_IDLE and autogroup are what is left (workers/courtesy.py); they are set in any
case. No quota: cpu.max lets a group run for 100 ms before it stops it for the rest, and pacing is finer (research: a quota
alone gave way to a foreground step after 1.7 s).
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import procfs

log = logging.getLogger(__name__)

LEAF, WORKERS, WORKERS_V1 = "supervisor", "workers", "morgan-workers"
DELEGATED = ("user.delegate", "trusted.delegate")  # what systemd marks a delegated group with


@dataclass(frozen=True, slots=True)
class Place:
    """The group this process is in."""

    folder: Path
    is_v2: bool


def places(groups: str, mounts: str) -> list[Place]:
    """Return where this process's CPU group may be, the better first. `groups`: /proc/self/cgroup; `mounts`: /proc/mounts.

    Not the root of a tree: everybody else is in there, too.
    """
    found: list[Place] = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        is_v2 = not controllers
        if path == "/" or not (is_v2 or "cpu" in controllers.split(",")):
            continue
        for mount in mounts.splitlines():
            _, point, kind, options, *_ = mount.split(" ")
            if kind == ("cgroup2" if is_v2 else "cgroup") and (is_v2 or "cpu" in options.split(",")):
                found.append(Place(Path(point + path), is_v2))
                break
    return sorted(found, key=lambda place: not place.is_v2)


def own_places() -> list[Place]:
    return _places_of(os.getpid())


def in_force(pid: int) -> list[str]:
    """Return in words what a group of ours makes of a process, as the kernel has both; empty where it is in none."""
    for place in _places_of(pid):
        if place.folder.name in (WORKERS, WORKERS_V1):
            for name in ("cpu.idle", "cpu.weight" if place.is_v2 else "cpu.shares"):
                value = (procfs.read_text(str(place.folder / name)) or "").strip()
                if value and (name, value) != ("cpu.idle", "0"):
                    return [f"cgroup {place.folder.name}: {name} {value}"]
    return []


def _places_of(pid: int) -> list[Place]:
    # not in one read: the kernel hands out some 4 KiB of the mounts at a time, and a machine with containers has more
    with suppress(OSError):
        return places(
            procfs.read_text(f"/proc/{pid}/cgroup") or "", Path("/proc/self/mounts").read_text(errors="replace")
        )
    return []


class WorkerGroup:
    """`join` puts a worker into the group. Whatever fails is logged once and does without: `words` says what is in force."""

    def __init__(self, folder: Path | None = None, words: str = "", *, is_v2: bool = True) -> None:
        self._folder, self.words, self._is_v2 = folder, words, is_v2

    @classmethod
    def open(cls, found: list[Place]) -> WorkerGroup:
        """Make the group where one may be made; else return one that does nothing."""
        for place in found:
            try:
                group = _open_v2(place.folder) if place.is_v2 else _open_v1(place.folder)
            except OSError as error:
                log.info("no control group in %s for the workers (%s): they are niced", place.folder, error)
                continue
            if group is not None:
                log.info("workers run in the control group %s with %s", group._folder, group.words)
                return group
        return cls()

    def join(self, pid: int) -> None:
        """Put a process into the group; one that has ended is none of our concern."""
        if self._folder is None:
            return
        try:
            self._put(self._folder, pid)
        except ProcessLookupError:
            return
        except OSError as error:
            log.warning("the workers' control group is of no use any more (%s): they are niced", error)
            self._folder, self.words = None, ""

    def _put(self, folder: Path, pid: int) -> None:
        try:
            _write(folder / "cgroup.procs", str(pid))
        except FileNotFoundError:
            # removed while no worker was in it: by somebody tidy, or another service in our group
            self.words = _fill(folder, is_v2=self._is_v2)
            _write(folder / "cgroup.procs", str(pid))

    def close(self) -> None:
        """Remove the group once its workers have ended."""
        if self._folder is not None:
            with suppress(OSError):  # one is on its way out: the next start finds the group, and uses it
                self._folder.rmdir()


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def is_delegated(folder: Path) -> bool:
    """Say whether a v2 group was given to us: systemd marks it, or it belongs to the user we are (who is not root)."""
    for name in DELEGATED:
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return os.getuid() != 0 and folder.stat().st_uid == os.getuid()


def _open_v2(folder: Path) -> WorkerGroup | None:
    if folder.name == LEAF:  # an earlier one of us made it, and was started anew inside
        folder = folder.parent
    if not is_delegated(folder) or "cpu" not in (folder / "cgroup.controllers").read_text().split():
        return None
    pids = (folder / "cgroup.procs").read_text().split()
    if any(int(pid) != os.getpid() and procfs.parent(int(pid)) != os.getpid() for pid in pids):
        return None  # a terminal's, say: others would have to be moved
    return _divide(folder, pids)


def _divide(folder: Path, pids: list[str]) -> WorkerGroup:
    """Make both groups below one that holds `pids` alone, and move those into the leaf. Raises OSError: all is as before."""
    leaf, workers = folder / LEAF, folder / WORKERS
    try:
        leaf.mkdir(exist_ok=True)
        _move(pids, leaf)  # a group with children that have controllers may hold no process itself
        _write(folder / "cgroup.subtree_control", "+cpu")
        return WorkerGroup(workers, _fill(workers, is_v2=True), is_v2=True)
    except OSError:
        with suppress(OSError):
            _write(folder / "cgroup.subtree_control", "-cpu")
        with suppress(OSError):
            _move(pids, folder)
        for made in (workers, leaf):
            with suppress(OSError):
                made.rmdir()
        raise


def _move(pids: list[str], group: Path) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            _write(group / "cgroup.procs", pid)


def _open_v1(folder: Path) -> WorkerGroup:
    workers = folder / WORKERS_V1
    return WorkerGroup(workers, _fill(workers, is_v2=False), is_v2=False)


def _values(*, is_v2: bool) -> tuple[tuple[str, str], ...]:
    """Return what makes a group give way, the strongest first; the last one is on every kernel."""
    return ("cpu.idle", "1"), ("cpu.weight", "1") if is_v2 else ("cpu.shares", "2")


def _fill(workers: Path, *, is_v2: bool) -> str:
    """Make the workers' group, and have it give way; return in words what does it."""
    workers.mkdir(exist_ok=True)
    *better, last = _values(is_v2=is_v2)
    for name, value in better:
        with suppress(OSError):  # before Linux 5.15
            _write(workers / name, value)
            return f"{name} {value}"
    _write(workers / last[0], last[1])
    return f"{last[0]} {last[1]}"
