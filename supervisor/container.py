"""Owns what the control groups around this process allow and use: CPU quota, CPU time, memory. Decides nothing.

The limit that binds may be the process's own group's, as in a systemd service, or one above it. v2 and v1 are read.
A file that is not there says that there is no such limit; one that makes no sense raises ValueError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
NO_LIMIT = 2**60  # v1 writes "no limit" as a number near 2^63


class PseudoFile:
    """A small file of the kernel's, kept open: a read is 2 us instead of 15."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        return self.read().decode()

    def read(self, most: int = 16384) -> bytes:
        """Return its first bytes. Raises ProcessLookupError where it is of a process that has ended."""
        return os.pread(self._fd, most, 0)

    def close(self) -> None:
        os.close(self._fd)

    @classmethod
    def at(cls, path: Path) -> PseudoFile | None:
        """Return the file; None where it cannot be opened: not this version of groups, or none at all."""
        try:
            return cls(path)
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class _Cpu:
    """The tightest quota around this process, and what the group that has it has used."""

    quota: float  # CPUs
    used: PseudoFile | None
    is_v2: bool


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    limit: PseudoFile
    used: PseudoFile
    stat: PseudoFile | None
    cache: str  # the line of `stat` that says how much of `used` is cache the kernel gives back by itself


class Container:
    """`groups` is where control groups are mounted, `membership` says which of them this process is in."""

    def __init__(self, groups: Path = CGROUP, membership: Path = MEMBERSHIP) -> None:
        lines = _lines(membership)
        v2 = _upwards(groups, lines.get("", "/"))
        self._cpu = _tightest([*_quotas_v2(v2), *_quotas_v1(groups, lines.get("cpu", "/"))])
        self._memory = [
            *_memory_v2(v2),
            *_memory_v1(_upwards(groups / "memory", lines.get("memory", "/"))),
        ]

    @property
    def cpus(self) -> float | None:
        """The quota in CPUs, 0.5 for half of one; None where there is none."""
        return None if self._cpu is None else self._cpu.quota

    def close(self) -> None:
        files = [] if self._cpu is None or self._cpu.used is None else [self._cpu.used]
        for one in self._memory:
            files += [one.limit, one.used, *([one.stat] if one.stat is not None else [])]
        for file in files:
            file.close()

    def used_s(self) -> float | None:
        """Return the CPU time that the group with the quota has used; None where there is none."""
        if self._cpu is None or self._cpu.used is None:
            return None
        text = self._cpu.used.text()
        if self._cpu.is_v2:
            return int(text.split("usage_usec", 1)[1].split(None, 1)[0]) / 1e6
        return int(text) / 1e9

    def memory_permille(self) -> int:
        """Return how full the fullest limit is, without the cache that the kernel gives back by itself; 0: no limit."""
        return max(map(_fill_permille, self._memory), default=0)


def _lines(membership: Path) -> dict[str, str]:
    """Return controller -> path of this process's group; "" is the one of version 2."""
    try:
        text = membership.read_text()
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _upwards(mount: Path, path: str) -> list[Path]:
    """Return the folders of a group and of those above it, the mount itself last; only those that are there."""
    inner = Path(path.lstrip("/"))
    if ".." in inner.parts:
        return [mount]  # outside of this namespace
    folders = [mount / one for one in (inner, *inner.parents)]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def _quotas_v2(folders: list[Path]) -> list[_Cpu]:
    found = []
    for folder in folders:
        if (text := _text(folder / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
            if quota != "max":
                found.append(_Cpu(int(quota) / int(period), PseudoFile.at(folder / "cpu.stat"), is_v2=True))
    return found


def _quotas_v1(groups: Path, path: str) -> list[_Cpu]:
    found = []
    for folder in _upwards(groups / "cpu", path):
        quota_us, period_us = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota_us is not None and period_us is not None and int(quota_us) > 0:
            used = groups / "cpuacct" / folder.relative_to(groups / "cpu") / "cpuacct.usage"
            found.append(_Cpu(int(quota_us) / int(period_us), PseudoFile.at(used), is_v2=False))
    return found


def _tightest(quotas: list[_Cpu]) -> _Cpu | None:
    found = min(quotas, key=lambda one: one.quota, default=None)
    for one in quotas:
        if one is not found and one.used is not None:
            one.used.close()
    return found


def _memory_v2(folders: list[Path]) -> list[_MemoryFiles]:
    return [
        files
        for folder in folders
        if (files := _memory_files(folder, "memory.max", "memory.current", "inactive_file")) is not None
    ]


def _memory_v1(folders: list[Path]) -> list[_MemoryFiles]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return [files for folder in folders if (files := _memory_files(folder, *names)) is not None]


def _memory_files(folder: Path, limit: str, used: str, cache: str) -> _MemoryFiles | None:
    limit_file, used_file = PseudoFile.at(folder / limit), PseudoFile.at(folder / used)
    if limit_file is None or used_file is None:
        return None
    text = limit_file.text().strip()
    if text == "max" or int(text) >= NO_LIMIT:
        limit_file.close()
        used_file.close()
        return None
    return _MemoryFiles(limit_file, used_file, PseudoFile.at(folder / "memory.stat"), cache)


def _fill_permille(files: _MemoryFiles) -> int:
    limit = files.limit.text().strip()
    if limit == "max":
        return 0
    used = int(files.used.text())
    if files.stat is not None:
        for line in files.stat.text().splitlines():
            name, _, value = line.partition(" ")
            if name == files.cache:
                used -= int(value)
    return max(0, min(1000 * used // max(int(limit), 1), 1000))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
