"""A set clock and a suspend: the real timer, the arithmetic of the watch, and what a real core makes of a jump.

Setting this machine's clock would be felt by all that runs on it: MORGAN_TEST_SET_CLOCK=1 allows it, by nothing. What
the clocks say after a jump is given to the watch by `Clocks`, which is a fake; the timer is never faked.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from morgan.background.ipc import messages as m
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.records import ScheduleRecord, TaskFrequency, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.assemble import cache_policy, core_settings, make_core
from morgan.background.supervisor.clock import ClockWatch, Moved, WallTimer
from morgan.background.supervisor.config import load
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.notify import Notifier
from morgan.background.supervisor.reload import Reloader
from morgan.background.supervisor.scheduler import HAS_RUN, TOO_LATE
from morgan.background.supervisor.sections import machine_zone
from morgan.background.supervisor.state import SendReply, Waiter

CONFIG = load(env={"HOME": "/nonexistent", "MORGAN_SERVICE_TIMEZONE": "UTC", "MORGAN_SCHEDULE_AUTO": "false"})


def readable(fd: int, timeout_s: float) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def test_the_timer_wakes_at_a_time_of_the_wall_clock_and_says_that_nobody_set_it() -> None:
    timer = WallTimer()
    timer.arm(time.time() + 0.05)
    assert readable(timer.fd, 30)
    assert not timer.was_set()
    assert not readable(timer.fd, 0)
    timer.arm(1.0)  # long past
    assert readable(timer.fd, 30)
    assert not timer.was_set()
    timer.close()


def test_the_timer_does_not_wake_again_for_a_time_it_woke_for_before() -> None:
    timer = WallTimer()
    for _ in range(2):  # the second time: as each turn of the loop does while a due schedule has to wait
        timer.arm(1.0)
        timer.was_set()
    assert not readable(timer.fd, 0)
    timer.arm(None)
    assert not readable(timer.fd, 0)
    assert not timer.was_set()  # nothing to read is no error
    timer.close()


@pytest.mark.skipif(os.environ.get("MORGAN_TEST_SET_CLOCK") != "1", reason="sets this machine's clock (by nothing)")
def test_a_set_clock_wakes_the_timer_at_once_whatever_it_is_armed_for() -> None:
    for at in (None, time.time() + 3600):
        timer = WallTimer()
        timer.arm(at)
        assert not readable(timer.fd, 0)
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))
        assert readable(timer.fd, 30)
        assert timer.was_set()
        timer.arm(at)  # armed anew
        assert not readable(timer.fd, 0)
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))
        timer.arm(at and at + 1)  # a set clock that is noticed by arming is not lost
        assert timer.was_set()
        timer.close()


@dataclass
class Clocks:
    """A fake of the three clocks."""

    wall: float = 1e9
    boot: float = 500.0
    monotonic: float = 400.0

    def passes(self, seconds: float) -> None:
        self.wall, self.boot, self.monotonic = self.wall + seconds, self.boot + seconds, self.monotonic + seconds

    def is_suspended(self, seconds: float) -> None:
        self.wall, self.boot = self.wall + seconds, self.boot + seconds

    def watch(self) -> ClockWatch:
        return ClockWatch(lambda: self.wall, lambda: self.boot, lambda: self.monotonic)


def test_the_real_clocks_do_not_move_by_themselves() -> None:
    watch = ClockWatch()
    assert [watch.moved() for _ in range(100)] == [None] * 100


def test_a_set_clock_is_told_from_a_suspend_and_each_is_said_once() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.passes(3600)
    assert watch.moved() is None
    clocks.wall -= 7200
    clocks.passes(5)
    assert watch.moved() == Moved(-7200, 0)
    assert watch.moved() is None
    clocks.is_suspended(8 * 3600)
    assert watch.moved() == Moved(0, 8 * 3600)
    clocks.is_suspended(60)
    clocks.wall += 30  # the machine's own clock was slow, and is set on waking up
    assert watch.moved() == Moved(30, 60)


def test_small_corrections_are_no_jump_until_they_add_up_to_one() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    found = []
    for _ in range(8):
        clocks.wall += 0.25
        found.append(watch.moved())
    assert found == [None] * 3 + [Moved(1, 0)] + [None] * 3 + [Moved(1, 0)]


# --- the core ---------------------------------------------------------------------------------------------------------


class Jumpy:
    """A real core whose time is given to it, with one schedule. Its machine stands still between two turns."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
        self.now = instant(at)
        monkeypatch.setattr(time, "time", lambda: self.now)  # of its start
        runtime = RuntimePaths(folder)
        runtime.readers.mkdir(parents=True)
        self.core = make_core(CONFIG, core_settings(CONFIG), runtime, Journal(None), own_pids=list)
        monkeypatch.undo()

    def schedule(self, frequency: TaskFrequency, next_run: str) -> None:
        schedule = ScheduleRecord(
            task_id="s",
            task_type=TaskType.WARM,
            collection="docs",
            frequency=frequency,
            next_run_at=instant(next_run),
        )
        self.core.save_schedule(schedule)

    def turn(self, *, passes_s: float = 0.0, set_s: float = 0.0, suspended_s: float = 0.0) -> list[object]:
        """Have one turn after what happened; as loop.py does it."""
        self.now += passes_s + set_s + suspended_s
        if set_s or suspended_s:
            self.core.time_moved(Moved(set_s, suspended_s), self.now)
        return list(self.core.tick(self.now))

    @property
    def next_run(self) -> str:
        return datetime.fromtimestamp(self.core.schedules["s"].next_run_at, UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def note(self) -> str:
        return self.core.schedules["s"].note

    def ran(self) -> int:
        """Return how many tasks there were; those that wait are ended, so that the next one is a new one."""
        for task in self.core.queue.open():
            self.core.ended(self.core.queue.skip(task.task_id, "", self.now), self.now)
        return len(self.core.journal.tasks())


def instant(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.fixture
def jumpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jumpy:
    return Jumpy(tmp_path / "run", monkeypatch, "2026-06-10 01:30")


def test_a_clock_that_is_set_back_over_a_run_does_not_run_it_twice(jumpy: Jumpy) -> None:
    jumpy.schedule(TaskFrequency.DAILY, "2026-06-10 02:00")
    jumpy.turn(passes_s=1800)
    assert (jumpy.ran(), jumpy.next_run) == (1, "2026-06-11 02:00")
    jumpy.turn(set_s=-3600)
    assert (jumpy.ran(), jumpy.next_run) == (1, "2026-06-10 02:00")  # it is what comes next by the clock of now
    jumpy.turn(passes_s=3700)
    assert (jumpy.ran(), jumpy.next_run, jumpy.note) == (1, "2026-06-11 02:00", HAS_RUN)
    jumpy.turn(passes_s=86400)
    assert (jumpy.ran(), jumpy.next_run) == (2, "2026-06-12 02:00")


def test_a_clock_that_was_years_ahead_brings_one_run_and_no_years_of_waiting_when_it_is_set_right(jumpy: Jumpy) -> None:
    jumpy.schedule(TaskFrequency.HOURLY, "2026-06-10 02:00")
    years_s = 4 * 365 * 86400
    jumpy.turn(set_s=years_s)
    assert (jumpy.ran(), jumpy.next_run) == (1, "2030-06-09 02:00")
    jumpy.turn(set_s=-years_s)
    assert (jumpy.ran(), jumpy.next_run) == (1, "2026-06-10 02:00")
    jumpy.turn(passes_s=1800)
    assert (jumpy.ran(), jumpy.next_run) == (2, "2026-06-10 03:00")


@pytest.mark.parametrize(
    ("frequency", "asleep_h", "runs", "next_run"),
    [
        (TaskFrequency.HOURLY, 8, 1, "2026-06-10 10:00"),  # one for all that were missed
        (TaskFrequency.DAILY, 8, 1, "2026-06-11 02:00"),
        (TaskFrequency.DAILY, 20, 0, "2026-06-11 02:00"),  # the next one is near
    ],
)
def test_a_suspend_is_caught_up_on_as_a_downtime_is(
    jumpy: Jumpy, frequency: TaskFrequency, asleep_h: int, runs: int, next_run: str
) -> None:
    jumpy.schedule(frequency, "2026-06-10 02:00")
    jumpy.turn(suspended_s=asleep_h * 3600)
    assert (jumpy.ran(), jumpy.next_run, jumpy.note == TOO_LATE) == (runs, next_run, runs == 0)


def test_a_schedule_says_why_its_last_run_did_nothing(jumpy: Jumpy) -> None:
    core = jumpy.core
    jumpy.schedule(TaskFrequency.HOURLY, "2026-06-10 02:00")
    jumpy.turn(passes_s=1800)
    (first,) = core.queue.open()
    jumpy.turn(passes_s=3600)
    assert jumpy.note == f"its task of an earlier run still waits: {first.task_id}"
    core.ended(core.queue.skip(first.task_id, "no such collection", jumpy.now), jumpy.now)
    assert jumpy.note == f"{first.task_id} skipped: no such collection"
    jumpy.turn(passes_s=3600)
    assert jumpy.note == ""
    (second,) = core.queue.open()
    leased = core.queue.lease(second.task_id, 1, jumpy.now)
    core.ended(core.queue.complete(second.task_id, leased.attempt, {}, jumpy.now), jumpy.now)
    assert (jumpy.note, core.journal.schedules()[0].note) == ("", "")


def backing_off(jumpy: Jumpy) -> TaskRecord:
    """Return a task that waits after a failure."""
    queue = jumpy.core.queue
    task, _ = queue.submit(TaskType.WARM, "docs", {}, now=jumpy.now, salt=1)
    queue.lease(task.task_id, 1, jumpy.now)
    failed = queue.fail(task.task_id, 1, "error", "it broke", True, jumpy.now, 0.0)
    assert failed is not None
    return failed


@pytest.mark.parametrize("set_s", [-86400.0, 86400.0])
def test_a_back_off_is_as_long_as_it_was_however_the_clock_is_set(jumpy: Jumpy, set_s: float) -> None:
    failed = backing_off(jumpy)
    left_s = failed.not_before_at - jumpy.now
    jumpy.turn(set_s=set_s)
    moved = jumpy.core.journal.task(failed.task_id)  # durable
    assert moved is not None
    assert moved.not_before_at - jumpy.now == pytest.approx(left_s)
    assert jumpy.core.next_deadline(jumpy.now) <= moved.not_before_at


def test_a_back_off_that_ended_during_a_suspend_is_over(jumpy: Jumpy) -> None:
    failed = backing_off(jumpy)
    jumpy.turn(suspended_s=3600)
    task = jumpy.core.queue.get(failed.task_id)
    assert task is not None
    assert task.not_before_at < jumpy.now
    assert jumpy.core.queue.next_ready(jumpy.now, is_admitting=True) == task


@pytest.mark.parametrize("jump", [{"suspended_s": 3600.0}, {"set_s": 3600.0}, {"set_s": -3600.0}])
def test_a_deadline_and_a_long_poll_do_not_run_out_by_a_jump(jumpy: Jumpy, jump: dict[str, float]) -> None:
    queue = jumpy.core.queue
    task, _ = queue.submit(TaskType.WARM, "docs", {}, now=jumpy.now, salt=1, deadline_s=60.0)
    jumpy.core.changed(task)
    jumpy.core.wait_for(Waiter("client", 1, task.task_id, 99, jumpy.now + 30))
    assert [one for one in jumpy.turn(**jump) if isinstance(one, SendReply)] == []
    held = queue.get(task.task_id)
    assert held is not None
    assert held.deadline_at == pytest.approx(jumpy.now + 60)
    (reply,) = [one for one in jumpy.turn(passes_s=31) if isinstance(one, SendReply)]
    assert isinstance(reply.reply, m.TaskReply)
    assert reply.reply.task.status is TaskStatus.PENDING


def test_uptime_does_not_count_what_the_clock_was_set_by(jumpy: Jumpy) -> None:
    jumpy.turn(passes_s=100)
    jumpy.turn(set_s=-1e6)
    assert jumpy.now - jumpy.core.started_at == pytest.approx(100)


def test_the_machines_zone_is_followed_where_none_is_configured(
    jumpy: Jumpy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = load(env={"HOME": "/nonexistent", "MORGAN_SCHEDULE_AUTO": "false"})
    monkeypatch.setenv("TZ", "UTC")
    reloader = Reloader(own, lambda: own, jumpy.core, Notifier({}))
    jumpy.schedule(TaskFrequency.DAILY, "2026-06-10 02:00")
    reloader.look_at_zone(jumpy.now)
    assert jumpy.next_run == "2026-06-10 02:00"
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    try:
        with caplog.at_level("INFO"):
            reloader.look_at_zone(jumpy.now)
        assert time.localtime(jumpy.now).tm_hour == 10  # 01:30 UTC: also what is logged and printed follows
    finally:
        monkeypatch.undo()
        time.tzset()
    assert jumpy.next_run == "2026-06-10 17:00"  # 02:00 in Tokyo
    assert "zone is Asia/Tokyo now, not UTC" in caplog.text


def test_the_machines_zone_is_what_its_own_clock_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)
    assert machine_zone(tmp_path) == "UTC"
    (tmp_path / "timezone").write_text("America/New_York\n")
    assert machine_zone(tmp_path) == "America/New_York"
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    assert machine_zone(tmp_path) == "Europe/Berlin"  # somebody changed the link alone
    (tmp_path / "localtime").unlink()
    (tmp_path / "localtime").write_bytes(b"a copy of some zone")
    assert machine_zone(tmp_path) == "America/New_York"
    monkeypatch.setenv("TZ", ":Asia/Tokyo")
    assert machine_zone(tmp_path) == "Asia/Tokyo"


def test_another_zone_moves_what_has_not_run_yet(jumpy: Jumpy) -> None:
    jumpy.schedule(TaskFrequency.DAILY, "2026-06-10 02:00")
    settings = replace(core_settings(CONFIG), zone=ZoneInfo("Asia/Tokyo"))
    jumpy.core.reconfigure(settings, CONFIG.queue_policy(), cache_policy(CONFIG), jumpy.now)
    jumpy.turn()
    assert jumpy.next_run == "2026-06-10 17:00"  # 02:00 in Tokyo
