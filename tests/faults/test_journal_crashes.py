"""What was acknowledged survives SIGKILL; what is damaged keeps the service from nothing but itself."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from morgan.background.ipc.records import TaskRecord, TaskType
from morgan.background.supervisor.journal import Journal

WRITER = """
import os, sys
from pathlib import Path
from morgan.background.ipc.records import TaskRecord, TaskType
from morgan.background.supervisor.journal import Journal

journal, first = Journal(Path(sys.argv[1])), int(sys.argv[2])
for turn in range(100_000):
    for n in range(3):
        number = first + 3 * turn + n
        task_id = f"warm_docs_{number}"
        journal.save_task(TaskRecord(task_id=task_id, task_type=TaskType.WARM, collection="docs", created_at=number))
        journal.save_checkpoint(task_id, 1, {"at": number})
    journal.commit()
    os.write(1, b"%d\\n" % number)
"""


def test_every_acknowledged_task_survives_a_sigkill_at_any_instant(tmp_path: Path) -> None:
    path, rng, acknowledged = tmp_path / "j", random.Random(4), -1
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(path), str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as writer:
            assert writer.stdout is not None
            seen = b""
            wanted = rng.randrange(1, 1500)  # bytes: the kill comes while the next transaction is under way
            while len(seen) < wanted:
                chunk = writer.stdout.read(wanted - len(seen))
                assert chunk, "the writer ended by itself"
                seen += chunk
            writer.kill()
            seen += writer.stdout.read()
        acknowledged = max([acknowledged, *(int(line) for line in seen.split(b"\n")[:-1])])
        journal = Journal(path)
        assert journal.rebuilt_because is None
        numbers = [int(record.task_id.rsplit("_", 1)[1]) for record in journal.open_tasks()]
        assert numbers == list(range(len(numbers)))  # none missing, none twice
        assert len(numbers) > acknowledged
        assert len(numbers) % 3 == 0  # a transaction is there whole or not at all
        assert all(journal.checkpoint(f"warm_docs_{n}") == {"at": n} for n in numbers[-9:])
        acknowledged = len(numbers) - 1
        journal.close()


def filled(path: Path, count: int = 60) -> bytes:
    journal = Journal(path)
    for number in range(count):
        journal.save_task(
            TaskRecord(task_id=f"t{number}", task_type=TaskType.WARM, collection=f"c{number}", created_at=float(number))
        )
        journal.save_checkpoint(f"t{number}", 1, {"after": number})
    journal.close()
    return path.read_bytes()


def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    for number in (1, 2):
        path.write_bytes(b"not a database at all" * 500)
        journal = Journal(path)
        assert f"j.corrupt-{number}" in (journal.rebuilt_because or "")
        assert (tmp_path / f"j.corrupt-{number}").read_bytes().startswith(b"not a database")
        assert journal.open_tasks() == []
        journal.close()


@pytest.mark.parametrize("kind", ["bit", "page", "cut"])
def test_no_damage_keeps_the_journal_from_opening(tmp_path: Path, kind: str) -> None:
    whole, rng, reported = filled(tmp_path / "whole"), random.Random(kind), 0
    for number in range(120):
        damaged = bytearray(whole)
        if kind == "bit":
            damaged[rng.randrange(100, len(damaged))] ^= 1 << rng.randrange(8)  # past the header, which has the version
        elif kind == "page":
            at = 4096 * rng.randrange(len(damaged) // 4096)
            damaged[at : at + 4096] = bytes(4096)
        else:
            del damaged[rng.randrange(1, len(damaged)) :]
        path = tmp_path / str(number)
        path.write_bytes(damaged)
        journal = Journal(path)
        found = journal.open_tasks()
        states = [journal.checkpoint(f"t{n}") for n in range(60)]
        assert journal.rebuilt_because or (len(found) == 60 and None not in states)
        reported += journal.rebuilt_because is not None
        journal.save_task(TaskRecord(task_id="new", task_type=TaskType.WARM, collection="c", created_at=1e3))
        journal.close()
    assert reported


def test_one_unreadable_record_costs_that_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, 3)
    db = sqlite3.connect(path)
    db.execute("update task set record = x'c1' where id = 't1'")
    db.execute("update checkpoint set state = x'c1' where task_id = 't2'")
    db.commit()
    db.close()
    journal = Journal(path)
    assert [record.task_id for record in journal.open_tasks()] == ["t0", "t2"]
    assert journal.checkpoint("t2") is None
    assert "left out" in (journal.rebuilt_because or "")
    journal.close()


def test_a_full_disk_ends_the_write_and_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, 10)
    program = """
import resource, signal, sys
from pathlib import Path
from morgan.background.ipc.records import TaskRecord, TaskType
from morgan.background.supervisor.journal import Journal
journal = Journal(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for n in range(10, 100_000):
    journal.save_task(TaskRecord(task_id=f"t{n}", task_type=TaskType.WARM, collection="c" * 500, created_at=float(n)))
    journal.commit()
    print(n, flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "sqlite3.OperationalError" in ended.stderr
    last = int(ended.stdout.split()[-1])
    journal = Journal(path)
    assert journal.rebuilt_because is None
    assert [record.task_id for record in journal.open_tasks()][: last + 1] == [f"t{n}" for n in range(last + 1)]
    journal.close()


def test_a_file_that_cannot_be_opened_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.mkdir()  # nothing SQLite can open
    with pytest.raises(sqlite3.OperationalError):
        Journal(path)
    assert path.is_dir()
