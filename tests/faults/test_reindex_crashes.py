"""A re-index killed at every named point, while an application writes and deletes: real processes, a real store, SIGKILL.

Afterwards every live point has the vector of its current text, nothing deleted is back, nothing acknowledged is lost, and
no search ever saw an empty or half-built collection.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from bench import reindex_house
from bench.fake_embedder import FakeEmbedder
from morgan.background.ipc.errors import MorganError, StoreUnavailable
from morgan.background.ipc.records import Point
from morgan.background.workers.remote import RemoteStore

# processes of their own, forked from one that has imported everything: each import takes longer than what is tried
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bench.reindex_house"])
POINTS = 150
POINTS_OF_CRASH = (
    "created",
    "named",
    "copied",
    "indexed",
    "copied again",
    "caught up",
    "judged",
    "swapped",
    "settled",
)


class House:
    """An owner process, task processes beside it, and an application in this one that writes without a pause."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.folder, self.socket = folder, socket
        self.owner = self.start_owner("old")
        self.store = RemoteStore(socket, 3.0)
        self.texts = {number: f"document {number} of topic {number % 9}" for number in range(POINTS)}
        self.unsure: set[int] = set()  # written or deleted without an answer: either state is right
        self.problems: list[str] = []
        self.store.create("docs", 16)
        self._upsert(self.texts)

    def start_owner(self, model: str) -> BaseProcess:
        process = PROCESSES.Process(target=reindex_house.own, args=(self.folder, self.socket, model))
        process.start()
        return process

    def restart_owner(self, model: str) -> None:
        self.end_owner()
        self.owner = self.start_owner(model)

    def end_owner(self) -> None:
        self.owner.kill()
        self.owner.join()

    def task(self, *crash: str) -> int | None:
        """Run the task; return its exit code, of a signal with a minus. Its result is in a file."""
        process = PROCESSES.Process(target=_task, args=(self.folder, self.socket, *crash))
        process.start()
        process.join(120)
        return process.exitcode

    def _upsert(self, texts: dict[int, str]) -> None:
        self.store.upsert("docs", [Point(id=number, payload={"text": text}) for number, text in texts.items()])

    def write(self, stop: threading.Event, until: int) -> None:
        """Be the application: change, add, delete, and search, as fast as answers come. Until told to stop."""
        rng = np.random.default_rng(5)
        turn = 0
        while not stop.is_set() and turn < until:
            turn += 1
            number = int(rng.integers(0, 2 * POINTS))
            is_delete = rng.random() < 0.3
            text = f"turn {turn} of document {number}"
            try:
                if is_delete:
                    self.store.delete("docs", [number])
                    self.texts.pop(number, None)
                else:
                    self._upsert({number: text})
                    self.texts[number] = text
                self.unsure.discard(number)
                if turn % 5 == 0 and (seen := self.store.info("docs").points) < POINTS // 3:
                    self.problems.append(f"a collection of {seen} points was seen")
            except StoreUnavailable:
                self.unsure.add(number)
            except MorganError as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def check(self) -> None:
        held = {point.id: point for point in self.store.scroll("docs", limit=1000, with_vectors=True)[0]}
        embedder = FakeEmbedder("new", 24)
        assert self.problems == []
        for number, point in held.items():
            (wanted,) = embedder.embed([point.payload["text"]])
            assert np.frombuffer(point.vector or b"", "<f4") @ wanted == pytest.approx(1.0, abs=1e-5)
            if number not in self.unsure:
                assert point.payload["text"] == self.texts.get(int(number)), (
                    "a deleted point is back, or a write is lost"
                )
        missing = set(self.texts) - set(held) - self.unsure
        assert not missing, "acknowledged writes are lost"

    def close(self) -> None:
        self.store.close()
        self.end_owner()


def _task(folder: Path, socket: Path, *crash: str) -> None:
    result = reindex_house.run_task(folder, socket, "new", *crash)
    (folder / "result").write_text(json.dumps(result))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    sockets = Path(tempfile.mkdtemp(prefix="morgan-"))  # a socket's path holds 107 bytes
    house = House(tmp_path, sockets / "owner")
    yield house
    house.close()
    shutil.rmtree(sockets)


@pytest.mark.parametrize("victim", ["task", "owner"])
@pytest.mark.parametrize("point", POINTS_OF_CRASH)
def test_killed_at_any_point_it_loses_nothing_and_ends_with_the_new_version(
    house: House, point: str, victim: str
) -> None:
    house.restart_owner("new")
    stop = threading.Event()
    application = threading.Thread(target=house.write, args=(stop, 20_000))
    application.start()
    try:
        first = house.task(point, *(["owner"] if victim == "owner" else []))
        if victim == "task":
            assert first == -signal.SIGKILL
        else:
            house.owner.join()
            house.restart_owner("new")
        assert (house.folder / "crashed").read_text() == point
        assert house.task() == 0
    finally:
        stop.set()
        application.join()
    result = json.loads((house.folder / "result").read_text())
    assert result["success"], result
    assert house.store.info("docs").vector_size == 24
    house.check()
