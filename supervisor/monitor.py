"""Owns the readings of this machine: CPU of our own and of others, memory, pressure. Decides nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from .governor import Readings

CGROUP = Path("/sys/fs/cgroup")
PRESSURE = Path("/proc/pressure/cpu")
MIN_INTERVAL_S = 0.05  # below this the kernel's 10 ms ticks say nothing; the last reading stands


def machine_cpus(cgroup: Path = CGROUP) -> int:
    """Return how many CPUs this process may use: its affinity, or the container's quota where that is smaller."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(cgroup)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Return the CPU quota in CPUs from cgroup v2 or v1; None where there is none."""
    if (text := _text(cgroup / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    quota_us, period_us = _text(cgroup / "cpu/cpu.cfs_quota_us"), _text(cgroup / "cpu/cpu.cfs_period_us")
    if quota_us is not None and period_us is not None and int(quota_us) > 0:
        return int(quota_us) / int(period_us)
    return None


def _cgroup_memory_permille(cgroup: Path) -> int:
    """Return how full the container's memory limit is; 0 where there is no limit."""
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _text(cgroup / limit_file), _text(cgroup / used_file)
        # v1 writes "no limit" as a number near 2^63
        if limit is not None and used is not None and limit != "max" and int(limit) < 2**60:
            return min(1000 * int(used) // max(int(limit), 1), 1000)
    return 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # not this cgroup version, or no container: the usual case


def _pressure_permille(path: Path = PRESSURE) -> int | None:
    """Return the share of the last 10 s in which some task waited for a CPU; None where the kernel has no PSI."""
    text = _text(path)
    if text is None:
        return None
    fields = dict(field.split("=") for field in text.splitlines()[0].split()[1:])
    return round(float(fields["avg10"]) * 10)


def _process_cpu_s(pid: int) -> float | None:
    """Return the CPU time of all threads of a process; None once it has ended.

    The process's CPU clock: 1-2 us a read and finer than psutil's 10 ms. Its id is made as clock_getcpuclockid does.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


class Monitor:
    """Differences between looks need a memory: one Monitor a purpose. Looks psutil up late, so that it may be patched."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self._cgroup = cgroup
        self._cpu_s: dict[int, float] = {}
        self._at_s = time.monotonic()
        self._last: Readings | None = None
        try:
            psutil.cpu_percent(interval=None)  # the first call only sets the starting point
        except Exception:  # noqa: BLE001 - the next sample fails the same way and says so
            self._last = None

    def sample(self, own_pids: Sequence[int], query_rate_hz: float = 0.0) -> Readings:
        """Return what was used since the last sample. Never raises: a failed reading says so in `reason`."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._at_s
        if self._last is not None and self._last.is_plausible and 0 <= elapsed_s < MIN_INTERVAL_S:
            return self._last
        try:
            self._last = self._read(own_pids, query_rate_hz, now_s, elapsed_s)
        except Exception as error:  # noqa: BLE001 - whatever failed: a machine that cannot be read counts as busy
            self._last = Readings(
                now_s, 0, 1000, 1000, 1, is_plausible=False, reason=f"{type(error).__name__}: {error}"
            )
        self._at_s = now_s
        return self._last

    def _read(self, own_pids: Sequence[int], query_rate_hz: float, now_s: float, elapsed_s: float) -> Readings:
        cpus = machine_cpus(self._cgroup)
        total_percent = float(psutil.cpu_percent(interval=None))
        memory_percent = float(psutil.virtual_memory().percent)
        for name, value in (("cpu_percent", total_percent), ("virtual_memory", memory_percent)):
            if not 0 <= value <= 100:
                raise ValueError(f"{name} says {value} %")
        own_permille = min(round(1000 * self._own_cpu_s(own_pids) / (max(elapsed_s, 1e-3) * cpus)), 1000)
        total_permille = round(total_percent * 10)
        return Readings(
            at_s=now_s,
            own_cpu_permille=own_permille,
            others_cpu_permille=max(total_permille - own_permille, 0),
            memory_used_permille=max(round(memory_percent * 10), _cgroup_memory_permille(self._cgroup)),
            cpus=cpus,
            psi_some_permille=_pressure_permille(),
            query_rate_hz=query_rate_hz,
        )

    def _own_cpu_s(self, pids: Sequence[int]) -> float:
        """Return the CPU time that `pids` used since the last sample. A new process counts from its next sample on."""
        current = {pid: used for pid in pids if (used := _process_cpu_s(pid)) is not None}
        used_s = sum(used - self._cpu_s.get(pid, used) for pid, used in current.items())
        self._cpu_s = current
        return used_s
