"""A client that follows the events, against the supervisor's own feed: gaps, restarts and silence are dealt with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
import pytest

from morgan.background.ipc import events as e
from morgan.background.ipc.errors import ProtocolError, ServiceUnavailable
from morgan.background.ipc.messages import Done, EventList, GetSnapshot, NextEvents, Reply, Request, Snapshot
from morgan.background.ipc.records import TaskRecord, TaskType
from morgan.background.ipc.subscription import POLL_S, Subscription
from morgan.background.supervisor.feed import Feed, Seen

NOW, PATIENCE_S = 1_000_000.0, 30.0
QUIET = Seen({}, {}, {}, (), 300, True, "fine", False)


class Service:
    """The supervisor's feed behind no socket. `before` is called with each request, and may raise or answer itself."""

    def __init__(self, backlog: int = 100) -> None:
        self.backlog, self.asked = backlog, list[Request]()
        self.before: Callable[[Request], Reply | None] = lambda request: None
        self.start(1)

    def start(self, epoch: int) -> None:
        self.feed = Feed(epoch, self.backlog)
        self.feed.known([], QUIET)

    def happens(self, count: int) -> None:
        for _ in range(count):
            self.feed.task(TaskRecord(task_id=f"t{self.feed.seq}", task_type=TaskType.WARM, collection="c"))
            self.feed.turn(QUIET, NOW)

    def ask(self, message: Request, timeout_s: float | None = None) -> Reply:
        self.asked.append(message)
        if (reply := self.before(message)) is not None:
            return reply
        if isinstance(message, NextEvents):
            return self.feed.since(1, message.epoch, message.after, message.limit)
        assert isinstance(message, GetSnapshot)
        return Snapshot(
            epoch=self.feed.epoch,
            seq=self.feed.seq,
            tasks=(),
            open_tasks=0,
            schedules=(),
            paused=(),
            workers=(),
            problems={},
            resources={},
        )


def following(service: Service, patience_s: float = PATIENCE_S) -> Iterator[Snapshot | e.AnyEvent]:
    return Subscription(service, patience_s).follow(None)


def numbers(told: Iterator[Snapshot | e.AnyEvent], count: int) -> list[int]:
    return [one.seq for one in islice(told, count)]


def test_a_snapshot_comes_first_and_the_events_after_it_once_each() -> None:
    service = Service()
    service.happens(5)
    told = following(service)
    first = next(told)
    assert isinstance(first, Snapshot)
    assert first.seq == 5
    service.happens(3)
    assert numbers(told, 3) == [6, 7, 8]
    service.happens(2)
    assert numbers(told, 2) == [9, 10]
    assert sum(isinstance(one, GetSnapshot) for one in service.asked) == 1


@pytest.mark.parametrize("missed", [100, 101, 500])
def test_a_reader_that_was_too_slow_is_given_a_snapshot_again(missed: int) -> None:
    service = Service(backlog=100)
    told = following(service)
    next(told)
    service.happens(missed)
    again = next(told)
    assert isinstance(again, Snapshot) == (missed > 100)
    service.happens(1)
    expected = list(range(2, 102)) if missed == 100 else [missed + 1]
    assert numbers(told, len(expected)) == expected


def test_a_supervisor_that_was_started_anew_is_noticed_by_its_epoch() -> None:
    service = Service()
    service.happens(3)
    told = following(service)
    next(told)
    service.start(2)
    service.happens(3)  # the numbers are the same, the events are not
    again = next(told)
    assert isinstance(again, Snapshot)
    assert (again.epoch, again.seq) == (2, 3)
    service.happens(1)
    assert numbers(told, 1) == [4]


def test_a_service_that_is_away_for_a_while_is_waited_for() -> None:
    service = Service()
    told = following(service)
    next(told)
    silences = 0

    def away(request: Request) -> None:
        nonlocal silences
        if silences < 3:
            silences += 1
            raise ServiceUnavailable("nobody answers")

    service.happens(2)
    service.before = away
    assert numbers(told, 2) == [1, 2]
    waits = [one.wait_s for one in service.asked if isinstance(one, NextEvents)]
    assert waits == [POLL_S, 0, 0, 0]  # what was missed is told at once


def test_a_service_that_stays_away_ends_it_with_an_error() -> None:
    def gone(request: Request) -> None:
        raise ServiceUnavailable("nobody answers")

    service = Service()
    told = following(service, patience_s=0.0)
    next(told)
    service.before = gone
    with pytest.raises(ServiceUnavailable):
        for _ in told:
            pass


def test_it_ends_after_its_deadline_also_while_nobody_answers() -> None:
    service = Service()
    assert list(Subscription(service, PATIENCE_S).follow(0.0)) == []

    def gone(request: Request) -> None:
        raise ServiceUnavailable("nobody answers")

    service.before = gone
    assert list(Subscription(service, PATIENCE_S).follow(0.05)) == []


def test_no_poll_goes_beyond_its_deadline() -> None:
    service = Service()
    told = Subscription(service, PATIENCE_S).follow(2.0)
    next(told)
    service.happens(1)
    next(told)
    (poll,) = [one for one in service.asked if isinstance(one, NextEvents)]
    assert 0 < poll.wait_s <= 2.0


@pytest.mark.parametrize("broken", [Done(), EventList(epoch=1, events=(e.Draining(seq=7),))])
def test_a_side_that_breaks_the_protocol_is_named(broken: Reply) -> None:
    service = Service()
    told = following(service)
    next(told)
    service.before = lambda request: msgspec.structs.replace(broken)
    with pytest.raises(ProtocolError, match="update the older side"):
        next(told)
