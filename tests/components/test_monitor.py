"""The readings of this machine: real ones make sense, own CPU is told from others', what fails counts as busy."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from morgan.background.supervisor.container import Container
from morgan.background.supervisor.governor import Readings
from morgan.background.supervisor.monitor import (
    MIN_INTERVAL_S,
    PRESSURE_PERIOD_S,
    KernelCpus,
    Monitor,
    Own,
    Pressure,
    PsutilCpus,
)

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


class Interval(PsutilCpus):
    """Remembers over how long it was to tell."""

    elapsed_s = 0.0

    def busy(self, usable: set[int], elapsed_s: float) -> float:
        self.elapsed_s = elapsed_s
        return super().busy(usable, elapsed_s)


def test_the_first_reading_is_of_long_enough_to_tell_others_use() -> None:
    cpus = Interval()
    assert Monitor(cpus=cpus).sample([]).is_plausible
    assert cpus.elapsed_s >= MIN_INTERVAL_S


def test_what_this_process_does_before_the_first_reading_is_its_own() -> None:
    monitor = Monitor()
    until = time.process_time() + BUSY_S
    while time.process_time() < until:
        pass
    began_s = monitor._at_s
    readings = monitor.sample([os.getpid()])
    own_s = readings.own_cpu_permille / 1000 * (readings.at_s - began_s) * readings.cpus
    assert own_s >= 0.9 * BUSY_S


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
        ({"cpu_DOT_max": "50000 100000\n"}, 0.5),
        ({"cpu_DOT_max": "150000 100000\n"}, min(1.5, AFFINITY)),
        ({"cpu_DOT_max": "100000000 100000\n"}, AFFINITY),
        ({"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}, AFFINITY),
        ({"cpu__cpu.cfs_quota_us": "100000\n", "cpu__cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu__cpu.cfs_quota_us": "1000\n"}, AFFINITY),
    ],
)
def test_a_container_has_the_cpus_of_its_quota(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert Monitor(write(tmp_path, **files)).sample([]).cpus == cpus


def test_of_the_groups_around_a_process_the_tightest_counts(tmp_path: Path) -> None:
    (tmp_path / "of").write_text("12:pids:/\n0::/system.slice/morgan.service\n")
    groups = write(
        tmp_path / "fs",
        **{
            "system.slice__cpu.max": "100000 100000",
            "system.slice__cpu.stat": "usage_usec 5000000\nuser_usec 1\n",
            "system.slice__morgan.service__cpu.max": "max 100000",
            "system.slice__morgan.service__memory.max": "1000",
            "system.slice__morgan.service__memory.current": "900",
            "system.slice__morgan.service__memory.stat": "anon 1\ninactive_file 400\n",
            "system.slice__memory.max": "2000",
            "system.slice__memory.current": "900",
        },
    )
    container = Container(groups, tmp_path / "of")
    assert (container.cpus, container.used_s(), container.memory_permille()) == (1.0, 5.0, 500)
    container.close()


def test_a_real_group_of_version_1_or_2_is_read_as_it_is() -> None:
    container = Container()
    if container.cpus is not None:
        assert container.cpus > 0
        assert (container.used_s() or 1) > 0
    assert 0 <= container.memory_permille() <= 1000
    container.close()


def test_what_others_in_the_container_use_counts_against_its_quota(tmp_path: Path, busy: Busy) -> None:
    groups = write(tmp_path, cpu_DOT_max="10000 100000", cpu_DOT_stat="usage_usec 1000000\n")
    monitor = Monitor(groups)
    wait_until_used(busy, BUSY_S)
    first = monitor.sample([])
    wait_until_used(busy, BUSY_S)
    (groups / "cpu.stat").write_text("usage_usec 9000000\n")  # 8 CPU seconds, of a tenth of a CPU
    second = monitor.sample([])
    assert (first.cpus, second.cpus) == (0.1, 0.1)
    assert second.others_cpu_permille == 1000


GIB = 2**30


@pytest.mark.parametrize(
    ("files", "permille"),
    [
        ({"memory_DOT_max": "max\n", "memory_DOT_current": f"{GIB}\n"}, 0),
        ({"memory_DOT_max": f"{GIB}\n", "memory_DOT_current": f"{GIB}\n"}, 1000),
        ({"memory_DOT_max": f"{GIB}\n", "memory_DOT_current": f"{2 * GIB}\n"}, 1000),
        ({"memory_DOT_max": f"{GIB}\n"}, 0),
        (
            {
                "memory_DOT_max": f"{GIB}\n",
                "memory_DOT_current": f"{GIB}\n",
                "memory_DOT_stat": f"anon 5\ninactive_file {GIB // 2}\n",
            },
            500,
        ),
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


# --- pressure and battery ---------------------------------------------------------------------------------------------


def test_the_time_that_some_task_waited_is_the_difference_of_two_looks(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 total=7\n")
    pressure = Pressure(file)
    assert pressure.waited_s() is None
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1250000\nfull avg10=0.00 total=7\n")
    assert pressure.waited_s() == 0.25
    assert Pressure(tmp_path / "none").waited_s() is None


def test_our_own_wait_for_a_cpu_is_told_apart() -> None:
    """Two processes on one CPU by turns: each waits about half of the time, and the kernel says how long."""
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", CHILD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        ours = Busy(one.pid, one.stdout.fileno())
        wait_until_used(ours, BUSY_S)
        own = Own()
        assert own.waited_s([one.pid]) == 0.0  # counted from its second look on
        before = cpu_s(ours)
        wait_until_used(ours, BUSY_S)
        waited_s = own.waited_s([one.pid])
        assert waited_s > 0.1 * (cpu_s(ours) - before)
        one.communicate()
        other.communicate()
    assert own.waited_s([one.pid]) == 0.0  # it has ended


class Waits(Pressure):
    """A fake of the kernel's pressure: what is waited for is what a test says. None raises, as of a file that is gone."""

    def __init__(self) -> None:
        self.said_s: float | None = 0.0
        self.looks = 0

    def waited_s(self) -> float | None:
        self.looks += 1
        if self.said_s is None:
            raise OSError("no pressure")
        return self.said_s


def test_pressure_is_looked_at_now_and_then_and_again_at_once_where_a_look_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor, waits, at_s = Monitor(), Waits(), time.monotonic()
    monitor._pressure = waits

    def sampled(after_s: float) -> Readings:
        nonlocal at_s
        at_s += after_s
        monkeypatch.setattr(time, "monotonic", lambda: at_s)
        return monitor.sample([])

    sampled(0.1)
    waits.said_s = PRESSURE_PERIOD_S / 2
    assert (sampled(0.1).psi_some_permille, waits.looks) == (0, 1)
    assert (sampled(PRESSURE_PERIOD_S - 0.1).psi_some_permille, waits.looks) == (500, 2)
    waits.said_s = None
    assert not sampled(PRESSURE_PERIOD_S).is_plausible
    assert not sampled(0.1).is_plausible
    waits.said_s = PRESSURE_PERIOD_S
    assert sampled(0.1).is_plausible
    assert waits.looks == 5


class Battery(NamedTuple):
    power_plugged: bool | None


@pytest.mark.parametrize(("battery", "is_on"), [(None, False), (Battery(None), False), (Battery(True), False)])
def test_a_machine_that_is_plugged_in_or_has_no_battery_is_not_on_its_battery(
    monkeypatch: pytest.MonkeyPatch, battery: Battery | None, is_on: bool
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery)
    assert Monitor().sample([]).is_on_battery == is_on
    monkeypatch.setattr(psutil, "sensors_battery", lambda: Battery(False))
    assert Monitor().sample([]).is_on_battery


def test_on_fewer_cpus_than_there_are_only_their_use_counts(busy: Busy) -> None:
    """Seen by a monitor on the CPU of a busy process. On another CPU it is not, but there others may be busy."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    busy.cpu_affinity(cpus[:1])
    program = (
        "import os, sys\nfrom morgan.background.supervisor.monitor import Monitor\n"
        "os.sched_setaffinity(0, {int(sys.argv[1])})\nmonitor = Monitor()\nmonitor.sample([])\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nfound = monitor.sample([])\n"
        "print(found.others_cpu_permille, found.cpus, found.reason)\n"
    )
    seen = []
    for cpu in cpus[:2]:
        command = [sys.executable, "-c", program, str(cpu)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
            wait_until_used(busy, BUSY_S)
            printed, _ = one.communicate("go\n")
        seen.append(printed.split())
    assert [float(one[1]) for one in seen] == [1.0, 1.0]
    assert int(seen[0][0]) > 300  # the CPU it is on, whatever else runs there


def test_the_kernels_figures_and_psutils_agree(busy: Busy) -> None:
    usable = os.sched_getaffinity(0)
    kernel, by_psutil = KernelCpus(), PsutilCpus()
    by_psutil.busy(usable, 1.0)
    began, before = time.monotonic(), cpu_s(busy)
    kernel.busy(usable, 1.0)
    wait_until_used(busy, 2 * BUSY_S)
    elapsed_s = time.monotonic() - began
    found, other = kernel.busy(usable, elapsed_s), by_psutil.busy(usable, elapsed_s)
    tick = len(usable) * 0.02 / elapsed_s
    assert abs(found - other) <= 2 * tick + 0.02 * len(usable)
    assert found >= (cpu_s(busy) - before) / elapsed_s * 0.8 - tick


def test_cpu_time_is_counted_on_the_usable_cpus_and_what_is_idle_or_waits_for_a_disk_is_not(tmp_path: Path) -> None:
    def stat(ticks: int) -> str:
        cpus = [f"cpu{n} {ticks} {ticks} {ticks} 99 99 {ticks} {ticks} {ticks} 0 0" for n in (0, 1, 4)]
        return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *cpus, "intr 5 0 0", "ctxt 7"]) + "\n"

    file = tmp_path / "stat"
    file.write_text(stat(0))
    cpus = KernelCpus(file)
    assert cpus.busy({0, 4}, 1.0) == 0.0
    file.write_text(stat(10))
    assert cpus.busy({0, 4}, 2.0) == pytest.approx(min(2 * 6 * 10 / KernelCpus.TICKS_PER_S / 2.0, 2.0))
    file.write_text(stat(20))
    assert cpus.busy({1}, 2.0) == 0.0  # others than last time: no difference to take
    file.write_text(stat(15))
    assert cpus.busy({1}, 2.0) == 0.0  # went back


def test_all_cpus_are_read_by_the_line_that_sums_them_up_and_a_file_without_any_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    each = "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n"
    file.write_text(f"cpu  0 0 0 0 0 0 0 0 0 0\n{each}intr 5\n")
    cpus = KernelCpus(file)
    cpus.busy({0, 1}, 1.0)
    file.write_text(f"cpu  1 2 3 50 50 4 5 6 7 7\n{each}intr 5\n")
    assert cpus.busy({0, 1}, 1.0) == pytest.approx(21 / KernelCpus.TICKS_PER_S)
    for text in ("cpu  1 2 3 50 50 4 5 6 7 7\nintr 5\n", "", "no such file"):
        file.write_text(text)
        with pytest.raises(ValueError, match="nothing of the CPUs"):
            cpus.busy({0, 1}, 1.0)
