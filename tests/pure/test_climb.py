"""The batch size that computes the most: found by trying, kept while it is the best, left when it is not any more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.climb import FIRST_TRIED, TRIED_AGAIN, WORTH, Climb


def climbed(climb: Climb, cost: dict[int, float], batches: int) -> list[int]:
    sizes = []
    for _ in range(batches):
        sizes.append(climb.size())
        climb.learn(sizes[-1], cost[sizes[-1]])
    return sizes


@given(most=st.integers(1, 1024), costs=st.lists(st.floats(1e-9, 1), min_size=12, max_size=12))
def test_no_size_is_larger_than_said_nor_smaller_than_one(most: int, costs: list[float]) -> None:
    climb = Climb(most)
    for cost in costs * 4:
        size = climb.size()
        assert 1 <= size <= most
        climb.learn(size, cost)


@given(most=st.integers(1, 64), top=st.integers(0, 6), steep=st.floats(1.1, 4))
def test_the_best_of_a_curve_with_one_bottom_is_found_within_few_batches(most: int, top: int, steep: float) -> None:
    sizes = sorted({2**n for n in range(7) if 2**n < most} | {most})
    best = min(top, len(sizes) - 1)
    cost = {size: steep ** abs(at - best) for at, size in enumerate(sizes)}
    climb = Climb(most)
    climbed(climb, cost, 3 * len(sizes))
    assert climb.best() == sizes[best]


def test_a_larger_batch_has_to_be_worth_its_memory() -> None:
    climb = Climb(32)
    climbed(climb, {1: 1.0, 2: 1.0, 4: 1.0 / WORTH, 8: 1.0, 16: 1.0, 32: 1.0}, 40)
    assert climb.best() == 1
    assert FIRST_TRIED == 4  # where it began


def test_neighbours_are_measured_again_so_that_a_machine_that_changed_is_noticed() -> None:
    climb = Climb(8)
    before = climbed(climb, {1: 4.0, 2: 2.0, 4: 1.0, 8: 2.0}, 3 * TRIED_AGAIN)
    assert before.count(4) > before.count(2) + before.count(8)
    climbed(climb, {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 20 * TRIED_AGAIN)
    assert climb.best() == 1


def test_what_was_left_over_is_no_measurement() -> None:
    climb = Climb(8)
    climb.learn(3, 0.0)
    assert climb.size() == FIRST_TRIED
