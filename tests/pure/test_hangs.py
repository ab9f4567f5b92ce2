"""When a worker counts as hung: stopped or stuck, not starved; and never for time in which nobody looked."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.supervisor.hangs import SILENT_S, Limits, Sight, Verdict, Watch, step, why_killed

LIMITS = Limits(step_timeout_s=60.0, grace_s=5.0)
ELAPSED_S = st.floats(0.5, 5.0)


@dataclass
class Look:
    """One look at a simulated worker: what it did since the last one."""

    elapsed_s: float
    has_beaten: bool = True
    has_progressed: bool = False
    task: str | None = "task"
    is_runnable: bool = False
    delayed_s: float = 0.0


def verdicts(looks: list[Look]) -> list[Verdict]:
    """Return what is decided at each look; the first sight of the worker is before them."""
    beat = progress = 0
    delay_s = 0.0
    watch, _ = step(None, Sight(0, 0, looks[0].task if looks else None), 0.0, LIMITS)
    found = []
    for look in looks:
        beat += look.has_beaten
        progress += look.has_progressed
        delay_s += look.delayed_s
        watch, verdict = step(
            watch, Sight(beat, progress, look.task, look.is_runnable, delay_s), look.elapsed_s, LIMITS
        )
        found.append(verdict)
    return found


def at_first(found: list[Verdict], verdict: Verdict) -> int:
    """Return at which look, counted from 1, the verdict falls first; 0 if never."""
    return found.index(verdict) + 1 if verdict in found else 0


@settings(deadline=None)
@given(st.lists(ELAPSED_S, min_size=1, max_size=50))
def test_a_worker_without_a_sign_of_life_is_killed_after_the_limit_and_not_before(elapsed: list[float]) -> None:
    found = verdicts([Look(s, has_beaten=False, task=None) for s in elapsed])
    for n, verdict in enumerate(found, start=1):
        assert (verdict is Verdict.KILL) == (sum(elapsed[:n]) >= SILENT_S)


@settings(deadline=None)
@given(st.lists(ELAPSED_S, min_size=1, max_size=50), st.booleans())
def test_one_that_waits_for_a_cpu_is_never_hung_however_long(elapsed: list[float], has_task: bool) -> None:
    task = "task" if has_task else None
    assert set(verdicts([Look(s * 1000, has_beaten=False, task=task, is_runnable=True) for s in elapsed])) == {
        Verdict.FINE
    }


@settings(deadline=None)
@given(st.lists(ELAPSED_S, min_size=1, max_size=200))
def test_an_idle_worker_that_beats_is_fine_for_ever(elapsed: list[float]) -> None:
    assert set(verdicts([Look(s, task=None) for s in elapsed])) == {Verdict.FINE}


@settings(deadline=None)
@given(st.lists(st.tuples(ELAPSED_S, st.booleans()), min_size=1, max_size=100))
def test_a_step_is_stopped_once_when_it_made_no_progress_for_its_time_and_killed_after_the_grace(
    looks: list[tuple[float, bool]],
) -> None:
    found = verdicts([Look(s, has_progressed=moved) for s, moved in looks])
    stalled_s, stopped_at = 0.0, 0
    for n, (elapsed_s, moved) in enumerate(looks, start=1):
        stalled_s = 0.0 if moved else stalled_s + elapsed_s
        if stalled_s >= LIMITS.step_timeout_s and not stopped_at:
            stopped_at = n
    assert at_first(found, Verdict.STOP) == stopped_at
    assert found.count(Verdict.STOP) == bool(stopped_at)
    for n in range(len(looks)):
        since_s = sum(elapsed_s for elapsed_s, _ in looks[stopped_at : n + 1])
        assert (found[n] is Verdict.KILL) == (0 < stopped_at <= n and since_s >= LIMITS.grace_s)


def test_waiting_for_the_cpu_budget_is_progress() -> None:
    assert set(verdicts([Look(5.0, has_progressed=True)] * 1000)) == {Verdict.FINE}


def test_time_in_which_the_task_waited_for_a_cpu_does_not_count_against_its_step() -> None:
    """A beat needs some microseconds of CPU, a step needs seconds: it may starve while the beats go on."""
    starved = [Look(1.0, delayed_s=0.99)] * 1000
    assert set(verdicts(starved)) == {Verdict.FINE}
    assert at_first(verdicts([Look(1.0, delayed_s=0.5)] * 200), Verdict.STOP) == 120
    assert at_first(verdicts([Look(1.0, delayed_s=7.0)] * 200), Verdict.STOP) == 0  # counted for longer than it was


def test_a_task_is_not_blamed_for_the_one_before_it() -> None:
    looks = [Look(1.0, task="a")] * 50 + [Look(1.0, task="b")] * 50
    assert set(verdicts(looks)) == {Verdict.FINE}


def test_a_worker_that_was_told_to_leave_has_its_grace_also_if_it_gets_on() -> None:
    looks = [Look(1.0)] * 60 + [Look(1.0, has_progressed=True)] * 10
    found = verdicts(looks)
    assert at_first(found, Verdict.STOP) == 60
    assert at_first(found, Verdict.KILL) == 65


def test_the_reason_is_told_in_words() -> None:
    sight = Sight(0, 0)
    assert why_killed(Watch(sight, silent_s=12.4), LIMITS) == "it gave no sign of life for 12 s"
    assert why_killed(Watch(sight, leaving_s=5.0), LIMITS) == (
        "its step made no progress for 60 s, and it did not leave in 5 s"
    )


@settings(deadline=None)
@given(st.floats(0.0, 5.0), st.lists(ELAPSED_S, min_size=1, max_size=20))
def test_silence_counts_from_the_beat_itself_and_not_from_the_look_that_found_it(
    age_s: float, elapsed: list[float]
) -> None:
    watch, _ = step(None, Sight(0, 0), 0.0, LIMITS)
    watch, _ = step(watch, Sight(1, 0, age_s=age_s), 5.0, LIMITS)
    for n, s in enumerate(elapsed, start=1):
        watch, verdict = step(watch, Sight(1, 0, age_s=age_s + sum(elapsed[:n])), s, LIMITS)
        assert (verdict is Verdict.KILL) == (watch.silent_s >= SILENT_S)
        assert abs(watch.silent_s - (age_s + sum(elapsed[:n]))) < 1e-9


def test_the_age_of_a_beat_before_a_suspend_is_not_held_against_the_worker() -> None:
    watch, _ = step(None, Sight(0, 0), 0.0, LIMITS)
    watch, verdict = step(watch, Sight(1, 0, age_s=3600.0), 5.0, LIMITS)
    assert (watch.silent_s, verdict) == (5.0, Verdict.FINE)
