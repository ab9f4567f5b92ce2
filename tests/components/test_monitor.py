"""The readings of this machine: real ones make sense, own CPU is told from others', what fails counts as busy."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from morgan.background.supervisor.monitor import Monitor, machine_cpus

BUSY_S = 0.3  # of CPU, that the child uses between two samples: thirty of the kernel's ticks

# Uses the CPU until its standard input ends, and writes a byte for each 20 ms used.
CHILD = """
import os, select, sys, time
told = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(10_000):
        pass
    if time.process_time() // 0.02 > told:
        told = time.process_time() // 0.02
        os.write(1, b".")
"""


class Busy(psutil.Process):
    """A process that uses the CPU, with the pipe on which it says so."""

    def __init__(self, pid: int, said: int) -> None:
        super().__init__(pid)
        self.said = said


@pytest.fixture
def busy() -> Iterator[Busy]:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield Busy(child.pid, child.stdout.fileno())
        child.communicate()


def cpu_s(process: psutil.Process) -> float:
    """Return what /proc says of a process: not the way the monitor reads it."""
    times = process.cpu_times()
    return float(times.user + times.system)


def wait_until_used(process: Busy, more_s: float) -> None:
    until = cpu_s(process) + more_s
    while cpu_s(process) < until:
        assert os.read(process.said, 1) == b"."


def test_readings_of_a_real_machine_are_plausible(busy: Busy) -> None:
    monitor = Monitor()
    wait_until_used(busy, BUSY_S)
    readings = monitor.sample([os.getpid()], query_rate_hz=2.5)
    assert readings.is_plausible
    assert readings.reason == ""
    assert 0 <= readings.own_cpu_permille + readings.others_cpu_permille <= 2000
    assert 0 < readings.memory_used_permille <= 1000
    assert 1 <= readings.cpus <= (os.cpu_count() or 1)
    assert readings.psi_some_permille is None or 0 <= readings.psi_some_permille <= 1000
    assert readings.query_rate_hz == 2.5


def test_a_busy_process_is_own_where_its_pid_is_given(busy: Busy) -> None:
    monitor = Monitor()
    wait_until_used(busy, BUSY_S)
    outer, first = cpu_s(busy), monitor.sample([busy.pid])
    inner = cpu_s(busy)
    assert (
        first.own_cpu_permille == 0
    )  # a process counts from its second sample on: before that, there is no difference
    wait_until_used(busy, BUSY_S)
    least = cpu_s(busy) - inner
    second = monitor.sample([busy.pid])
    most = cpu_s(busy) - outer
    own_s = second.own_cpu_permille / 1000 * (second.at_s - first.at_s) * second.cpus
    rounding_s = 0.001 * (second.at_s - first.at_s) * second.cpus + 0.02  # permille, and two ticks of /proc
    assert least - rounding_s <= own_s <= most + rounding_s
    assert least >= BUSY_S


def test_a_busy_process_is_others_where_its_pid_is_not_given(busy: Busy) -> None:
    monitor = Monitor()
    wait_until_used(busy, BUSY_S)
    first = monitor.sample([])
    before = cpu_s(busy)
    wait_until_used(busy, BUSY_S)
    used_s = cpu_s(busy) - before
    second = monitor.sample([])
    assert second.own_cpu_permille == 0
    machine_s = (second.at_s - first.at_s) * (os.cpu_count() or 1)
    # the whole machine's figure comes from per-CPU ticks, read at slightly other times
    assert second.others_cpu_permille / 1000 * machine_s >= 0.5 * used_s


def test_a_process_that_ended_is_nobody(busy: Busy) -> None:
    monitor = Monitor()
    wait_until_used(busy, BUSY_S)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.communicate()
    monitor.sample([busy.pid, ended.pid])
    wait_until_used(busy, BUSY_S)
    readings = monitor.sample([ended.pid])
    assert (readings.is_plausible, readings.own_cpu_permille) == (True, 0)


def test_a_look_too_soon_after_another_repeats_it(busy: Busy) -> None:
    monitor = Monitor()
    wait_until_used(busy, BUSY_S)
    first = monitor.sample([])
    found = monitor.sample([])
    assert found is first or found.at_s - first.at_s >= 0.05


# --- readings that fail -----------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    percent: float


@pytest.mark.parametrize("name", ["cpu_percent", "virtual_memory"])
def test_a_reading_that_raises_counts_as_a_busy_machine_and_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monitor = Monitor()

    def fails(**_: object) -> float:
        raise OSError("no /proc here")

    with monkeypatch.context() as patched:
        patched.setattr(psutil, name, fails)
        failed = monitor.sample([os.getpid()])
        assert not failed.is_plausible
        assert (failed.others_cpu_permille, failed.memory_used_permille) == (1000, 1000)
        assert failed.reason == "OSError: no /proc here"
        assert not Monitor().sample([]).is_plausible  # and making one does not raise either
    assert monitor.sample([os.getpid()]).is_plausible  # the next look is a new one, however soon


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["cpu_percent", "virtual_memory"])
def test_a_reading_that_makes_no_sense_counts_as_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, name: str, percent: float
) -> None:
    monitor = Monitor()
    value = Memory(percent) if name == "virtual_memory" else percent
    monkeypatch.setattr(psutil, name, lambda **_: value)
    failed = monitor.sample([])
    assert not failed.is_plausible
    assert f"{name} says {percent} %" in failed.reason


# --- containers -------------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, AFFINITY),
        ({"cpu_DOT_max": "max 100000\n"}, AFFINITY),
        ({"cpu_DOT_max": "50000 100000\n"}, 1),
        ({"cpu_DOT_max": "150000 100000\n"}, min(2, AFFINITY)),
        ({"cpu_DOT_max": "100000000 100000\n"}, AFFINITY),
        ({"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}, AFFINITY),
        ({"cpu__cpu.cfs_quota_us": "100000\n", "cpu__cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu__cpu.cfs_quota_us": "1000\n"}, AFFINITY),
    ],
)
def test_a_container_has_the_cpus_of_its_quota_and_never_less_than_one(
    tmp_path: Path, files: dict[str, str], cpus: int
) -> None:
    assert machine_cpus(write(tmp_path, **files)) == cpus
    assert Monitor(tmp_path).sample([]).cpus == cpus


GIB = 2**30


@pytest.mark.parametrize(
    ("files", "permille"),
    [
        ({"memory_DOT_max": "max\n", "memory_DOT_current": f"{GIB}\n"}, 0),
        ({"memory_DOT_max": f"{GIB}\n", "memory_DOT_current": f"{GIB}\n"}, 1000),
        ({"memory_DOT_max": f"{GIB}\n", "memory_DOT_current": f"{2 * GIB}\n"}, 1000),
        ({"memory_DOT_max": f"{GIB}\n"}, 0),
        ({"memory__memory.limit_in_bytes": f"{GIB}\n", "memory__memory.usage_in_bytes": f"{GIB}\n"}, 1000),
        ({"memory__memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory__memory.usage_in_bytes": f"{GIB}\n"}, 0),
    ],
)
def test_the_fuller_of_machine_and_container_is_the_memory_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], permille: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(25.0))
    assert Monitor(write(tmp_path, **files)).sample([]).memory_used_permille == max(permille, 250)


def test_a_container_file_that_makes_no_sense_counts_as_a_busy_machine(tmp_path: Path) -> None:
    readings = Monitor(write(tmp_path, cpu_DOT_max="lots\n")).sample([])
    assert (readings.is_plausible, readings.others_cpu_permille) == (False, 1000)
    assert "ValueError" in readings.reason
