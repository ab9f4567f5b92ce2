"""How often a worker beats: seldom only after it has waited all through a beat, and at once again when it has work."""

from __future__ import annotations

import os

import pytest

from morgan.background.workers.link import BEAT_S, IDLE_BEAT_S, Pulse


def is_told_to_beat(pulse: Pulse) -> bool:
    try:
        return os.eventfd_read(pulse.fd) > 0
    except BlockingIOError:
        return False


@pytest.fixture
def idle() -> Pulse:
    """A pulse that beats seldom: its worker has waited since before the last beat."""
    pulse = Pulse()
    pulse.rest()
    assert pulse.next_s() == IDLE_BEAT_S
    return pulse


def test_a_worker_that_waits_beats_seldom_and_is_roused_once_by_what_it_waited_for(idle: Pulse) -> None:
    assert not is_told_to_beat(idle)
    idle.rouse()
    assert is_told_to_beat(idle)
    assert idle.next_s() == BEAT_S
    idle.rest()
    idle.rouse()
    assert not is_told_to_beat(idle)  # it beats often: nothing to tell


def test_one_that_works_without_a_word_beats_often(idle: Pulse) -> None:
    idle.rouse()
    assert [idle.next_s() for _ in range(3)] == [BEAT_S] * 3


def test_one_that_has_waited_for_a_part_of_the_time_beats_often_once_more(idle: Pulse) -> None:
    idle.rouse()
    idle.rest()
    assert (idle.next_s(), idle.next_s()) == (BEAT_S, IDLE_BEAT_S)
