"""The journal gives back what it was given, on real files."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from morgan.background.ipc.errors import ConfigError
from morgan.background.ipc.records import (
    DecisionRow,
    ExecutionRecord,
    QueryRecord,
    ScheduleRecord,
    Spread,
    TaskFrequency,
    TaskProgress,
    TaskRecord,
    TaskStatus,
    TaskType,
)
from morgan.background.supervisor import journal as journal_module
from morgan.background.supervisor.journal import Journal

DAY_S = 86400.0

DEMAND, DECISION = journal_module.DEMAND, journal_module.DECISION


def task(number: int, status: TaskStatus = TaskStatus.PENDING) -> TaskRecord:
    return TaskRecord(
        task_id=f"warm_docs_{number}",
        task_type=TaskType.WARM,
        collection="docs",
        params={"queries": ["größe", "二"], "force_refresh": True},
        status=status,
        created_at=float(number),
        progress=TaskProgress(done=1, total=2, note="half"),
        result={"quality_improvement": 0.25, "nested": {"a": [1, None]}},
    )


def execution(number: int, before: float | None = None, after: float | None = None) -> ExecutionRecord:
    return ExecutionRecord(
        task_id=f"t{number}",
        task_type=TaskType.RERANK,
        collection="docs",
        status=TaskStatus.COMPLETED if number % 2 else TaskStatus.FAILED,
        started_at=1.0,
        completed_at=2.0,
        metric="nDCG@10" if before is not None else None,
        before_score=before,
        after_score=after,
    )


def test_everything_written_is_read_back_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    schedule = ScheduleRecord(
        task_id="s1",
        task_type=TaskType.REINDEX,
        collection="docs",
        frequency=TaskFrequency.WEEKLY,
        next_run_at=7.0,
        metadata={"max_queries": 3},
    )
    query = QueryRecord(
        query_hash="ab",
        query_text="what",
        collection="docs",
        access_count=3,
        popularity=1.5,
        total_response_s=0.2,
        timed_count=2,
        first_accessed_at=1.0,
        last_accessed_at=2.0,
    )
    journal = Journal(path)
    for number in range(3):
        journal.save_task(task(number))
    journal.save_task(task(1, TaskStatus.COMPLETED))
    journal.save_checkpoint("warm_docs_0", 1, {"after": 10})
    journal.save_checkpoint("warm_docs_0", 2, {"after": 20, "ids": [1, "x"]})
    journal.save_checkpoint("warm_docs_2", 1, {})
    journal.drop_checkpoint("warm_docs_2")
    journal.save_schedule(schedule)
    journal.save_schedule(ScheduleRecord(**{**_fields(schedule), "task_id": "s2"}))
    journal.remove_schedule("s2")
    journal.save_queries([query])
    journal.add_judgment("ab", "what", "docs", "7", 1.0, 1.0)
    journal.add_judgment("ab", "what", "docs", "7", 3.0, 2.0)
    journal.add_judgment("ef", "what", "code", "7", 2.0, 2.0)  # the hash covers the collection: ipc/query.py
    journal.add_judgment("cd", "who", "docs", "8", 0.0, 2.0)
    journal.set_paused(["docs", None])
    journal.set_paused([None, "code"])
    journal.close()

    journal = Journal(path)
    assert journal.rebuilt_because is None
    assert journal.tasks(2) == [task(2), task(1, TaskStatus.COMPLETED)]
    assert journal.tasks(9, TaskStatus.COMPLETED) == [task(1, TaskStatus.COMPLETED)]
    assert journal.open_tasks() == [task(0), task(2)]
    assert journal.task("warm_docs_0") == task(0)
    assert journal.task("nobody") is None
    assert journal.checkpoint("warm_docs_0") == {"after": 20, "ids": [1, "x"]}
    assert journal.checkpoint("warm_docs_2") is None
    assert journal.schedules() == [schedule]
    assert journal.queries() == [query]
    assert journal.judgments("docs") == {"ab": ("what", {"7": 3.0}), "cd": ("who", {"8": 0.0})}
    assert journal.judgments("code") == {"ef": ("what", {"7": 2.0})}
    assert set(journal.paused()) == {None, "code"}
    journal.close()


def _fields(record: ScheduleRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_totals_stay_true_when_old_executions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "KEPT_EXECUTIONS", 4)
    journal = Journal(None)
    for number in range(10):
        journal.add_execution(execution(number))
    journal.add_execution(execution(11, before=0.5, after=0.75))
    journal.add_execution(execution(13, before=0.5, after=0.25))
    assert [e.task_id for e in journal.executions(99)] == ["t13", "t11", "t9", "t8"]
    assert [e.task_id for e in journal.executions(1, only_measured=True)] == ["t13"]
    assert journal.execution_totals() == {
        "total": 12,
        "completed": 7,
        "failed": 5,
        "skipped": 0,
        "cancelled": 0,
        "improvement_count": 2,
        "improvement_sum": 0.0,
    }
    journal.close()


def test_executions_are_found_by_what_they_were() -> None:
    journal = Journal(None)
    for number in range(6):
        journal.add_execution(execution(number))
    journal.add_execution(msgspec.structs.replace(execution(6), task_type=TaskType.WARM, collection="code"))

    def found(limit: int = 99, **wanted: Any) -> list[str]:
        return [one.task_id for one in journal.executions(limit, **wanted)]

    assert found(status=TaskStatus.FAILED) == ["t6", "t4", "t2", "t0"]
    assert found(status=TaskStatus.COMPLETED, task_type=TaskType.RERANK, collection="docs") == ["t5", "t3", "t1"]
    assert found(task_type=TaskType.WARM) == found(collection="code") == ["t6"]
    assert found(1, collection="docs") == ["t5"]
    assert found(collection="nothing") == []
    journal.close()


def test_a_file_of_version_1_keeps_its_history_and_it_is_found_by_what_it_was(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "j")
    columns = "task_type text not null default '', collection text not null default '', status text not null default ''"
    old = journal_module.SCHEMA.replace(f",\n  {columns}", "").replace(f"{DEMAND}\n", "").replace(f"{DECISION}\n", "")
    assert columns not in old
    assert DECISION not in old
    assert DEMAND not in old
    db.executescript(f"begin; {old} pragma user_version = 1; commit;")
    for number in range(3):
        db.execute("insert into execution values (null, 0, ?)", (msgspec.msgpack.encode(execution(number)),))
    db.execute("insert into execution values (null, 0, x'c1')")  # damaged
    db.commit()
    db.close()
    for _ in range(2):  # the second time it is of the new version
        journal = Journal(tmp_path / "j")
        assert [one.task_id for one in journal.executions(99, status=TaskStatus.FAILED)] == ["t2", "t0"]
        assert [one.task_id for one in journal.executions(99)] == ["t2", "t1", "t0"]
        assert journal.demand() in ((), (0.5, -1.0))
        journal.save_demand([0.5, -1.0])
        assert journal.decisions(0.0, 9.0, 9) in ([], [decision(5.0)])
        journal.add_decisions([decision(5.0)][len(journal.decisions(0.0, 9.0, 9)) :])
        journal.commit()
        journal.close()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_file_of_before_there_were_decisions_keeps_what_it_has_and_takes_them(tmp_path: Path, version: int) -> None:
    db = sqlite3.connect(tmp_path / "j")
    old = journal_module.SCHEMA.replace(f"{DECISION}\n", "")
    if version < 3:
        old = old.replace(f"{DEMAND}\n", "")
    db.executescript(f"begin; {old} pragma user_version = {version}; commit;")
    db.execute("insert into schedule values ('s1', x'c1')")  # damaged: it is left out, and said so
    db.execute("insert into paused values ('docs')")
    db.commit()
    db.close()
    journal = Journal(tmp_path / "j")
    assert journal.paused() == ["docs"]
    journal.add_decisions([decision(5.0)])
    journal.save_demand([0.5])
    journal.close()
    journal = Journal(tmp_path / "j")
    assert (journal.decisions(0.0, 9.0, 9), journal.demand()) == ([decision(5.0)], (0.5,))
    journal.close()


def decision(started_at: float) -> DecisionRow:
    some = Spread(mean=0.125, peak=0.5)
    return DecisionRow(
        started_at=started_at,
        seconds=60.0,
        is_admitting=True,
        reason="größe: 30 %",
        is_change=True,
        changes=2,
        admitted=0.75,
        budget=some,
        limit=Spread(mean=0.3, peak=0.3),
        own=some,
        others=some,
        memory=some,
        query_rate=Spread(mean=1.5, peak=20.0),
    )


def test_decisions_are_read_back_oldest_first_and_by_pages(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add_decisions(decision(at) for at in (60.0, 120.0, 30.0))  # the clock was set back
    journal.commit()
    journal.add_decisions([decision(200.0)])
    journal.close()
    journal = Journal(tmp_path / "j")
    assert journal.decisions(0.0, 500.0, 9) == [decision(at) for at in (30.0, 60.0, 120.0, 200.0)]
    assert [row.started_at for row in journal.decisions(30.0, 500.0, 2)] == [60.0, 120.0]
    assert [row.started_at for row in journal.decisions(0.0, 60.0, 9)] == [30.0, 60.0]
    journal.close()


def test_decisions_are_kept_for_25_hours_and_by_number_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, now = Journal(None), 10 * DAY_S
    journal.add_decisions(decision(now - hours * 3600) for hours in (26, 24.9, 1))
    journal.prune(now)
    assert [now - row.started_at for row in journal.decisions(0.0, now, 9)] == [24.9 * 3600, 3600]
    monkeypatch.setattr(journal_module, "KEPT_DECISIONS", 3)
    journal.add_decisions(decision(100 * DAY_S + number) for number in range(5))  # of a clock that was far ahead
    journal.prune(now)
    assert [row.started_at - 100 * DAY_S for row in journal.decisions(0.0, math.inf, 9)] == [2, 3, 4]
    journal.close()


def test_what_was_learned_of_demand_is_there_at_the_next_start_and_replaced_as_a_whole(tmp_path: Path) -> None:
    for weights in ([], [1.5, -2.0, 0.25], [3.0]):
        journal = Journal(tmp_path / "j")
        journal.save_demand(weights)
        journal.commit()
        journal.close()
        journal = Journal(tmp_path / "j")
        assert journal.demand() == tuple(weights)
        journal.close()


OLD_TASKS = """
create table task (id text primary key, status text not null, created_at real not null, record blob not null);
create index task_by_time on task (created_at);
create index task_by_status on task (status);
"""


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_older_version_keeps_its_tasks(tmp_path: Path, version: int) -> None:
    db = sqlite3.connect(tmp_path / "j")
    schema = journal_module.SCHEMA.replace(journal_module.TASK, OLD_TASKS).replace(DECISION, "")
    db.executescript((schema if version == 3 else schema.replace(DEMAND, "")) + f"pragma user_version = {version};")
    held = [task(1, TaskStatus.COMPLETED), task(2), task(3, TaskStatus.RUNNING)]
    for one in held:  # as maps
        db.execute(
            "insert into task values (?, ?, ?, ?)",
            (one.task_id, one.status.value, one.created_at, msgspec.msgpack.encode(one)),
        )
    if version == 1:
        for column in ("task_type", "collection", "status"):
            db.execute(f"alter table execution drop column {column}")
    db.commit()
    db.close()
    for _ in range(2):
        journal = Journal(tmp_path / "j")
        assert journal.rebuilt_because is None
        assert journal.tasks() == held[::-1]
        assert journal.open_tasks() == held[1:]
        assert journal.task("warm_docs_1") == held[0]
        journal.save_task(held[1])  # in the new form beside the old one
        journal.close()


def test_a_task_is_kept_by_the_places_of_its_fields_so_they_stay_and_new_ones_come_last() -> None:
    first = "task_id task_type collection params status priority is_forced attempt failures outages kills version created_at"
    then = "not_before_at deadline_at started_at completed_at progress result error_code error_message schedule_id"
    names = [*first.split(), *then.split(), "waits_for", "worker"]
    assert list(TaskRecord.__struct_fields__)[: len(names)] == names
    row = msgspec.msgpack.encode(["t", "warm", "docs", {}, "failed"])  # of a version with fewer fields
    assert journal_module._read(row, TaskRecord).status is TaskStatus.FAILED


def test_what_was_committed_is_there_after_the_log_was_brought_into_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    log = tmp_path / "j-wal"
    size = log.stat().st_size
    assert size >= journal_module.LOG_BYTES
    for number in range(3 * journal_module.LOG_PAGES // journal_module.PAGES_A_COMMIT):
        journal.save_task(task(number))
        journal.commit()
        journal.tidy()
    assert log.stat().st_size == size  # written over again and again: it does not grow
    other = sqlite3.connect(f"file:{tmp_path / 'j'}?immutable=1", uri=True)  # the file without its log
    assert other.execute("select count(*) from task").fetchone()[0] >= 2 * journal_module.LOG_PAGES // 4
    other.close()
    journal.close()


def test_a_task_that_changes_many_times_before_a_commit_is_written_once_in_its_last_state(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.save_task(task(1))
    assert journal.task("warm_docs_1") == task(1)  # what is not written yet is found all the same
    assert journal.tasks() == [task(1)]
    for status in (TaskStatus.RUNNING, TaskStatus.COMPLETED):
        journal.save_task(task(1, status))
    journal.commit()
    other = sqlite3.connect(tmp_path / "j")
    assert other.execute("select status from task").fetchall() == [("completed",)]
    other.close()
    journal.close()


def test_what_can_wait_is_written_with_the_next_commit_that_is_made_for_something_else(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "j"), sqlite3.connect(tmp_path / "j")

    def written() -> list[str]:
        return [name for (name,) in other.execute("select id from task order by id")]

    journal.save_task(task(1), can_wait=True)
    journal.commit()
    assert written() == []
    journal.save_task(task(2))
    journal.commit()
    assert written() == ["warm_docs_1", "warm_docs_2"]
    journal.save_task(task(3), can_wait=True)
    journal.close()  # nothing waits for ever
    assert written() == ["warm_docs_1", "warm_docs_2", "warm_docs_3"]
    other.close()


def test_an_ended_ping_is_forgotten_after_an_hour_and_nothing_else_is() -> None:
    journal, now = Journal(None), 10 * DAY_S
    for name, status, at in (
        ("ping_a_1", TaskStatus.COMPLETED, now - 4000),
        ("ping_a_2", TaskStatus.COMPLETED, now - 3000),
        ("ping_a_3", TaskStatus.PENDING, now - 4000),
        ("pingpong", TaskStatus.COMPLETED, now - 4000),
        ("warm_a_1", TaskStatus.COMPLETED, now - 4000),
    ):
        journal.save_task(msgspec.structs.replace(task(1, status), task_id=name, created_at=at))
    journal.prune(now)
    assert {one.task_id for one in journal.tasks()} == {"ping_a_2", "ping_a_3", "pingpong", "warm_a_1"}
    journal.close()


def test_a_run_of_a_schedule_is_claimed_once_also_across_restarts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert journal.fire_once("s", 3600.0)
    assert not journal.fire_once("s", 3600.0)
    assert journal.fire_once("s", 7200.0)
    assert journal.fire_once("other", 3600.0)
    journal.close()
    journal = Journal(tmp_path / "j")
    assert not journal.fire_once("s", 3600.0)
    journal.close()


def test_a_claim_that_was_not_committed_is_free_again_together_with_its_task(tmp_path: Path) -> None:
    writer = Journal(tmp_path / "j")
    writer.fire_once("s", 3600.0)
    writer.save_task(task(1))
    reader = sqlite3.connect(tmp_path / "j")
    assert reader.execute("select count(*) from task").fetchone() == (0,)
    writer.commit()
    assert reader.execute("select (select count(*) from task), (select count(*) from fired)").fetchone() == (1, 1)
    reader.close()
    writer.close()


def test_only_ended_tasks_and_old_claims_are_forgotten() -> None:
    journal = Journal(None)
    now = 100 * DAY_S
    journal.save_task(task(1))
    journal.save_task(task(2, TaskStatus.FAILED))
    journal.fire_once("s", 1.0)
    journal.fire_once("s", now)
    journal.prune(now)
    assert journal.tasks() == [task(1)]
    assert journal.fire_once("s", 1.0)
    assert not journal.fire_once("s", now)
    journal.close()


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    db = sqlite3.connect(tmp_path / "j")
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        Journal(tmp_path / "j")
    assert [part.name for part in tmp_path.iterdir()] == ["j"]
