"""Owns the readings of this machine: CPU of our own and of others, memory, pressure, battery. Decides nothing.

"The machine" is what this process may use: the CPUs of its affinity, or its container's quota where that is less. What
others use is counted on those CPUs, and in the container as well where it has a quota: the higher share stands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from .container import CGROUP, Container, PseudoFile
from .governor import Readings
from .procfs import cpu_s

STAT = Path("/proc/stat")
PRESSURE = Path("/proc/pressure/cpu")
MIN_INTERVAL_S = 0.05  # below this the kernel's 10 ms ticks say nothing; the last reading stands
PRESSURE_PERIOD_S = (
    0.5  # between looks at who waited for a CPU: it weighs what WINDOW_S says, and takes a read a worker
)
SLOW_PERIOD_S = 1.0  # between readings of memory: it changes slowly, and they take as long as all the others
RARE_PERIOD_S = 30.0  # between looks at the battery, and for other limits of the container


class Own:
    """What the service's own processes used and waited for."""

    def __init__(self) -> None:
        # this process counts from the start on, else what it does until the first sample would be others'
        self._cpu_s: dict[int, float] = {}
        self.cpu_s([os.getpid()])
        self._waits: dict[int, tuple[PseudoFile, int]] = {}

    def cpu_s(self, pids: Sequence[int]) -> float:
        """Return the CPU time that `pids` used since the last call. A new process counts from its next one on."""
        current = {pid: used for pid in pids if (used := cpu_s(pid)) is not None}
        used_s = sum(max(used - self._cpu_s.get(pid, used), 0.0) for pid, used in current.items())
        self._cpu_s = current
        return used_s

    def waited_s(self, pids: Sequence[int]) -> float:
        """Return how long the main threads of `pids` were ready to run and had no CPU, since the last call."""
        current, waited_ns = {}, 0
        for pid in pids:
            file, before = self._waits.pop(pid, (None, 0))
            file = file or PseudoFile.at(Path(f"/proc/{pid}/schedstat"))
            if file is None:
                continue
            try:
                now_ns = int(file.read(64).split(None, 2)[1])
            except (OSError, IndexError):  # it has ended
                file.close()
                continue
            waited_ns += now_ns - before if before else 0
            current[pid] = (file, now_ns)
        for file, _ in self._waits.values():
            file.close()
        self._waits = current
        return waited_ns / 1e9


class Pressure:
    """How much of the time some task waited for a CPU. None where the kernel does not say."""

    def __init__(self, path: Path = PRESSURE) -> None:
        self._file = PseudoFile.at(path)
        self._total_us: int | None = None

    def waited_s(self) -> float | None:
        """Return for how long some task waited since the last call; None at the first."""
        if self._file is None:
            return None
        total_us = int(self._file.read(128).split(b"total=", 1)[1].split(None, 1)[0])
        before, self._total_us = self._total_us, total_us
        return None if before is None else max(total_us - before, 0) / 1e6


class PsutilCpus:
    """Reads by psutil, looked up late so that it may be patched: for what runs in an application's process."""

    def busy(self, usable: set[int], elapsed_s: float) -> float:
        """Return how many CPUs' worth of time anybody used on the usable ones since the last call."""
        online = os.cpu_count() or 1
        if len(usable) >= online:
            return _percent("cpu_percent", psutil.cpu_percent(interval=None)) / 100 * online
        of_cpu = dict(zip(_online_cpus(), psutil.cpu_percent(interval=None, percpu=True), strict=True))
        return sum(_percent("cpu_percent", of_cpu[cpu]) for cpu in usable) / 100


class KernelCpus:
    """The same in a fifth of the time, by what psutil reads: a service takes ten readings a second."""

    TICKS_PER_S = os.sysconf("SC_CLK_TCK")

    def __init__(self, path: Path = STAT) -> None:
        self._file = PseudoFile(path)
        self._counted: tuple[set[int], bool] | None = None  # what the ticks are of: CPUs, by the line that sums them up
        self._busy_ticks = 0
        self.busy(os.sched_getaffinity(0), 1.0)  # the first call only sets the starting point

    def busy(self, usable: set[int], elapsed_s: float) -> float:
        """Return how many CPUs' worth of time anybody used on the usable ones since the last call; 0 where those changed.

        Raises ValueError where the file is none.
        """
        text = self._file.read()
        end = text.find(b"\nintr")
        online = text.count(b"\ncpu", 0, end)
        is_all = online == len(usable)
        lines = [text[: text.index(b"\n")]] if is_all else _lines_of(usable, text[:end])
        if not lines:
            raise ValueError(f"{STAT} says nothing of the CPUs {sorted(usable)}")
        ticks = sum(map(_busy_ticks, lines))
        counted = usable, is_all
        fresh = ticks - self._busy_ticks if counted == self._counted else 0
        self._counted, self._busy_ticks = counted, ticks
        return min(max(fresh, 0) / self.TICKS_PER_S / elapsed_s, float(len(usable)))


def _lines_of(usable: set[int], text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n")[1:] if int(line[3 : line.index(b" ")]) in usable]


def _busy_ticks(line: bytes) -> int:
    """Return what a line of /proc/stat says of a CPU's time, less idle and waiting for a disk; guests are in user."""
    _, user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = line.split(None, 9)
    return int(user) + int(nice) + int(system) + int(irq) + int(softirq) + int(steal)


class Monitor:
    """Differences between looks need a memory: one Monitor a purpose."""

    def __init__(self, groups: Path = CGROUP, cpus: PsutilCpus | KernelCpus | None = None) -> None:
        self._groups, self._cpus = groups, cpus or PsutilCpus()
        self._own, self._pressure = Own(), Pressure()
        self._container: Container | None = None
        self._container_used_s: float | None = None
        self._memory_permille = 1000
        self._is_on_battery = False
        self._psi_permille: int | None = None
        self._pressure_at_s = float("-inf")
        self._slow_at = self._rare_at = float("-inf")
        self._at_s = time.monotonic()
        self._last: Readings | None = None
        try:
            psutil.cpu_percent(interval=None)  # the first call only sets the starting point
        except Exception:  # noqa: BLE001 - the next sample fails the same way and says so
            self._last = None

    def sample(self, own_pids: Sequence[int], query_rate_hz: float = 0.0) -> Readings:
        """Return what was used since the last sample. Never raises: a failed reading says so in `reason`.

        The first waits until there is something to tell, for MIN_INTERVAL_S at most: one tick in 5 ms would be a busy
        machine.
        """
        now_s = time.monotonic()
        if self._last is None and 0 <= now_s - self._at_s < MIN_INTERVAL_S:
            time.sleep(MIN_INTERVAL_S - (now_s - self._at_s))
            now_s = time.monotonic()
        elapsed_s = now_s - self._at_s
        if self._last is not None and self._last.is_plausible and 0 <= elapsed_s < MIN_INTERVAL_S:
            return self._last
        try:
            self._last = self._read(own_pids, query_rate_hz, now_s, max(elapsed_s, 1e-3))
        except Exception as error:  # noqa: BLE001 - whatever failed: a machine that cannot be read counts as busy
            self._slow_at = self._rare_at = float("-inf")
            self._last = Readings(
                now_s, 0, 1000, 1000, 1, is_plausible=False, reason=f"{type(error).__name__}: {error}"
            )
        self._at_s = now_s
        return self._last

    def _read(self, own_pids: Sequence[int], query_rate_hz: float, now_s: float, elapsed_s: float) -> Readings:
        if now_s >= self._rare_at:
            self._look_rarely(now_s)
        if now_s >= self._slow_at:
            self._look_slowly(now_s)
        if now_s - self._pressure_at_s >= PRESSURE_PERIOD_S:
            self._look_at_pressure(own_pids, now_s)
        usable = os.sched_getaffinity(0)
        own_cpus = self._own.cpu_s(own_pids) / elapsed_s
        others_share = max(self._cpus.busy(usable, elapsed_s) - own_cpus, 0.0) / len(usable)
        cpus = float(len(usable))
        container = self._container
        if container is not None and container.cpus is not None and container.cpus < cpus:
            cpus = container.cpus
            used_s, before = container.used_s(), self._container_used_s
            self._container_used_s = used_s
            if used_s is not None and before is not None:
                others_share = max(others_share, ((used_s - before) / elapsed_s - own_cpus) / cpus)
        return Readings(
            at_s=now_s,
            own_cpu_permille=min(round(1000 * own_cpus / cpus), 1000),
            others_cpu_permille=min(round(1000 * others_share), 1000),
            memory_used_permille=self._memory_permille,
            cpus=cpus,
            psi_some_permille=self._psi_permille,
            is_on_battery=self._is_on_battery,
            query_rate_hz=query_rate_hz,
        )

    def _look_at_pressure(self, own_pids: Sequence[int], now_s: float) -> None:
        """Find the share of the time since the last look in which some task of others waited, at the least.

        The kernel counts our own as well, and those wait whenever anybody else runs: that is what they are niced for.
        """
        waited_s, own_s = self._pressure.waited_s(), self._own.waited_s(own_pids)
        share = None if waited_s is None else min(max(waited_s - own_s, 0.0) / (now_s - self._pressure_at_s), 1.0)
        self._psi_permille = None if share is None else round(1000 * share)
        self._pressure_at_s = now_s  # only now: a look that failed is made again at the next sample

    def _look_slowly(self, now_s: float) -> None:
        percent = _percent("virtual_memory", psutil.virtual_memory().percent)
        of_container = 0 if self._container is None else self._container.memory_permille()
        self._memory_permille = max(round(percent * 10), of_container)
        self._slow_at = now_s + SLOW_PERIOD_S

    def _look_rarely(self, now_s: float) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None  # where making the new one fails
        self._container = Container(self._groups)
        self._container_used_s = None
        battery = psutil.sensors_battery()
        self._is_on_battery = battery is not None and battery.power_plugged is False
        self._rare_at = now_s + RARE_PERIOD_S


def _percent(name: str, value: float) -> float:
    """Return a percentage. Raises ValueError for what is none."""
    if not 0 <= float(value) <= 100:
        raise ValueError(f"{name} says {value} %")
    return float(value)


def _online_cpus() -> list[int]:
    """Return the numbers of the CPUs that are online, in psutil's order: that of /proc/stat."""
    with STAT.open(encoding="ascii") as lines:
        names = (line.split(" ", 1)[0] for line in lines)
        return [int(name[3:]) for name in names if name.startswith("cpu") and name != "cpu"]
