"""Sub-batches: every text once, similar lengths together, and no more at once than a pause may wait for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.workers.batches import CALL_CHARACTERS, SUB_BATCH_S, SubBatches

LENGTHS = st.lists(st.integers(0, 4000), max_size=60)


class SimulatedCpu:
    """A clock that runs by what is computed: `cost_s` for each padded character, and for those of a call."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s, self.used_s = cost_s, 0.0

    def __call__(self) -> float:
        return self.used_s

    def compute(self, lengths: list[int]) -> float:
        used_s = self.cost_s * (len(lengths) * max(lengths) + CALL_CHARACTERS)
        self.used_s += used_s
        return used_s


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 9), is_paced=st.booleans(), cost_s=st.floats(0, 1e-3))
def test_every_text_is_in_one_batch_and_none_is_larger_than_said(
    lengths: list[int], size: int, is_paced: bool, cost_s: float
) -> None:
    cpu = SimulatedCpu(cost_s)
    batches = SubBatches(size, cpu=cpu)
    seen: list[int] = []
    for rows in batches.rows(lengths, is_paced=is_paced):
        assert 1 <= len(rows) <= size
        cpu.compute([lengths[row] for row in rows])
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))
    assert [lengths[row] for row in seen] == sorted(lengths)


@settings(deadline=None)
@given(lengths=LENGTHS.filter(bool), cost_s=st.floats(1e-9, 1e-3))
def test_a_paced_batch_of_several_fits_its_time_once_one_was_measured(lengths: list[int], cost_s: float) -> None:
    cpu = SimulatedCpu(cost_s)
    batches = SubBatches(64, cpu=cpu)
    for _ in batches.rows([1000], is_paced=True):
        cpu.compute([1000])
    sizes = []
    for rows in batches.rows(lengths, is_paced=True):
        used_s = cpu.compute([lengths[row] for row in rows])
        assert len(rows) == 1 or used_s <= SUB_BATCH_S * 1.001
        sizes.append(len(rows))
    if cost_s * (len(lengths) * max(lengths) + CALL_CHARACTERS) <= SUB_BATCH_S * 0.99:
        assert len(sizes) == 1  # and they are not smaller than need be


@settings(deadline=None, max_examples=20)
@given(lengths=LENGTHS, size=st.integers(1, 9), threads=st.integers(1, 4), is_paced=st.booleans())
def test_threads_compute_every_text_once_in_batches_no_larger_than_said(
    lengths: list[int], size: int, threads: int, is_paced: bool
) -> None:
    batches, seen = SubBatches(size), list[list[int]]()
    batches.watch(lambda: False, lambda: threads)
    batches.each(lengths, seen.append, (lambda: None) if is_paced else None)
    assert sorted(row for rows in seen for row in rows) == list(range(len(lengths)))
    assert all(1 <= len(rows) <= size for rows in seen)


def test_a_machine_that_got_slower_has_smaller_batches_after_some() -> None:
    cpu = SimulatedCpu(1e-6)
    batches = SubBatches(64, cpu=cpu)
    sizes = []
    for round_number in range(40):
        cpu.cost_s = 1e-6 if round_number < 20 else 1e-4
        for rows in batches.rows([100] * 64, is_paced=True):
            cpu.compute([100] * len(rows))
            sizes.append(len(rows))
    assert 64 in sizes
    assert (sizes[-1] * 100 + CALL_CHARACTERS) * 1e-4 <= SUB_BATCH_S * 1.1


def test_without_pacing_batches_become_those_that_cost_least_for_texts_of_each_length() -> None:
    """Calls are dear for short texts; long ones overflow a cache from two on."""
    used_s = 0.0
    batches = SubBatches(32, cpu=lambda: used_s)
    sizes: dict[int, list[int]] = {20: [], 1000: []}
    for _ in range(30):
        for rows in batches.rows([20] * 64 + [1000] * 64, is_paced=False):
            longest = 20 if max(rows) < 64 else 1000
            sizes[longest].append(len(rows))
            used_s += (0.004 + 1e-5 * 20 * len(rows)) if longest == 20 else 1e-5 * 1000 * len(rows) ** 1.1
    assert most_of(sizes[20]) == 32
    assert most_of(sizes[1000]) == 1


def most_of(sizes: list[int]) -> int:
    """Return the size of which there are the most in the later half."""
    late = sizes[len(sizes) // 2 :]
    return max(set(late), key=late.count)


def test_where_memory_is_short_each_text_is_computed_for_itself_from_the_next_on() -> None:
    is_small = False
    batches = SubBatches(4, cpu=lambda: 0.0)
    batches.watch(lambda: is_small)
    sizes = []
    for rows in batches.rows([9] * 10, is_paced=False):
        sizes.append(len(rows))
        is_small = len(sizes) >= 2
    assert sizes[2:] == [1] * (10 - sum(sizes[:2]))
    assert sum(sizes) == 10
    assert min(sizes[:2]) > 1
