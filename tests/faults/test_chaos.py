"""A daemon under load that is harmed at random: the short form of the chaos soak, and what the soak has found.

`python -m bench.chaos` is the long one; docs/soak.md says what is checked, and how it went.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from bench.chaos.__main__ import OTHERS
from bench.chaos.audit import Audit
from bench.chaos.ledger import POINTS, Accepted, Ledger, fault_of
from bench.chaos.plan import BURST, plan
from bench.chaos.victim import MARK, Victim, Wrong
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import TaskRecord, TaskStatus, TaskType
from tests.processes.daemons import NO_MODEL, Daemon

ROOT = Path(__file__).parents[2]
SOAK_S = 170.0
WAIT_S = 30.0
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
OF_A_SERVER = ("qdrant_down", "qdrant_slow")
KILLS = ("--kills", "10", "--supervisors", "5", "--others", "1", "--only", ",".join(OF_A_SERVER), "--seed", "11")
OF_ONE = tuple(fault for fault in OTHERS if fault not in OF_A_SERVER)
FAULTS = ("--kills", "0", "--others", "1", "--only", ",".join(OF_ONE), "--seed", "38")
DONE = {
    "zygote": "fork servers killed",
    "stop_worker": "workers stopped and continued",
    "hang_worker": "workers stopped for good",
    "stop_supervisor": "supervisors stopped and continued",
    "journal_full": "disks filled",
    "journal_io": "I/O errors",
    "clock": "clocks set",
    "fuzz": "fuzzed",
    "flood": "floods",
    "qdrant_down": "Qdrant down",
    "qdrant_slow": "Qdrant slow",
}
"""What a soak counts of each fault."""

Soaks = Mapping[tuple[str, ...], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def soaks() -> Iterator[Soaks]:
    """Both short forms, in processes of their own, at the same time."""
    running = {
        arguments: subprocess.Popen(
            [sys.executable, "-m", "bench.chaos", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for arguments in (KILLS, FAULTS)
    }
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()  # does nothing to one that has ended
            process.communicate()


@pytest.fixture(scope="module")
def killed(soaks: Soaks) -> dict[str, Any]:
    return result(soaks[KILLS])


@pytest.fixture(scope="module")
def harmed(soaks: Soaks) -> dict[str, Any]:
    return result(soaks[FAULTS])


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the summary of a soak once it has ended."""
    out, err = process.communicate(timeout=SOAK_S)
    (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert (process.returncode, found["violations"]) == (0, 0), (found, err)
    return found


@pytest.fixture
def victim() -> Iterator[Victim]:
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir=shm if os.access(shm, os.W_OK) else None))
    one = Victim(folder)
    try:
        yield one
    finally:
        one.close()


def test_ten_killed_workers_and_five_killed_supervisors_lose_nothing_and_leave_nothing(killed: dict[str, Any]) -> None:
    assert killed["faults"]["workers killed"] == 10
    assert killed["faults"]["supervisors killed"] >= 5  # and one while its Qdrant was away
    assert killed["orphans_after_1_s"] == 0
    assert killed["accepted"] == killed["ended"]["completed"] + killed["ended"].get("cancelled", 0) > 20
    assert killed["ended"]["written points"] > 5
    assert killed["texts_embedded"] >= killed["points_to_embed"] == 3 * POINTS


@pytest.mark.parametrize("fault", OTHERS)
def test_no_promise_is_broken_by(fault: str, killed: dict[str, Any], harmed: dict[str, Any]) -> None:
    found = killed if fault in OF_A_SERVER else harmed
    if why := found["not_exercised"].get(fault):
        pytest.skip(why)
    assert found["faults"][DONE[fault]] >= 1
    assert found["ended"]["audits"] >= 1


# --- what the soak has found ------------------------------------------------------------------------------------------


def test_a_task_that_was_to_be_cancelled_when_its_supervisor_died_ends_and_is_one_row_of_the_history() -> None:
    daemon = Daemon(NO_MODEL)
    try:
        daemon.start()
        task_id = daemon.submit("ping", "held", hold_s=600.0)
        worker = daemon.until(lambda report: next((w["pid"] for w in report["workers"] if w["task_id"]), None))
        psutil.Process(worker).suspend()  # so that it never hears of the cancellation
        assert daemon.cancel(task_id) == 1
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        daemon.start()
        assert daemon.task(task_id).status is TaskStatus.CANCELLED
        rows = expect(messages.ExecutionList, daemon.client.request(messages.ListExecutions())).executions
        assert [(one.task_id, one.status) for one in rows] == [(task_id, TaskStatus.CANCELLED)]
    finally:
        daemon.close()


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not here: Debian's package libfaketime has it")
def test_results_are_published_though_the_clock_was_set_back_and_the_owner_is_another_since(victim: Victim) -> None:
    """Changes were numbered by the wall clock: what was computed after them seemed to be from before, for an hour."""
    offset = victim.root / "offset"
    offset.write_text("+0\n")
    victim.start(
        {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    )
    victim.await_ready()
    effects = Audit(victim, Ledger()).effects
    effects.create()
    effects.change(random.Random(1), 1.0)
    offset.write_text("-3600\n")  # results live for 24 hours: to this process they stay valid
    owner = victim.workers()[0]
    os.kill(owner, signal.SIGKILL)
    victim.until(lambda: victim.workers().get(0, owner) != owner or None, "another owner", WAIT_S)
    victim.await_ready()
    assert not victim.client.search("a question", "c0").is_precomputed
    victim.until(lambda: victim.client.search("a question", "c0").is_precomputed or None, "a published result", WAIT_S)


# --- the soak sees what it looks for ----------------------------------------------------------------------------------


def test_the_soak_tells_a_lost_task_and_an_effect_that_was_done_twice(victim: Victim) -> None:
    victim.start()
    victim.await_ready()
    ledger = Ledger()
    audit = Audit(victim, ledger)
    audit.effects.create()
    audit.effects.change(random.Random(1), 1.0)
    ask = messages.Submit(task_type="reindex", collection="c0", is_forced=True, wait_s=60.0)
    ended = expect(messages.TaskReply, victim.client.request(ask, 90.0)).task
    ledger.accept(ended.task_id, TaskType.REINDEX)
    audit.effects.look("c0", is_whole=True)
    audit.whole()
    again = messages.Submit(
        task_type="reindex", collection="c0", params={"force_rebuild": True}, is_forced=True, wait_s=60
    )
    victim.client.request(again, 90.0)
    with pytest.raises(Wrong, match=r"point \('c0', \d+\) was embedded a second time"):
        audit.effects.look("c0")

    ping = messages.Submit(task_type="ping", collection="p", params={"hold_s": 600.0}, is_forced=True)
    task_id = expect(messages.Submitted, victim.client.request(ping)).task_id
    ledger.accept(task_id, TaskType.PING)
    assert victim.kill() < 1.0
    for part in victim.state.glob("journal.sqlite3*"):
        part.unlink()
    victim.start()
    victim.await_ready()
    (one,) = ledger.open()
    with pytest.raises(Wrong, match=f"the acknowledged task {task_id} is lost"):
        audit.see(one)


def test_the_soak_tells_a_process_that_outlives_its_supervisor_and_ends_it(victim: Victim) -> None:
    stray = subprocess.Popen(["sleep", "600"], env={MARK: str(victim.root)})
    with pytest.raises(Wrong, match=r"after the supervisor: .*sleep") as caught:
        victim.see_none_left(time.monotonic())
    assert caught.value.orphans == 1
    assert stray.wait() == -signal.SIGKILL


def test_the_soak_tells_a_wrong_end_from_a_right_one() -> None:
    right = TaskRecord(
        task_id="p", task_type=TaskType.PING, collection="c", status=TaskStatus.COMPLETED, result={"token": "a"}
    )
    ping = Accepted("p", TaskType.PING, "a")
    failed = msgspec.structs.replace(right, status=TaskStatus.FAILED)
    cancelled = msgspec.structs.replace(right, status=TaskStatus.CANCELLED)
    assert fault_of(ping, right) == fault_of(ping, msgspec.structs.replace(right, status=TaskStatus.RUNNING)) == ""
    assert "not completed" in fault_of(ping, failed)
    assert "not completed" in fault_of(ping, cancelled)
    assert fault_of(Accepted("p", TaskType.PING, "a", may_be_cancelled=True), cancelled) == ""
    assert "gave back 'a', not 'b'" in fault_of(Accepted("p", TaskType.PING, "b"), right)
    ping.ended = right
    assert fault_of(ping, right) == ""
    assert "taken back" in fault_of(ping, msgspec.structs.replace(right, status=TaskStatus.PENDING))
    counts = {"documents_processed": POINTS, "documents_embedded": POINTS - 1, "documents_unchanged": 0}
    short = msgspec.structs.replace(right, task_type=TaskType.REINDEX, result=counts)
    assert "did not see each" in fault_of(Accepted("p", TaskType.REINDEX), short)


def test_a_seed_names_one_plan_with_all_that_was_asked_for() -> None:
    counts = {"worker": 200, "supervisor": 100, "fuzz": 3}
    actions = plan(5, counts)
    assert actions == plan(5, counts)
    assert [one.fault for one in actions] != [one.fault for one in plan(6, counts)]
    assert {fault: sum(one.fault == fault for one in actions) for fault in counts} == counts
    words = " ".join(one.fault for one in actions)
    assert " ".join(["worker"] * BURST) in words
