"""Owns what survives a crash: tasks, checkpoints, schedules, executions, query analytics, judgments. One SQLite file.

Writes go into one open transaction; `commit` at the end of a loop turn makes them durable together (group commit),
and only then is anything acknowledged. The supervisor is the only writer.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..ipc.errors import ConfigError
from ..ipc.records import ExecutionRecord, QueryRecord, ScheduleRecord, TaskRecord, TaskStatus

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KEPT_EXECUTIONS = 10_000
KEPT_TASKS_S = 30 * 86400.0  # ended tasks; their executions are kept by number
KEPT_INSTANTS_S = 30 * 86400.0  # longer than any catch-up looks back
# SQLITE_ERROR: our own statements fail on a file only where its header or its schema was overwritten
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

SCHEMA = """
create table task (id text primary key, status text not null, created_at real not null, record blob not null);
create index task_by_time on task (created_at);
create index task_by_status on task (status);
create table checkpoint (task_id text primary key, attempt integer not null, state blob not null);
create table schedule (id text primary key, record blob not null);
create table fired (schedule_id text not null, instant_at real not null, primary key (schedule_id, instant_at));
create table execution (n integer primary key autoincrement, is_measured integer not null, record blob not null);
create table total (name text primary key, value real not null);
create table query (hash text primary key, record blob not null);
create table judgment (
  hash text not null, query text not null, collection text not null,
  document_id text not null, relevance real not null, at real not null,
  primary key (hash, document_id));
create index judgment_by_collection on judgment (collection);
create table paused (collection text);
create table void_result (hash text primary key);
"""

T = TypeVar("T")

_encode = msgspec.msgpack.encode


class Journal:
    """`path` None keeps everything in memory: for the inline lane, whose clients die with the process.

    A file that is damaged is moved aside to `NAME.corrupt-N` and a new one begun; a single record that cannot be read
    is left out; `rebuilt_because` says so of both. A file of a newer version raises ConfigError. A full disk raises
    sqlite3.OperationalError: let it end the process, nothing acknowledged is lost.
    """

    def __init__(self, path: Path | None) -> None:
        self.rebuilt_because: str | None = None
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError as error:
            # a full disk, a lock or missing rights are no damage: moving the file aside would lose what is in it
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if path is None or code not in DAMAGE_CODES:
                raise
            aside = _move_aside(path)
            self.rebuilt_because = f"{path} was damaged ({error}); it is kept as {aside.name} and a new one was begun"
            log.error("%s", self.rebuilt_because)
            self._db = self._open(path)

    def _open(self, path: Path | None) -> sqlite3.Connection:
        # check_same_thread: the inline lane calls from several threads, one at a time under its lock
        db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
            (version,) = db.execute("pragma user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise ConfigError(f"{path} is of version {version}, this program knows {SCHEMA_VERSION}: update it")
            if version == 0:
                db.executescript(f"begin; {SCHEMA} pragma user_version = {SCHEMA_VERSION}; commit;")
            # not quick_check: it passes an index that disagrees with its table, which fails at the first read
            (verdict,) = db.execute("pragma integrity_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except BaseException:
            db.close()
            raise
        return db

    def _write(self, sql: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        if not self._db.in_transaction:
            self._db.execute("begin immediate")
        return self._db.execute(sql, tuple(values))

    def commit(self) -> None:
        """Make every write since the last commit durable."""
        if self._db.in_transaction:
            self._db.execute("commit")

    def close(self) -> None:
        self.commit()
        self._db.close()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def save_task(self, record: TaskRecord) -> None:
        self._write(
            "insert into task values (?, ?, ?, ?)"
            " on conflict (id) do update set status = excluded.status, record = excluded.record",
            (record.task_id, record.status.value, record.created_at, _encode(record)),
        )

    def task(self, task_id: str) -> TaskRecord | None:
        return next(self._rows(TaskRecord, "select record from task where id = ?", task_id), None)

    def tasks(self, limit: int = 50, status: TaskStatus | None = None) -> list[TaskRecord]:
        """Return tasks, newest first."""
        where = "where status = ?" if status else ""
        values = (status.value, limit) if status else (limit,)
        sql = f"select record from task {where} order by created_at desc, id desc limit ?"
        return list(self._rows(TaskRecord, sql, *values))

    def open_tasks(self) -> list[TaskRecord]:
        """Return the tasks that have not ended, oldest first."""
        sql = "select record from task where status in ('pending', 'running') order by created_at, id"
        return list(self._rows(TaskRecord, sql))

    def save_checkpoint(self, task_id: str, attempt: int, state: dict[str, Any]) -> None:
        self._write("insert or replace into checkpoint values (?, ?, ?)", (task_id, attempt, _encode(state)))

    def checkpoint(self, task_id: str) -> dict[str, Any] | None:
        """Return the last checkpoint of a task; None without one: the task begins anew."""
        return next(self._rows(dict[str, Any], "select state from checkpoint where task_id = ?", task_id), None)

    def drop_checkpoint(self, task_id: str) -> None:
        self._write("delete from checkpoint where task_id = ?", (task_id,))

    # --- schedules ----------------------------------------------------------------------------------------------------

    def save_schedule(self, record: ScheduleRecord) -> None:
        self._write("insert or replace into schedule values (?, ?)", (record.task_id, _encode(record)))

    def remove_schedule(self, schedule_id: str) -> None:
        self._write("delete from schedule where id = ?", (schedule_id,))

    def schedules(self) -> list[ScheduleRecord]:
        return list(self._rows(ScheduleRecord, "select record from schedule order by id"))

    def fire_once(self, schedule_id: str, instant_at: float) -> bool:
        """Claim one run of (schedule, instant); False if it was claimed before, also before a crash."""
        return self._write("insert or ignore into fired values (?, ?)", (schedule_id, instant_at)).rowcount == 1

    def set_paused(self, collections: Iterable[str | None]) -> None:
        self._write("delete from paused")
        for name in collections:
            self._write("insert into paused values (?)", (name,))

    def paused(self) -> list[str | None]:
        return [name for (name,) in self._db.execute("select collection from paused")]

    # --- executions ---------------------------------------------------------------------------------------------------

    def add_execution(self, record: ExecutionRecord) -> None:
        """Add an execution; the newest 10,000 are kept, the totals are over all there ever were."""
        measured = record.before_score is not None and record.after_score is not None
        cursor = self._write("insert into execution values (null, ?, ?)", (int(measured), _encode(record)))
        self._write("delete from execution where n <= ?", ((cursor.lastrowid or 0) - KEPT_EXECUTIONS,))
        counts = {"total": 1.0, record.status.value: 1.0}
        if record.before_score is not None and record.after_score is not None:
            counts |= {"improvement_sum": record.after_score - record.before_score, "improvement_count": 1.0}
        for name, value in counts.items():
            self._write(
                "insert into total values (?, ?) on conflict (name) do update set value = value + excluded.value",
                (name, value),
            )

    def executions(self, limit: int = 20, *, only_measured: bool = False) -> list[ExecutionRecord]:
        """Return executions, newest first."""
        sql = "select record from execution where is_measured >= ? order by n desc limit ?"
        return list(self._rows(ExecutionRecord, sql, int(only_measured), limit))

    def execution_totals(self) -> dict[str, Any]:
        """Return counts by status, their total, and the sum and number of measured improvements."""
        names = ("total", "completed", "failed", "skipped", "cancelled", "improvement_count")
        found = dict(self._db.execute("select name, value from total"))
        counts: dict[str, Any] = {name: int(found.get(name, 0)) for name in names}
        return counts | {"improvement_sum": found.get("improvement_sum", 0.0)}

    # --- queries ------------------------------------------------------------------------------------------------------

    def save_queries(self, records: Iterable[QueryRecord]) -> None:
        """Replace the query analytics."""
        self._write("delete from query")
        for record in records:
            self._write("insert into query values (?, ?)", (record.query_hash, _encode(record)))

    def queries(self) -> list[QueryRecord]:
        return list(self._rows(QueryRecord, "select record from query"))

    def add_judgment(
        self, key: str, query: str, collection: str, document_id: str, relevance: float, now: float
    ) -> None:
        """Record a judgment; a later one of the same query and document replaces it."""
        self._write(
            "insert or replace into judgment values (?, ?, ?, ?, ?, ?)",
            (key, query, collection, document_id, relevance, now),
        )

    def judgments(self, collection: str) -> dict[str, tuple[str, dict[str, float]]]:
        """Return query hash -> (query text, {document id: grade}) of a collection."""
        found: dict[str, tuple[str, dict[str, float]]] = {}
        sql = "select hash, query, document_id, relevance from judgment where collection = ? order by hash"
        for key, query, document_id, relevance in self._db.execute(sql, (collection,)):
            found.setdefault(key, (query, {}))[1][document_id] = relevance
        return found

    def void_results(self, keys: Iterable[str]) -> None:
        """Remember that the last snapshot's version of these results must not come back."""
        for key in keys:
            self._write("insert or ignore into void_result values (?)", (key,))

    def voided_results(self) -> set[str]:
        return {key for (key,) in self._db.execute("select hash from void_result")}

    def snapshot_taken(self) -> None:
        """Forget what was void in the snapshot before."""
        self._write("delete from void_result")

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def prune(self, now: float) -> None:
        """Forget ended tasks and fired instants that nobody can ask for any more."""
        self._write(
            "delete from task where created_at < ? and status not in ('pending', 'running')", (now - KEPT_TASKS_S,)
        )
        self._write("delete from fired where instant_at < ?", (now - KEPT_INSTANTS_S,))

    def _rows(self, kind: type[T], sql: str, *values: Any) -> Iterator[T]:
        for (blob,) in self._db.execute(sql, values):
            try:
                yield msgspec.msgpack.decode(blob, type=kind)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                # SQLite has no checksums: one flipped bit must not keep the service from starting with all the rest
                self.rebuilt_because = f"a damaged {kind.__name__} was left out ({error})"
                log.error("journal: %s", self.rebuilt_because)


def _move_aside(path: Path) -> Path:
    """Rename a damaged file and its log to the first free `.corrupt-N`; return the new name of the file."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    # the file last: a log left behind by a crash in between would be played into the new file
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
