"""The log of decisions in a real core with a real journal: what is asked for is answered, also after a restart."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from morgan.background.cli.governor import decisions
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.records import DecisionRow
from morgan.background.supervisor.assemble import core_settings, make_core
from morgan.background.supervisor.config import load
from morgan.background.supervisor.core import Core
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.monitor import KernelCpus
from morgan.background.supervisor.requests import Requests

CONFIG = load(env={"HOME": "/nonexistent", "MORGAN_SERVICE_TIMEZONE": "Europe/Berlin"})
NOON = 1_800_000_000.0


class Clock:
    """What kernel, psutil and the monotonic clock say: a fake of them, since a day has to pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_s, self.cpu_percent = float(int(time.monotonic())), 0.0  # whole seconds: their sums are exact
        monkeypatch.setattr(KernelCpus, "busy", lambda _, usable, elapsed_s: len(usable) * self.cpu_percent / 100)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(percent=30.0))
        monkeypatch.setattr(psutil, "sensors_battery", lambda: None)
        said = SimpleNamespace(monotonic=lambda: self.at_s, sleep=self.sleep, clock_gettime=time.clock_gettime)
        monkeypatch.setattr("morgan.background.supervisor.monitor.time", said)

    def sleep(self, seconds: float) -> None:
        self.at_s += max(round(seconds), 1)  # whole seconds, too


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def start(tmp_path: Path, clock: Clock) -> Iterator[Callable[[float], Core]]:
    """Start a core on the test's journal; the one before it is gone, as after a crash, unless it was saved."""
    runtime = RuntimePaths(tmp_path / "run")
    runtime.readers.mkdir(parents=True)
    made: list[Core] = []

    def close() -> None:
        for core in made:
            core.keeper.store.close()
            core.journal._db.close()  # not `close`: that would write what a crash loses
        made.clear()

    def begin(now: float) -> Core:
        close()
        settings = core_settings(CONFIG, is_auto_scheduling=False)
        made.append(make_core(CONFIG, settings, runtime, Journal(tmp_path / "j"), own_pids=list))
        made[-1].decisions.take(is_last=True)  # the decision of the real time at which it was made
        made[-1].sample(now)
        return made[-1]

    yield begin
    close()


def pass_time(core: Core, clock: Clock, now: float, seconds: int) -> float:
    """Have a sample every two seconds; return the time after them."""
    for _ in range(seconds // 2):
        now, clock.at_s = now + 2, clock.at_s + 2
        core.sample(now)
    return now


def asked(core: Core, now: float, since: float = 0.0, limit: int = 1000) -> tuple[DecisionRow, ...]:
    requests = Requests(core, "", RuntimePaths(Path("run")), 1)
    request = messages.ListDecisions(rid=1, since=since, limit=limit)
    reply = expect(messages.DecisionList, requests.handle(request, b"me", now))
    assert (reply.zone, reply.active_start_h, reply.quiet_end_h) == ("Europe/Berlin", 9, 6)
    return reply.decisions


def test_a_change_is_there_at_once_with_its_reason_and_no_commit_was_made_for_it(
    start: Callable[[float], Core], clock: Clock, tmp_path: Path
) -> None:
    core = start(NOON)
    core.journal.commit()
    now = pass_time(core, clock, NOON, 20)
    clock.cpu_percent = 95.0
    now = pass_time(core, clock, now, 4)
    rows = asked(core, now)
    assert [(row.started_at, row.seconds, row.is_admitting, row.is_change) for row in rows] == [
        (NOON, 22.0, True, False),
        (NOON + 22, 2.0, False, True),
    ]
    assert "others use 95 %" in rows[1].reason
    assert rows[1].others.mean == 0.95
    assert rows[0].limit.mean >= rows[0].budget.mean > 0
    assert not core.journal._db.in_transaction
    core.journal.commit()
    other = sqlite3.connect(tmp_path / "j")
    assert other.execute("select count(*) from decision").fetchone() == (0,)
    core.save(now)
    core.journal.commit()
    assert other.execute("select count(*) from decision").fetchone() == (1,)
    other.close()
    assert asked(core, now) == rows  # each row once, wherever it lies by now


def test_the_log_goes_on_after_a_restart_and_a_crash_loses_what_was_not_saved_yet(
    start: Callable[[float], Core], clock: Clock
) -> None:
    core = start(NOON)
    now = pass_time(core, clock, NOON, 150)
    core.save(now, is_last=True)  # as when the service drains
    core.journal.commit()
    core = start(now + 100)
    now = pass_time(core, clock, now + 100, 80)
    core.save(now)
    core.journal.commit()
    pass_time(core, clock, now, 30)
    core = start(now + 200)
    now = pass_time(core, clock, now + 200, 10)
    begun = [(row.started_at - NOON, row.seconds) for row in asked(core, now)]
    assert begun == [(0, 60.0), (60, 60.0), (120, 30.0), (250, 60.0), (530, 10.0)]


def test_pages_follow_each_other_without_a_row_twice_or_left_out(start: Callable[[float], Core], clock: Clock) -> None:
    core = start(NOON)
    now = pass_time(core, clock, NOON, 400)
    core.save(now)
    now = pass_time(core, clock, now, 100)
    whole, pages, since = asked(core, now), [], 0.0
    while page := asked(core, now, since, limit=3):
        assert len(page) <= 3
        pages += page
        since = page[-1].started_at
    assert tuple(pages) == whole
    assert [row.started_at - NOON for row in whole] == [60.0 * minute for minute in range(9)]
    assert [row.started_at - NOON for row in asked(core, now, NOON + 300)] == [360, 420, 480]


@pytest.mark.parametrize("is_written", [True, False])
def test_rows_of_the_same_time_at_the_end_of_a_page_are_all_given(
    start: Callable[[float], Core], clock: Clock, is_written: bool
) -> None:
    """The clock was set back to when a row began, and another began then."""
    core = start(NOON)
    now = pass_time(core, clock, NOON, 120)
    whole = asked(core, now)
    twin = msgspec.structs.replace(whole[0], reason="a clock that was set back")
    if is_written:
        core.save(now)
        core.journal.add_decisions([twin])
    else:
        core.decisions._closed.append(twin)
    pages, since = [], 0.0
    while page := asked(core, now, since, limit=1):
        pages += page
        since = page[-1].started_at
    assert pages == [whole[0], twin, *whole[1:]]


def test_a_damaged_row_in_a_full_page_hides_none_of_those_after_it(
    start: Callable[[float], Core], clock: Clock
) -> None:
    core = start(NOON)
    now = pass_time(core, clock, NOON, 2)
    (some,) = asked(core, now)
    core.journal.add_decisions(msgspec.structs.replace(some, started_at=NOON - 2000 + at) for at in range(1500))
    core.journal._db.execute("update decision set record = x'c1' where n = 500")
    requests = Requests(core, "", RuntimePaths(Path("run")), 1)

    class Asker:
        """A fake of what is used of a Client: no socket."""

        def request(self, request: messages.ListDecisions) -> messages.Reply | None:
            return requests.handle(msgspec.structs.replace(request, rid=1), b"me", now)

    found = decisions(Asker(), 0.0).decisions  # type: ignore[arg-type]
    begun = [row.started_at - NOON + 2000 for row in found]
    assert begun == [*(at for at in range(1500) if at != 499), 2000]


def test_after_the_clock_was_set_back_what_lies_ahead_of_it_is_not_shown(
    start: Callable[[float], Core], clock: Clock
) -> None:
    core = start(NOON)
    now = pass_time(core, clock, NOON, 120)
    core.save(now)
    now = pass_time(core, clock, now - 90, 20)
    assert [row.started_at - NOON for row in asked(core, now)] == [0, 32]
    assert [row.started_at - NOON for row in asked(core, now + 3600)][:3] == [0, 32, 60]
