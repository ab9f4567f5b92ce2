"""Which CPU a worker is moved to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.supervisor.placement import CLEARLY, in_the_way, moved, others_of, spread


def test_a_worker_moves_from_the_busiest_cpu_to_the_least_busy_free_one() -> None:
    others = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.05}
    assert moved({1: 0, 2: 2}, [1, 2], others) == (1, 3)
    assert moved({1: 0, 2: 3}, [1, 2], others) == (1, 1)


def test_it_stays_where_no_other_cpu_is_clearly_less_used() -> None:
    assert moved({1: 0}, [1], {0: 0.3, 1: 0.3 - CLEARLY + 0.01}) is None
    assert moved({1: 0}, [1], {0: 0.35, 1: 0.1}) == (1, 1)


def test_with_one_cpu_or_as_many_workers_as_cpus_nobody_moves() -> None:
    assert moved({1: 0, 2: 0, 3: 0}, [1, 2, 3], {0: 1.0}) is None
    assert moved({1: 0, 2: 1}, [1, 2], {0: 1.0, 1: 0.0}) is None
    assert moved({}, [], {0: 1.0, 1: 0.0}) is None
    assert moved({1: 7}, [1], {0: 1.0, 1: 0.0}) is None  # a CPU that was taken away: replan moves it


@given(st.dictionaries(st.integers(0, 7), st.floats(0, 1), min_size=1), st.data())
def test_moves_end(others: dict[int, float], data: st.DataObject) -> None:
    cpus = sorted(others)
    places = {worker: data.draw(st.sampled_from(cpus)) for worker in range(1, 4)}
    for _ in range(round((3 + 3) / CLEARLY) + 1):  # each lessens a sum of at most three uses and three pairs
        move = moved(places, list(places), others)
        if move is None:
            break
        places[move[0]] = move[1]
    assert moved(places, list(places), others) is None


def test_workers_that_share_a_cpu_are_spread_over_the_free_ones() -> None:
    assert moved({1: 1, 2: 0, 3: 1}, [1, 3], {0: 0.1, 1: 0.0}) == (1, 0)
    assert moved({1: 1, 2: 0, 3: 1}, [1, 3], {0: 0.9, 1: 0.0}) is None  # others leave no more of it
    assert moved({1: 1, 2: 0, 3: 1}, [1, 2, 3], {0: 0.0, 1: 0.0}) is None
    assert moved({1: 1, 2: 0, 3: 1, 4: 1}, [1, 2, 3, 4], {0: 0.0, 1: 0.0}) == (1, 0)  # two and two
    assert moved({1: 1, 2: 0, 3: 1}, [1], {0: 0.0, 1: 0.1}) is None


def test_own_use_does_not_count_as_others() -> None:
    assert others_of({0: 1.0, 1: 0.2}, {0: 0.7, 1: 0.3}) == {0: 1.0 - 0.7, 1: 0.0}


def test_a_worker_of_several_threads_has_its_home_and_the_cpus_that_are_used_the_least() -> None:
    cpus = range(6)
    assert spread(5, 1, cpus, {}, ()) == [5]
    assert spread(5, 3, cpus, {}, ()) == [5, 4, 3]
    assert spread(0, 3, cpus, {4: 0.05, 5: 0.9}, ()) == [0, 4, 3]
    assert spread(0, 3, cpus, {4: 0.5}, {5}) == [0, 3, 2]
    assert spread(0, 5, cpus, {}, {5, 1}) == [0, 4, 3, 2, 5]
    assert spread(0, 9, cpus, {}, {5}) == [0, 4, 3, 2, 1, 5]


def test_an_idle_worker_changes_places_with_one_that_moves_to_its_cpu() -> None:
    assert in_the_way(0, {1: 1, 2: 0}, [1]) == 2
    assert in_the_way(0, {1: 1, 2: 0}, [1, 2]) is None
    assert in_the_way(3, {1: 1, 2: 0}, [1]) is None
