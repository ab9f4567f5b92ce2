"""The events of the supervisor: numbered without a gap, coalesced, bounded, and a reader that missed some is told so."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc import events as e
from morgan.background.ipc.messages import EventList
from morgan.background.ipc.records import (
    ScheduleRecord,
    TaskFrequency,
    TaskProgress,
    TaskRecord,
    TaskStatus,
    TaskType,
)
from morgan.background.supervisor.feed import (
    BATCH_PERIOD_S,
    BUDGET_STEP_PERMILLE,
    LISTENING_S,
    MAX_EVENTS,
    MAX_READERS,
    PROGRESS_PERIOD_S,
    REASONS_PERIOD_S,
    RESULTS_PERIOD_S,
    Feed,
    Reader,
    Seen,
)

EPOCH, NOW = 7, 1_000_000.0
QUIET = Seen(
    schedules={},
    workers={},
    problems={},
    paused=(),
    budget_permille=300,
    is_admitting=True,
    reason="fine",
    is_draining=False,
)
TASK = TaskRecord(task_id="a", task_type=TaskType.WARM, collection="c")


def feed(backlog: int = 100, *known: TaskRecord) -> Feed:
    made = Feed(EPOCH, backlog)
    made.known(known, QUIET)
    return made


def changed(task: TaskRecord, **fields: object) -> TaskRecord:
    return msgspec.structs.replace(task, version=task.version + 1, **fields)


def told(one: Feed, after: int = 0) -> list[e.AnyEvent]:
    found = one.since(1, EPOCH, after, MAX_EVENTS)
    assert not found.is_gap
    return list(found.events)


def kinds(one: Feed, after: int = 0) -> list[type[e.AnyEvent]]:
    return [type(event) for event in told(one, after)]


def reader(name: str, after: int = 0, wait_s: float = 5.0, at: float = NOW) -> Reader:
    return Reader(reply_to=name, rid=1, after=after, limit=MAX_EVENTS, deadline_at=at + wait_s)


def test_a_task_is_told_of_from_its_acceptance_to_its_end() -> None:
    one = feed()
    running = changed(TASK, status=TaskStatus.RUNNING, attempt=1, worker=1)
    back = changed(running, status=TaskStatus.PENDING, worker=None, error_code="error", not_before_at=NOW + 9)
    again = changed(back, status=TaskStatus.RUNNING, attempt=2, worker=1)
    working = changed(again, progress=TaskProgress(done=1, total=2))
    ended = changed(working, status=TaskStatus.COMPLETED, worker=None)
    for record in (TASK, running, back, again, working, ended):
        one.task(record)
    one.turn(QUIET, NOW)
    found = told(one)
    assert [type(event) for event in found] == [
        e.TaskAccepted,
        e.TaskStarted,
        e.TaskChanged,
        e.TaskStarted,
        e.TaskProgressed,
        e.TaskEnded,
    ]
    assert [event.seq for event in found] == [1, 2, 3, 4, 5, 6]
    assert {event.at for event in found} == {NOW}
    assert isinstance(found[-1], e.TaskEnded)
    assert found[-1].task == ended


def test_what_is_there_at_the_start_makes_no_event() -> None:
    one = Feed(EPOCH)
    one.task(TASK)
    one.known([TASK], QUIET)
    one.turn(QUIET, NOW)
    assert (one.seq, told(one)) == (0, [])
    one.task(changed(TASK, priority=3))
    one.turn(QUIET, NOW)
    assert kinds(one) == [e.TaskChanged]


def test_progress_is_told_four_times_a_second_and_the_last_report_always() -> None:
    one = feed(1000, TASK)
    running = changed(TASK, status=TaskStatus.RUNNING, attempt=1)
    one.task(running)
    one.turn(QUIET, NOW)
    for step in range(1, 1001):  # one report a millisecond
        one.task(running := changed(running, progress=TaskProgress(done=step, total=1000)))
        one.turn(QUIET, NOW + step / 1000)
    before = [event for event in told(one) if isinstance(event, e.TaskProgressed)]
    assert len(before) == 4
    one.turn(QUIET, NOW + 1.001 + PROGRESS_PERIOD_S)
    last = told(one)[-1]
    assert isinstance(last, e.TaskProgressed)
    assert last.progress.done == 1000
    one.turn(QUIET, NOW + 9)
    assert told(one)[-1] == last


def test_a_report_that_was_held_back_does_not_come_after_the_tasks_end() -> None:
    one = feed(100, TASK)
    running = changed(TASK, status=TaskStatus.RUNNING, attempt=1)
    for done in (1, 2):
        one.task(running := changed(running, progress=TaskProgress(done=done, total=3)))
        one.turn(QUIET, NOW)
    one.task(changed(running, status=TaskStatus.COMPLETED))
    one.turn(QUIET, NOW)
    one.turn(QUIET, NOW + 10)
    assert kinds(one)[-1] is e.TaskEnded


def test_what_changes_in_the_service_is_told_once() -> None:
    one = feed()
    schedule = ScheduleRecord(
        task_id="s", task_type=TaskType.WARM, collection="c", frequency=TaskFrequency.DAILY, next_run_at=NOW
    )
    now = msgspec.structs.replace(schedule, next_run_at=NOW + 5)
    states = [
        (replace(schedules={"s": schedule}), [e.ScheduleChanged]),
        (replace(schedules={"s": now}), [e.ScheduleChanged]),
        (replace(), [e.ScheduleRemoved]),
        (replace(workers={1: ("tasks", 10)}), [e.WorkerJoined]),
        (replace(workers={1: ("tasks", 11)}), [e.WorkerLeft, e.WorkerJoined]),
        (replace(), [e.WorkerLeft]),
        (replace(problems={"store": "away"}), [e.ProblemAppeared]),
        (replace(problems={"store": "still away"}), [e.ProblemAppeared]),
        (replace(), [e.ProblemGone]),
        (replace(paused=(None,)), [e.PauseChanged]),
        (replace(), [e.PauseChanged]),
        (replace(is_admitting=False), [e.BudgetChanged]),
        (replace(), [e.BudgetChanged]),
        (replace(is_draining=True), [e.Draining]),
    ]
    for seen, expected in states:
        after = one.seq
        one.turn(seen, NOW)
        one.turn(seen, NOW)
        assert kinds(one, after) == expected


def replace(**fields: object) -> Seen:
    return Seen(**({name: getattr(QUIET, name) for name in Seen.__slots__} | fields))  # type: ignore[arg-type]


def test_a_budget_is_told_where_it_moved_by_a_twentieth_of_the_machine() -> None:
    one = feed()
    for budget in range(300, 300 + 2 * BUDGET_STEP_PERMILLE + 1):  # also in the smallest steps
        one.turn(replace(budget_permille=budget), NOW)
    budgets = [event.budget for event in told(one) if isinstance(event, e.BudgetChanged)]
    assert budgets == [(300 + BUDGET_STEP_PERMILLE) / 1000, (300 + 2 * BUDGET_STEP_PERMILLE) / 1000]


def test_results_are_counted_together_for_a_second() -> None:
    one = feed()
    for step in range(20):
        one.results(published=1, voided=2)
        one.turn(QUIET, NOW + step / 10)
    one.turn(QUIET, NOW + 2 + RESULTS_PERIOD_S)
    found = [event for event in told(one) if isinstance(event, e.ResultsChanged)]
    assert len(found) == 3
    assert (sum(event.published for event in found), sum(event.voided for event in found)) == (20, 40)


def test_a_reason_is_told_while_somebody_listens_and_when_its_words_change() -> None:
    one = feed(100, TASK)
    assert not one.wants_reasons(NOW)
    one.listened(NOW)
    at = NOW
    for why, count in (("no budget: 3 %", 1), ("no budget: 4 %", 1), ("c is paused: resume", 2)):
        assert one.wants_reasons(at)
        one.reasons([(TASK, why)], at)
        assert not one.wants_reasons(at + REASONS_PERIOD_S / 2)
        assert kinds(one) == [e.TaskWaits] * count
        at += REASONS_PERIOD_S
    assert not one.wants_reasons(NOW + LISTENING_S)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(-1, 70), st.integers(0, 50))
def test_a_reader_gets_the_events_in_a_row_or_a_gap(backlog: int, count: int, after: int, limit: int) -> None:
    one = feed(backlog)
    for number in range(count):
        one.task(changed(TASK, task_id=str(number)))
    one.turn(QUIET, NOW)
    found = one.since(1, EPOCH, after, limit)
    if max(count - backlog, 0) <= after <= count:
        assert not found.is_gap
        assert [event.seq for event in found.events] == list(range(after + 1, min(after + limit, count) + 1))
    else:
        assert found == EventList(rid=1, epoch=EPOCH, is_gap=True)
    assert one.since(1, EPOCH + 1, after, limit).is_gap


def test_a_reader_waits_for_the_next_event_or_its_deadline() -> None:
    one = feed()
    assert one.ask(reader("early", wait_s=1), EPOCH, NOW) is None
    assert one.ask(reader("late", wait_s=5), EPOCH, NOW) is None
    assert one.next_deadline(NOW) == NOW + 1
    assert one.served(NOW) == []
    ((who, answer),) = one.served(NOW + 1)
    assert (who, answer) == ("early", EventList(rid=1, epoch=EPOCH))
    one.task(TASK)
    one.turn(QUIET, NOW + 2)
    ((who, answer),) = one.served(NOW + 2)
    assert (who, [type(event) for event in answer.events]) == ("late", [e.TaskAccepted])
    assert one.next_deadline(NOW + 2) is None


def test_a_reader_that_asks_again_at_once_is_given_what_came_together() -> None:
    one = feed(1000)
    one.task(TASK)
    one.turn(QUIET, NOW)
    one.reasons([], NOW)
    first = one.ask(reader("r"), EPOCH, NOW)
    assert first is not None
    assert len(first.events) == 1
    for number in range(3):
        one.task(changed(TASK, task_id=str(number)))
        one.turn(QUIET, NOW + number / 1000)
    assert one.ask(reader("r", after=1), EPOCH, NOW + 0.01) is None
    assert one.served(NOW + 0.02) == []
    assert one.next_deadline(NOW + 0.02) == NOW + BATCH_PERIOD_S
    ((_, answer),) = one.served(NOW + BATCH_PERIOD_S)
    assert [event.seq for event in answer.events] == [2, 3, 4]


def test_a_full_answer_need_not_wait() -> None:
    one = feed(10_000)
    for number in range(2 * MAX_EVENTS):
        one.task(changed(TASK, task_id=str(number)))
    one.turn(QUIET, NOW)
    for after in (0, MAX_EVENTS):
        answer = one.ask(reader("r", after=after), EPOCH, NOW)
        assert answer is not None
        assert len(answer.events) == MAX_EVENTS


def test_more_readers_than_are_held_are_answered_at_once() -> None:
    one = feed()
    assert all(one.ask(reader(str(n)), EPOCH, NOW) is None for n in range(MAX_READERS))
    assert one.ask(reader("one more"), EPOCH, NOW) == EventList(rid=1, epoch=EPOCH)
    assert len(one.served(NOW + 10)) == MAX_READERS


def test_a_clock_that_was_set_neither_ends_nor_prolongs_a_wait() -> None:
    one = feed()
    assert one.ask(reader("r", wait_s=5), EPOCH, NOW) is None
    one.time_moved(-3600)
    assert one.served(NOW - 3600 + 4) == []
    assert len(one.served(NOW - 3600 + 5)) == 1


def test_a_clock_that_was_set_back_holds_nothing_back() -> None:
    one = feed(100, TASK)
    running = changed(TASK, status=TaskStatus.RUNNING, attempt=1)
    one.task(running)
    one.task(changed(running, progress=TaskProgress(done=1)))
    one.results(published=1)
    one.turn(QUIET, NOW)
    one.task(changed(running, progress=TaskProgress(done=2)))
    one.results(published=1)
    after = one.seq
    one.turn(QUIET, NOW - 3600)
    assert kinds(one, after) == [e.TaskProgressed, e.ResultsChanged]
