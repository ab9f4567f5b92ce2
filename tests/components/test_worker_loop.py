"""What a worker does with what it was handed ahead: run it, give it back, leave it. Its port is a list in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pytest

from morgan.background.ipc.commands import Command, Drain, Event, Finished, Run, Stopped, StopTask
from morgan.background.ipc.records import TaskProgress, TaskType
from morgan.background.workers.loop import TaskWorker
from morgan.background.workers.task import Bare, Job, Outcome, Step, Tools
from morgan.background.workers.tasks import TASKS


class ListPort:
    """A port whose commands are there from the start; at its end the worker is drained."""

    def __init__(self, commands: Iterable[Command]) -> None:
        self.inbox, self.sent = deque(commands), list[Event]()

    def send(self, event: Event) -> None:
        self.sent.append(event)

    def wait(self, timeout_s: float | None) -> Command | None:
        if self.inbox:
            return self.inbox.popleft()
        return Drain() if timeout_s is None else None

    def peek(self) -> Command | None:
        return self.inbox[0] if self.inbox else None

    def nap(self, timeout_s: float) -> None:
        pass


def no_tools(_pace: Callable[[], None]) -> Tools:
    raise AssertionError("a ping needs no tools")


def run_of(number: int, **params: object) -> Run:
    return Run(task_id=f"t{number}", task_type=TaskType.PING, collection="c", attempt=number, params=params)


def served(commands: Iterable[Command], ping: Bare | None = None) -> list[Event]:
    port = ListPort(commands)
    tasks = dict(TASKS) | ({TaskType.PING: ping} if ping else {})
    TaskWorker(port, no_tools, tasks, duty=lambda: 0, count_step=lambda: None).serve()
    return port.sent


def in_words(events: list[Event]) -> list[tuple[str, int]]:
    ends = [event for event in events if isinstance(event, Finished | Stopped)]
    return [(type(event).__name__, event.attempt) for event in ends]


def three_steps(job: Job) -> Iterator[Step]:
    for done in range(3):
        yield Step(TaskProgress(done=done, total=3))
    return Outcome(result={"success": True})  # type: ignore[return-value]


STEPS = Bare(three_steps)  # type: ignore[arg-type]


def test_pings_run_in_order_without_tools_and_without_budget() -> None:
    assert in_words(served([run_of(1), run_of(2), run_of(3)])) == [("Finished", n) for n in (1, 2, 3)]


def test_what_was_not_begun_when_a_worker_is_drained_is_given_back() -> None:
    assert in_words(served([run_of(1), Drain(), run_of(2)])) == [("Finished", 1), ("Stopped", 2)]
    # the drain comes while a task of several steps runs: that one stops at its step, those behind it were not begun
    found = served([run_of(1), run_of(2), Drain(), run_of(3)], STEPS)
    assert in_words(found) == [("Stopped", 1), ("Stopped", 2), ("Stopped", 3)]


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_one_that_is_stopped_before_it_is_begun_never_runs(is_cancelled: bool) -> None:
    stop = StopTask(task_id="t2", is_cancelled=is_cancelled)
    found = served([run_of(1), run_of(2), run_of(3), stop], STEPS)
    assert in_words(found) == [("Stopped", 2), ("Finished", 1), ("Finished", 3)]
    (stopped,) = [event for event in found if isinstance(event, Stopped)]
    assert stopped.is_cancelled is is_cancelled


def test_a_ping_holds_at_its_first_attempt_alone_and_can_be_stopped_meanwhile() -> None:
    job = Job("t", TaskType.PING, "c", {"hold_s": 600})
    ping = TASKS[TaskType.PING]
    assert isinstance(ping, Bare)
    first = next(ping.steps(job))
    assert first.checkpoint == {"has_held": True}
    with pytest.raises(StopIteration) as end:
        next(ping.steps(Job("t", TaskType.PING, "c", {"hold_s": 600}, checkpoint=first.checkpoint)))
    assert end.value.value.result["success"] is True
    assert in_words(served([run_of(1, hold_s=600), Drain()])) == [("Stopped", 1)]
