"""What `bench dispatch` makes of what it has measured: medians, what was lost, goals beside peers that are or are not there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import broker_apps
from bench.brokers import BROKERS, CELERY, MAKERS, OURS, POOL, Celery, Dramatiq, Huey, Rq, Supervised, pid_in
from bench.cases import dispatch
from bench.dispatching import Found
from bench.report import Options

MS = 1_000_000


def measured(name: str, **given: Any) -> dict[str, Any]:
    fields = {
        "trips_ns": [1 * MS, 2 * MS, 3 * MS],
        "tasks": 100,
        "tasks_per_s": 100.0,
        "cpu_us": 50.0,
        "idle_percent": 0.01,
        "idle_kib": {
            "python 1": 10_240,
            "morgan-tasks-1 2": 5_120,
            "morgan-owner-0 3": 90_000,
            "morgan-zygote 4": 9_000,
        },
        "worker_killed_s": [0.004, 0.002, 0.003],
        "main_killed_s": [0.2],
    }
    return asdict(Found(name, **(fields | given)))


def goals(*others: dict[str, Any], **ours: Any) -> dict[str, bool | None]:
    found = {one["name"]: one for one in (measured(OURS, **ours), measured(POOL, worker_killed_s=[None]), *others)}
    made = dispatch._goals(found, None, Options(is_quick=True))
    return {words.split(",")[0]: goal.met for words, goal in made.items()}


def test_every_goal_is_met_or_missed_by_the_figures_beside_each_other() -> None:
    slow = measured(CELERY, trips_ns=[50 * MS], tasks_per_s=2.0, worker_killed_s=[0.1])
    assert set(goals(slow).values()) == {True, None}  # None: with models, which --quick leaves out
    fast = measured(CELERY, trips_ns=[2 * MS], tasks_per_s=50.0, worker_killed_s=[0.004])
    missed = goals(fast, cpu_us=61.0, main_killed_s=[0.31, 0.4, 0.2], idle_percent=0.06, trips_ns=[9 * MS])
    assert [words for words, met in missed.items() if met] == ["idle PSS of supervisor and two workers without models"]


def test_without_peers_a_goal_beside_them_is_not_measured() -> None:
    found = goals()
    assert [words for words, met in found.items() if met is None] == [
        "durable throughput",
        "round trip p50 of the fastest peer with a broker",
        "worker killed to task done again p50",
        "a worker with models back",
    ]


def test_a_lost_task_has_no_median() -> None:
    assert dispatch._killed_ms(measured(OURS)) == pytest.approx(3.0)
    lost = measured(OURS, worker_killed_s=[0.001, None])
    assert dispatch._killed_ms(lost) is None
    assert dispatch._after(lost, "worker_killed_s") == "lost"


def test_what_is_missing_is_named_and_the_table_has_a_row_for_each_system() -> None:
    systems = [make(Path(), Path()) for make in MAKERS]
    table, missing = dispatch._tables(systems, {OURS: measured(OURS)}, {CELERY: "not installed"}, None)
    assert [row[0].removesuffix(" (durable)") for row in table.rows] == [system.name for system in systems]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert list(missing.rows) == [(CELERY, "not installed")]


def test_only_what_has_a_main_process_of_its_own_has_it_killed_and_started_again() -> None:
    systems = [make(Path(), Path()) for make in MAKERS]
    assert {one.name for one in systems if isinstance(one, Supervised)} == {OURS, *BROKERS}


def test_only_the_first_attempt_at_a_marked_task_holds(tmp_path: Path) -> None:
    mark = broker_apps.mark_of(tmp_path, 1)
    assert pid_in(mark) is None
    mark.write_text("12")
    assert pid_in(mark) is None  # not written whole yet
    mark.write_text("123\n")
    assert pid_in(mark) == 123
    assert broker_apps.work(str(mark)) > 0


def test_the_extra_brings_every_peer() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {re.split(r"[<>=]", one)[0] for one in extras["bench"]}
    assert {"redis", "distributed", *(peer.package for peer in (Celery, Dramatiq, Huey, Rq))} <= brought
