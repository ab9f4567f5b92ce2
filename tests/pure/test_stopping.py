"""When a worker is stopped by force: a simulated one that paces itself never is, one that does not is held to its grant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.supervisor.stopping import DEBT_S, STOPPED_S, Debt, Use, step


def simulate(duties: list[float], shares: list[float]) -> tuple[float, float, list[bool]]:
    """Look once a second at a worker that uses its share while it is not stopped; return use, grant, and when it was."""
    used = granted = 0.0
    debt = step(None, Use("t", 0.0, 0.0), 0.0)
    stopped = []
    for duty, share in zip(duties, shares, strict=True):
        used += 0.0 if debt.stopped_s is not None else share
        granted += duty
        debt = step(debt, Use("t", used, granted), 1.0)
        stopped.append(debt.stopped_s is not None)
    return used, granted, stopped


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.data())
def test_a_worker_that_keeps_to_its_grant_is_never_stopped(duties: list[float], data: st.DataObject) -> None:
    shares = [data.draw(st.floats(0, duty)) for duty in duties]
    _, _, stopped = simulate(duties, shares)
    assert not any(stopped)


def test_one_that_does_not_pace_itself_is_held_to_what_it_was_granted() -> None:
    used, granted, stopped = simulate([0.5] * 600, [1.0] * 600)
    assert any(stopped)
    assert used <= granted + DEBT_S + 1.0


def test_with_no_budget_at_all_it_still_comes_to_a_second_in_six() -> None:
    used, _, stopped = simulate([0.0] * 600, [1.0] * 600)
    assert 600 / (STOPPED_S + 1) * 0.9 <= used <= 600 / (STOPPED_S + 1) * 1.1 + DEBT_S + 1
    longest, run = 0, 0
    for one in stopped:
        run = run + 1 if one else 0
        longest = max(longest, run)
    assert longest <= STOPPED_S


def test_another_task_or_none_owes_nothing() -> None:
    debt = Debt(Use("a", 10.0, 0.0), owed_s=9.0, stopped_s=1.0)
    assert step(debt, Use("b", 20.0, 0.0), 1.0) == Debt(Use("b", 20.0, 0.0))
    assert step(debt, Use(None, 20.0, 0.0), 1.0).stopped_s is None
