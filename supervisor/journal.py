"""Owns what survives a crash: tasks, checkpoints, schedules, executions, query analytics, judgments. One SQLite file.

Writes go into one open transaction; `commit` at the end of a loop turn makes them durable together (group commit),
and only then is anything acknowledged. Of a task that changes several times before a commit the last state alone is
written. The supervisor is the only writer.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..ipc.errors import ConfigError
from ..ipc.records import DecisionRow, ExecutionRecord, QueryRecord, ScheduleRecord, TaskRecord, TaskStatus, TaskType
from .decisions import KEPT_DECISIONS, KEPT_DECISIONS_S, page
from .quality_tables import QUALITY, QualityTables

log = logging.getLogger(__name__)

SCHEMA_VERSION = 5
KEPT_EXECUTIONS = 10_000
KEPT_TASKS_S = 30 * 86400.0  # ended tasks; their executions are kept by number
KEPT_PINGS_S = 3600.0  # ended pings: nobody asks for one later
LOG_BYTES = 4 * 1024 * 1024  # of the write-ahead log, written beforehand
ROWS_A_PAGE = 8  # tasks; by it, and by
PAGES_A_COMMIT = 4  # the pages in the log are estimated
LOG_PAGES = 900  # written to the log before it is brought into the file: as many as fit, with room for a large commit
STATEMENTS = 64  # prepared ones that SQLite keeps: all of ours
KEPT_INSTANTS_S = 30 * 86400.0  # longer than any catch-up looks back
# SQLITE_ERROR: our own statements fail on a file only where its header or its schema was overwritten
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

DEMAND = "create table demand (place integer primary key, weight real not null);"
DECISION = (
    "create table decision (n integer primary key autoincrement, started_at real not null, record blob not null);"
)
TASK = """
create table task (
  id text primary key, status text not null, created_at real not null, record blob not null) without rowid;
create index task_by_time on task (created_at);
create index task_open on task (status) where status in ('pending', 'running');
"""
SCHEMA = f"""
{TASK}
create table checkpoint (task_id text primary key, attempt integer not null, state blob not null);
create table schedule (id text primary key, record blob not null);
create table fired (schedule_id text not null, instant_at real not null, primary key (schedule_id, instant_at));
create table execution (
  n integer primary key autoincrement, is_measured integer not null, record blob not null,
  task_type text not null default '', collection text not null default '', status text not null default '');
create table total (name text primary key, value real not null);
create table query (hash text primary key, record blob not null);
create table judgment (
  hash text not null, query text not null, collection text not null,
  document_id text not null, relevance real not null, at real not null,
  primary key (hash, document_id));
create index judgment_by_collection on judgment (collection);
create table paused (collection text);
create table void_result (hash text primary key);
{DEMAND}
{DECISION}
"""

PUT_TASK = (
    "insert into task values (?, ?, ?, ?)"
    " on conflict (id) do update set status = excluded.status, record = excluded.record"
)

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode

# A task is kept as the list of its fields: a third of the bytes of a map with their names. So no field of TaskRecord may
# change its place, and a new one has a default and is the last (tests/components/test_journal.py).
_FIELDS = TaskRecord.__struct_fields__
_values = attrgetter(*_FIELDS)
_WORDS = {one: one.value for one in TaskStatus}


class Journal:
    """`path` None keeps everything in memory: for the inline lane, whose clients die with the process.

    A file that is damaged is moved aside to `NAME.corrupt-N` and a new one begun; a single record that cannot be read
    is left out; `rebuilt_because` says so of both. A file of a newer version raises ConfigError. A full disk raises
    sqlite3.OperationalError: let it end the process, nothing acknowledged is lost.
    """

    def __init__(self, path: Path | None) -> None:
        self.rebuilt_because: str | None = None
        self._tasks: dict[str, TaskRecord] = {}  # to be written, the latest state of each
        self._executions: list[ExecutionRecord] = []  # to be written
        self._has_due = False  # of what is to be written, something has to be at the next commit
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
        self.quality = QualityTables(self._db, self._write, self._rows)
        self._unfolded = 0  # pages in the log, about
        if path is not None:
            _reserve(path.with_name(path.name + "-wal"))
        self._with_checkpoint = {task_id for (task_id,) in self._db.execute("select task_id from checkpoint")}

    def _open(self, path: Path | None) -> sqlite3.Connection:
        # check_same_thread: the inline lane calls from several threads, one at a time under its lock
        db = sqlite3.connect(
            path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
        )
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
            (version,) = db.execute("pragma user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise ConfigError(f"{path} is of version {version}, this program knows {SCHEMA_VERSION}: update it")
            if version == 0:
                db.executescript(f"begin; {SCHEMA} pragma user_version = {SCHEMA_VERSION}; commit;")
            if version == 1:
                _add_columns(db)
            if version in (1, 2):
                db.executescript(f"begin; {DEMAND} pragma user_version = 3; commit;")
            if version in (1, 2, 3):
                _make_tasks_compact(db)
            if version in (1, 2, 3, 4):
                db.executescript(f"begin; {DECISION} pragma user_version = 5; commit;")
            db.executescript(QUALITY)
            db.execute(f"pragma wal_autocheckpoint = {2 * LOG_PAGES}")  # should `tidy` not be called
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
        """Make every write since the last commit durable, but for those that can wait where there are no others."""
        if not self._has_due and not self._db.in_transaction:
            return
        if len(self._tasks) == 1 and not self._executions and not self._db.in_transaction:
            # one statement is a transaction by itself, and a third faster than one between two others
            self._db.execute(PUT_TASK, *self._task_rows())
            self._tasks, self._has_due = {}, False
        else:
            self._flush()
            self._db.execute("commit")
        self._unfolded += PAGES_A_COMMIT

    def _task_rows(self) -> list[tuple[str, str, float, bytes]]:
        return [
            (task_id, _WORDS[task.status], task.created_at, _encode(_values(task)))
            for task_id, task in self._tasks.items()
        ]

    def tidy(self) -> None:
        """Bring the log into the file where it has grown: between two turns, not within a commit that somebody awaits."""
        if self._unfolded >= LOG_PAGES:
            self._unfolded = 0
            self._db.execute("pragma wal_checkpoint(passive)")

    def _flush(self) -> None:
        """Write what was put off, into the open transaction."""
        if not self._tasks and not self._executions:
            self._has_due = False
            return
        if not self._db.in_transaction:
            self._db.execute("begin immediate")
        self._db.executemany(PUT_TASK, self._task_rows())
        self._unfolded += len(self._tasks) // ROWS_A_PAGE
        self._tasks = {}  # only now: what a full disk has refused is still to be written
        if self._executions:
            self._write_executions(self._executions)
            self._executions = []
        self._has_due = False

    def close(self) -> None:
        self._has_due = self._has_due or bool(self._tasks)
        self.commit()
        self._db.close()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def save_task(self, record: TaskRecord, *, can_wait: bool = False) -> None:
        """Write a task's state with the next commit. `can_wait`: with the next that is made for something else."""
        self._tasks[record.task_id] = record
        self._has_due = self._has_due or not can_wait

    def task(self, task_id: str) -> TaskRecord | None:
        if (unwritten := self._tasks.get(task_id)) is not None:
            return unwritten
        return next(self._rows(TaskRecord, "select record from task where id = ?", task_id), None)

    def tasks(self, limit: int = 50, status: TaskStatus | None = None) -> list[TaskRecord]:
        """Return tasks, newest first."""
        self._flush()
        where = "where status = ?" if status else ""
        values = (status.value, limit) if status else (limit,)
        sql = f"select record from task {where} order by created_at desc, id desc limit ?"
        return list(self._rows(TaskRecord, sql, *values))

    def open_tasks(self) -> list[TaskRecord]:
        """Return the tasks that have not ended, oldest first."""
        self._flush()
        sql = "select record from task where status in ('pending', 'running') order by created_at, id"
        return list(self._rows(TaskRecord, sql))

    def save_checkpoint(self, task_id: str, attempt: int, state: dict[str, Any]) -> None:
        self._write("insert or replace into checkpoint values (?, ?, ?)", (task_id, attempt, _encode(state)))
        self._with_checkpoint.add(task_id)

    def checkpoint(self, task_id: str) -> dict[str, Any] | None:
        """Return the last checkpoint of a task; None without one: the task begins anew."""
        if task_id not in self._with_checkpoint:
            return None
        return next(self._rows(dict[str, Any], "select state from checkpoint where task_id = ?", task_id), None)

    def drop_checkpoint(self, task_id: str) -> None:
        if task_id in self._with_checkpoint:
            self._with_checkpoint.remove(task_id)
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
        self._executions.append(record)
        self._has_due = True

    def _write_executions(self, records: list[ExecutionRecord]) -> None:
        counts: defaultdict[str, float] = defaultdict(float)
        rows = []
        for record in records:
            counts["total"] += 1
            counts[record.status.value] += 1
            is_measured = record.before_score is not None and record.after_score is not None
            if record.before_score is not None and record.after_score is not None:
                counts["improvement_count"] += 1
                counts["improvement_sum"] += record.after_score - record.before_score
            row = int(is_measured), _encode(record), record.task_type.value, record.collection, record.status.value
            rows.append(row)
        self._db.executemany(
            "insert into execution (is_measured, record, task_type, collection, status) values (?, ?, ?, ?, ?)", rows
        )
        self._db.execute("delete from execution where n <= (select max(n) from execution) - ?", (KEPT_EXECUTIONS,))
        self._db.executemany(
            "insert into total values (?, ?) on conflict (name) do update set value = value + excluded.value",
            list(counts.items()),
        )

    def executions(
        self,
        limit: int = 20,
        *,
        only_measured: bool = False,
        task_type: TaskType | None = None,
        collection: str | None = None,
        status: TaskStatus | None = None,
    ) -> list[ExecutionRecord]:
        """Return executions, newest first; given a type, collection or status, of that alone."""
        self._flush()
        wanted = {"task_type": task_type, "collection": collection, "status": status}
        given = {column: str(value) for column, value in wanted.items() if value is not None}
        where = " and ".join(["is_measured >= ?", *(f"{column} = ?" for column in given)])
        sql = f"select record from execution where {where} order by n desc limit ?"
        return list(self._rows(ExecutionRecord, sql, int(only_measured), *given.values(), limit))

    def execution_totals(self) -> dict[str, Any]:
        """Return counts by status, their total, and the sum and number of measured improvements."""
        self._flush()
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

    def save_demand(self, weights: Iterable[float]) -> None:
        """Replace what was learned of which queries are asked again."""
        self._write("delete from demand")
        for place, weight in enumerate(weights):
            self._write("insert into demand values (?, ?)", (place, weight))

    def demand(self) -> tuple[float, ...]:
        """Return the weights of `save_demand`; empty where nothing was learned yet."""
        return tuple(weight for (weight,) in self._db.execute("select weight from demand order by place"))

    def add_decisions(self, rows: Iterable[DecisionRow]) -> None:
        """Add to the log of the governor's decisions; `prune` bounds it."""
        for row in rows:
            self._write("insert into decision (started_at, record) values (?, ?)", (row.started_at, _encode(row)))

    def decisions(self, since: float, until: float, limit: int) -> list[DecisionRow]:
        """Return the rows that began after `since` and not after `until`, oldest first; less than `limit`: all of them.

        More than `limit` where several began at the same time: see `decisions.page`.
        """
        sql = "select record from decision where started_at > ? and started_at <= ? order by started_at, n"
        # counted here: a damaged row, which is left out, must not make a page look like the last one
        return page(self._rows(DecisionRow, sql, since, until), limit)

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
        """Forget ended tasks, fired instants and decisions that nobody can ask for any more."""
        self._flush()
        self._write(
            "delete from task where created_at < ? and status not in ('pending', 'running')", (now - KEPT_TASKS_S,)
        )
        self._write(
            "delete from task where id >= 'ping_' and id < 'ping`' and created_at < ?"
            " and status not in ('pending', 'running')",
            (now - KEPT_PINGS_S,),
        )
        self._write("delete from fired where instant_at < ?", (now - KEPT_INSTANTS_S,))
        # by number as well: of a clock that was far ahead, or set to and fro, no row would ever be old
        self._write("delete from decision where started_at < ?", (now - KEPT_DECISIONS_S,))
        self._write("delete from decision where n <= (select max(n) from decision) - ?", (KEPT_DECISIONS,))
        self.quality.prune(now)

    def _rows(self, kind: type[T], sql: str, *values: Any) -> Iterator[T]:
        for (blob,) in self._db.execute(sql, values):
            try:
                yield _read(blob, kind)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                # SQLite has no checksums: one flipped bit must not keep the service from starting with all the rest
                self.rebuilt_because = f"a damaged {kind.__name__} was left out ({error})"
                log.error("journal: %s", self.rebuilt_because)


def _read(blob: bytes, kind: type[T]) -> T:
    """Return what `blob` holds. Raises MsgspecError, UnicodeDecodeError."""
    if kind is TaskRecord and blob and not _is_map(blob):
        values = msgspec.msgpack.decode(blob, type=list[Any])
        return msgspec.convert(dict(zip(_FIELDS, values, strict=False)), kind)
    return msgspec.msgpack.decode(blob, type=kind)


def _is_map(blob: bytes) -> bool:
    """Say whether a MessagePack value is a map: so is a task that was written by a version before 4."""
    return blob[0] & 0xF0 == 0x80 or blob[0] in (0xDE, 0xDF)


def _add_columns(db: sqlite3.Connection) -> None:
    """Bring a file of version 1 to 2: what executions are asked for by stands beside their record."""
    db.execute("begin immediate")
    for column in ("task_type", "collection", "status"):
        db.execute(f"alter table execution add column {column} text not null default ''")
    for n, blob in db.execute("select n, record from execution").fetchall():
        try:
            one = msgspec.msgpack.decode(blob, type=ExecutionRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # damaged: left out whenever it is read
        values = (one.task_type.value, one.collection, one.status.value, n)
        db.execute("update execution set task_type = ?, collection = ?, status = ? where n = ?", values)
    db.execute("pragma user_version = 2")
    db.execute("commit")


def _make_tasks_compact(db: sqlite3.Connection) -> None:
    """Bring a file of version 3 to 4: tasks lie in their index, and the ended ones, nearly all, are in none by status.

    Records are read as they are, and written in the new form when they change next.
    """
    db.executescript(f"""
        begin immediate;
        alter table task rename to old_task;
        drop index if exists task_by_time;
        drop index if exists task_open;
        {TASK}
        insert into task select id, status, created_at, record from old_task;
        drop table old_task;
        pragma user_version = 4;
        commit;
    """)


def _reserve(log_path: Path) -> None:
    """Write zeroes to the end of the log, up to LOG_BYTES: to sync what has its blocks already takes half the time.

    SQLite reads its log up to the first frame that is none, so what follows is nothing to it.
    """
    with suppress(OSError), log_path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            file.write(bytes(max(LOG_BYTES - size, 0)))
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # a full disk: the log grows as it is needed, if it can
            os.ftruncate(file.fileno(), size)


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
