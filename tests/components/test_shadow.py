"""Re-indexing by a new version beside the one in use: real engine, real owner's service, applications writing meanwhile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from bench.fake_embedder import FakeEmbedder, FakeReranker
from morgan.background.ipc import calls, wire
from morgan.background.ipc.errors import InvalidArgument, StoreUnavailable, SwapImpossible, VectorSizeMismatch
from morgan.background.ipc.messages import Failure
from morgan.background.ipc.records import Point, PointId, QueryJob, TaskType
from morgan.background.ipc.settings import GateSettings, ModelSettings, WorkerSettings
from morgan.background.workers.desk import Desk
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.owner import OwnerService
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.serving import KNOWN_S, Serving
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.vectors import Vectors
from morgan.background.workers.versions import kept_versions
from morgan.background.workers.watches import Touched

SMALL = WorkerSettings(
    model=ModelSettings(name="new"), scroll_size=8, gate=GateSettings(queries=10, latency_floor_ms=1000.0)
)
TEXTS = {number: f"document {number} on topic {number % 7}" for number in range(40)}


class ServiceGate:
    """The write gate of an owner's service in this process: what OwnersGate asks over a socket."""

    sees_every_write = True

    def __init__(self, service: OwnerService) -> None:
        self._service = service

    def _ask(self, call: calls.Call) -> Any:
        answer = self._service.answer(call)
        assert not isinstance(answer, Failure), answer
        return answer

    def watch(self, collection: str) -> tuple[int, int]:
        answer = self._ask(calls.Watch(collection=collection))
        return answer.token, answer.seq

    def touched(self, token: int, seq: int) -> Touched | None:
        answer = self._ask(calls.TouchedSince(token=token, seq=seq))
        return Touched(answer.ids, answer.seq, is_whole=answer.is_whole, left=answer.left) if answer.is_known else None

    def hold(self, token: int, for_s: float) -> None:
        self._ask(calls.Hold(token=token, for_s=for_s))

    def slow(self, token: int, for_s: float, points_per_s: float) -> None:
        self._ask(calls.Slow(token=token, for_s=for_s, points_per_s=points_per_s))

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        call = calls.Swap(old=old, new=new, kept_as=kept_as, rename_to=rename_to, token=token, seq=seq)
        return bool(self._ask(call).count)


class House:
    """An embedded store with its owner's service, "docs" made by the model "old", and the tools of a task for "new"."""

    def __init__(self, path: Path, name: str = "docs") -> None:
        self.store = EdgeStore(path)
        self.old, self.new = FakeEmbedder("old", 16), FakeEmbedder("new", 24)
        self.changes: list[Any] = []
        self.ticks = itertools.count(step=KNOWN_S)  # every look at a collection's model is a fresh one
        old_settings = replace_model(SMALL, "old")
        writer = OwnerService(self.store, self.old, FakeReranker(), old_settings, lambda _: None, lambda _: None)
        self.store.create(name, 16)
        answer = writer.answer(calls.Upsert(collection=name, points=points_of(TEXTS)))
        assert isinstance(answer, calls.Changed), answer
        load = {"old": self.old}.__getitem__
        self.owner = OwnerService(
            *(self.store, self.new, FakeReranker(), SMALL, lambda _: None, self.changes.append), load=load
        )
        models = Serving(self.store, self.new, load, clock=lambda: next(self.ticks))
        self.tools = Tools(
            *(self.store, self.new, FakeReranker(), SMALL, lambda: 1_800_000_000.0, lambda: None),
            gate=ServiceGate(self.owner),
            models=models,
        )

    def ask(self, call: calls.Call) -> Any:
        return self.owner.answer(call)

    def write(self, texts: dict[int, str]) -> None:
        """Write as an application does that leaves embedding to the owner."""
        answer = self.ask(calls.Upsert(collection="docs", points=points_of(texts)))
        assert isinstance(answer, calls.Changed), answer

    def run(self, on_step: Callable[[Step], Verdict] = lambda _: Verdict.GO_ON, **params: Any) -> dict[str, Any]:
        ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", params), self.tools), on_step)
        assert isinstance(ended, Outcome)
        return ended.result

    def points(self, name: str = "docs") -> dict[PointId, Point]:
        return {point.id: point for point in self.store.scroll(name, limit=10_000, with_vectors=True)[0]}

    def check(self, texts: dict[int, str]) -> None:
        """Every live point has the vector of its current text by the new model; nothing else is there."""
        held = self.points()
        assert {number: point.payload["text"] for number, point in held.items()} == texts
        for number, text in texts.items():
            vector = np.frombuffer(held[number].vector or b"", "<f4")
            assert vector @ self.new.embed([text])[0] == pytest.approx(1.0, abs=1e-5)


def replace_model(settings: WorkerSettings, name: str) -> WorkerSettings:
    return WorkerSettings(model=ModelSettings(name=name), scroll_size=settings.scroll_size, gate=settings.gate)


def points_of(texts: dict[int, str]) -> tuple[Point, ...]:
    return tuple(Point(id=number, payload={"text": text}) for number, text in texts.items())


def vectors_of(texts: dict[int, str], embedder: FakeEmbedder) -> tuple[Point, ...]:
    vectors = embedder.embed(list(texts.values()))
    rows = zip(texts.items(), vectors, strict=True)
    return tuple(Point(id=n, payload={"text": text}, vector=vector.tobytes()) for (n, text), vector in rows)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.store.close()


def test_a_new_model_gets_a_version_of_its_own_and_the_old_one_is_kept(house: House) -> None:
    result = house.run()
    assert (result["success"], result["swapped"], result["how"]) == (True, True, "shadow")
    assert result["documents_embedded"] == len(TEXTS)
    house.check(TEXTS)
    served = house.store.info("docs")
    assert served.vector_size == 24
    (kept,) = kept_versions(house.store.collections())
    assert (kept.base, kept.until_at) == ("docs", 1_800_000_000.0 + SMALL.retention_s)
    assert house.store.info(kept.alias).vector_size == 16
    assert "no worse" in result["gate"]
    assert result["gate_figures"]["queries"] == 10


def test_what_is_written_and_deleted_meanwhile_is_in_the_new_version(house: House) -> None:
    texts, steps = dict(TEXTS), 0

    def on_step(_: Step) -> Verdict:
        nonlocal steps
        if house.store.info("docs").vector_size == 16:
            steps += 1
            changed = {steps: f"changed in step {steps}", 1000 + steps: f"new in step {steps}"}
            house.write(changed)
            texts.update(changed)
            gone = 39 - steps
            house.ask(calls.Delete(collection="docs", ids=(gone,)))
            texts.pop(gone, None)
        return Verdict.GO_ON

    result = house.run(on_step)
    assert result["swapped"]
    assert steps > 5
    house.check(texts)


def test_at_every_step_searches_find_one_whole_version(house: House) -> None:
    sizes: list[tuple[int, int]] = []

    def on_step(_: Step) -> Verdict:
        info = house.store.info("docs")
        sizes.append((info.vector_size, info.points))
        answer = house.ask(
            calls.SearchVectors(
                collection="docs", vectors=house.tools.searching("docs").embed(["document 1"]).tobytes(), count=1
            )
        )
        assert len(answer.hits[0]) == 10
        return Verdict.GO_ON

    house.run(on_step)
    assert set(sizes) == {(16, 40), (24, 40)}
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("at", range(1, 40))
def test_stopped_after_any_step_it_goes_on_there(house: House, at: int) -> None:
    seen: list[Step] = []

    def stop(step: Step) -> Verdict:
        seen.append(step)
        return Verdict.PAUSE if len(seen) == at else Verdict.GO_ON

    ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", {}), house.tools), stop)
    if isinstance(ended, Outcome):
        return
    checkpoint = next((step.checkpoint for step in reversed(seen) if step.checkpoint), None)
    house.write({3: "written while it was stopped"})
    embedded_before = house.new.texts
    job = Job("t", TaskType.REINDEX, "docs", {}, checkpoint=checkpoint)
    ended = drive(reindex(job, house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert ended.result["success"]
    assert house.new.texts - embedded_before <= len(TEXTS) + 40  # queries of the gate, and what is left
    if house.store.info("docs").vector_size == 24 and ended.result.get("swapped"):
        (kept,) = kept_versions(house.store.collections())
        assert house.store.info(kept.alias).vector_size == 16


def test_a_collection_without_an_alias_is_renamed_with_the_swap(house: House) -> None:
    house.run()
    names = {info.name: info.aliases for info in house.store.collections()}
    assert names["docs__v2"] == ("docs",)
    assert all(alias.startswith("docs__kept_until_") for alias in names.pop("docs__v1"))
    assert len(names) == 1


def test_after_a_further_rebuild_one_way_back_is_kept(house: House) -> None:
    house.run()
    second = house.run(force_rebuild=True)
    assert second["swapped"]
    (kept,) = kept_versions(house.store.collections())
    assert kept.collection == "docs__v2"
    assert {info.name for info in house.store.collections()} == {"docs__v2", "docs__v3"}
    house.check(TEXTS)


def test_roll_back_restores_the_exact_answers(house: House) -> None:
    vectors = house.old.embed(["document 1 on topic 1", "topic 5"])
    before = house.store.search("docs", vectors, limit=10)
    house.run()
    done = house.ask(calls.RollBack(collection="docs"))
    assert isinstance(done, calls.RolledBack), done
    assert house.store.search("docs", vectors, limit=10) == before
    assert house.store.info(done.kept_as).vector_size == 24
    forward = house.ask(calls.RollBack(collection="docs"))  # and forward again
    assert isinstance(forward, calls.RolledBack)
    assert house.store.info("docs").vector_size == 24
    assert len(kept_versions(house.store.collections())) == 1


class ShallowStore(EdgeStore):
    """A fake graph: the engine builds none of less than 10 MB of vectors. Searches miss the last two of ten below a depth."""

    enough = 256

    def search(self, name: str, vectors: Vectors, *, limit: int = 10, exact: bool = False, **options: Any) -> Any:
        found = super().search(name, vectors, limit=limit, exact=exact, **options)
        is_shallow = "__v" in name and self.index_info(name).settings.ef < self.enough
        return [hits[:-2] for hits in found] if is_shallow and not exact else found


def test_a_graph_that_finds_too_little_is_searched_deeper_until_it_finds_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.components.test_shadow.EdgeStore", ShallowStore)
    house = House(tmp_path)
    result = house.run()
    assert result["swapped"]
    assert "look at 256 candidates" in result["gate"]
    assert house.store.index_info("docs").settings.ef == 256
    house.check(TEXTS)
    house.store.close()


def test_one_that_never_finds_enough_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.components.test_shadow.EdgeStore", ShallowStore)
    monkeypatch.setattr(ShallowStore, "enough", 1000)
    house = House(tmp_path)
    before = house.points()
    result = house.run()
    assert not result["swapped"]
    assert "recall@10" in result["gate"]
    assert "look at 512 candidates" in result["gate"]
    assert house.points() == before
    house.store.close()


def test_roll_back_is_refused_where_documents_were_written_since_unless_forced(house: House) -> None:
    house.run()
    house.ask(calls.Upsert(collection="docs", points=(Point(id=77, payload={"text": "since the swap"}),)))
    refused = house.ask(calls.RollBack(collection="docs"))
    assert isinstance(refused, Failure)
    assert "1 documents" in refused.message
    assert "77" in refused.message
    assert "--force" in refused.message
    assert house.store.info("docs").vector_size == 24
    assert isinstance(house.ask(calls.RollBack(collection="docs", is_forced=True)), calls.RolledBack)


def test_roll_back_without_a_kept_version_says_so(house: House) -> None:
    refused = house.ask(calls.RollBack(collection="docs"))
    assert isinstance(refused, Failure)
    assert "no earlier version" in refused.message


def test_a_deliberately_worse_model_is_refused_and_the_old_index_is_untouched(house: House) -> None:
    judged = tuple(QueryJob(text=text, judgments={str(number): 1.0}) for number, text in TEXTS.items())
    house.new.is_blind = True  # every text gets one of two vectors
    before = house.points()
    ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", {}, judged), house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["success"], ended.result["swapped"]) == (False, False)
    assert "nDCG@10 fell" in ended.result["error_message"]
    assert ended.after_score is not None
    assert ended.before_score is not None
    assert ended.after_score < ended.before_score
    assert house.points() == before
    assert [info.name for info in house.store.collections()] == ["docs"]


def test_a_model_that_cannot_be_loaded_any_more_is_not_replaced_unseen(house: House) -> None:
    tools = replace(house.tools, models=None)
    ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", {}), tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert not ended.result["success"]
    assert "cannot be loaded" in ended.result["error_message"]
    ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", {"without_gate": True}), tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert ended.result["swapped"]


def test_what_an_earlier_attempt_left_is_cleared_away(house: House) -> None:
    count = 0

    def stop(_: Step) -> Verdict:
        nonlocal count
        count += 1
        return Verdict.CANCEL if count == 6 else Verdict.GO_ON

    assert drive(reindex(Job("t", TaskType.REINDEX, "docs", {}), house.tools), stop) is Verdict.CANCEL
    assert len(house.store.collections()) == 2
    house.run()
    house.check(TEXTS)
    assert len(house.store.collections()) == 2  # the served one and the kept one


def test_points_without_text_are_kept_and_counted(house: House) -> None:
    bare = Point(id=500, payload={"title": "no text"}, vector=np.ones(16, "<f4").tobytes())
    house.ask(calls.Upsert(collection="docs", points=(bare,)))
    result = house.run()
    assert result["documents_without_text"] == 1
    assert house.points()[500].payload == {"title": "no text"}


def test_vectors_of_the_configured_model_without_stamps_are_adopted_and_not_embedded(house: House) -> None:
    house.store.create("foreign", 24)
    house.store.upsert("foreign", list(vectors_of(TEXTS, house.new)))
    job = Job("t", TaskType.REINDEX, "foreign", {})
    ended = drive(reindex(job, house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["documents_adopted"], ended.result["documents_embedded"]) == (40, 0)
    before = house.new.texts
    again = drive(reindex(job, house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(again, Outcome)
    assert again.result["documents_unchanged"] == 40
    assert house.new.texts == before


def test_vectors_of_an_unknown_model_are_not_replaced_unasked(house: House) -> None:
    house.store.create("foreign", 24)
    house.store.upsert("foreign", list(vectors_of(TEXTS, FakeEmbedder("stranger", 24))))
    with pytest.raises(VectorSizeMismatch, match="force_rebuild"):
        drive(reindex(Job("t", TaskType.REINDEX, "foreign", {}), house.tools), lambda _: Verdict.GO_ON)
    with pytest.raises(InvalidArgument, match="without_gate"):
        drive(
            reindex(Job("t", TaskType.REINDEX, "foreign", {"force_rebuild": True}), house.tools),
            lambda _: Verdict.GO_ON,
        )


def test_to_drop_a_name_that_a_swap_made_an_alias_drops_every_version(house: House) -> None:
    house.run()
    assert house.ask(calls.Drop(collection="docs")) == calls.Changed(count=1)
    assert house.store.collections() == []


def test_one_vector_for_all_points_stands_in_for_those_to_be_made(house: House) -> None:
    house.store.create("foreign", 24)
    flat = np.ones(24, "<f4").tobytes()
    house.store.upsert("foreign", [Point(id=n, payload={"text": text}, vector=flat) for n, text in TEXTS.items()])
    ended = drive(reindex(Job("t", TaskType.REINDEX, "foreign", {}), house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["how"], ended.result["documents_embedded"]) == ("in_place", 40)


def test_a_first_run_cut_off_between_vectors_and_their_stamps_is_gone_on_with(house: House) -> None:
    """On a server the two are two requests: a crash between them leaves vectors of no known maker beside the stand-in."""
    house.store.create("foreign", 24)
    flat = np.ones(24, "<f4").tobytes()
    made = vectors_of({n: text for n, text in TEXTS.items() if n < 12}, house.new)
    left = tuple(Point(id=n, payload={"text": text}, vector=flat) for n, text in TEXTS.items() if n >= 12)
    house.store.upsert("foreign", list(made + left))
    ended = drive(reindex(Job("t", TaskType.REINDEX, "foreign", {}), house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["how"], ended.result["documents_embedded"]) == ("in_place", 40)


def test_vectors_of_another_field_by_the_same_model_are_replaced_in_place(house: House) -> None:
    house.store.create("titles", 24)
    titled = vectors_of({number: f"title {number}" for number in TEXTS}, house.new)
    house.store.upsert(
        "titles",
        [
            Point(id=one.id, payload={"title": one.payload["text"], "text": TEXTS[int(one.id)]}, vector=one.vector)
            for one in titled
        ],
    )
    ended = drive(reindex(Job("t", TaskType.REINDEX, "titles", {}), house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["how"], ended.result["documents_embedded"]) == ("in_place", 40)


def test_versions_whose_time_is_over_are_dropped(house: House) -> None:
    house.run()
    house.owner.drop_expired(1_800_000_000.0 + SMALL.retention_s - 1)
    assert len(house.store.collections()) == 2
    house.owner.drop_expired(1_800_000_000.0 + SMALL.retention_s + 1)
    assert [info.vector_size for info in house.store.collections()] == [24]
    house.check(TEXTS)


def test_a_name_that_cannot_be_swapped_is_refused_with_what_can_be_done(house: House) -> None:
    class Unrenaming(EdgeStore):
        can_rename = False

    house.store.__class__ = Unrenaming
    with pytest.raises(SwapImpossible, match="adopt-alias docs"):
        house.run()


# --- writes that do not pause -----------------------------------------------------------------------------------------


class BusyGate(ServiceGate):
    """An application writes before each swap, unless writes are held; where `is_deaf`, also then."""

    def __init__(self, house: House, *, is_deaf: bool = False) -> None:
        super().__init__(house.owner)
        self.house, self.is_deaf, self.is_busy = house, is_deaf, True
        self.is_holding = False
        self.holds = 0
        self.texts = dict(TEXTS)

    def hold(self, token: int, for_s: float) -> None:
        super().hold(token, for_s)
        self.is_holding = for_s > 0
        self.holds += self.is_holding

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str, token: int, seq: int) -> bool:
        if self.is_busy and (self.is_deaf or not self.is_holding):
            fresh = {7: f"written at change {seq}"}
            self.house.write(fresh)
            self.texts |= fresh
        return super().swap(old, new, kept_as=kept_as, rename_to=rename_to, token=token, seq=seq)


def test_where_a_write_comes_between_every_time_writes_are_held_for_the_last_round(house: House) -> None:
    gate = BusyGate(house)
    house.tools = replace(house.tools, gate=gate)
    result = house.run()
    assert result["swapped"]
    assert gate.holds == 1
    assert result["writes_held_ms"] > 0
    house.check(gate.texts)


def test_what_cannot_be_caught_up_with_is_given_up_with_a_reason_and_goes_on_later(house: House) -> None:
    gate = BusyGate(house, is_deaf=True)
    house.tools = replace(house.tools, gate=gate)
    checkpoints: list[Any] = []

    def on_step(step: Step) -> Verdict:
        checkpoints.append(step.checkpoint)
        return Verdict.GO_ON

    with pytest.raises(StoreUnavailable, match=r"held 8 times .*: \d+/s.* against \d+/s"):
        house.run(on_step)
    assert house.store.info("docs").vector_size == 16
    assert {number: point.payload["text"] for number, point in house.points().items()} == gate.texts
    assert house.owner.held(0.0) == house.owner.slowed(0.0) == frozenset()
    gate.is_busy = False
    embedded_before = house.new.texts
    job = Job("t", TaskType.REINDEX, "docs", {}, checkpoint=checkpoints[-1])
    ended = drive(reindex(job, house.tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert ended.result["swapped"]
    assert house.new.texts - embedded_before < len(TEXTS)
    house.check(gate.texts)


class Applications:
    """Callers of the owner's service over a real socket, served by a real Desk as the owner's loop serves it."""

    def __init__(self, house: House) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router, self.dealer = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        self.router.bind("inproc://owner")
        self.dealer.connect("inproc://owner")
        self.house, self.desk = house, Desk(self.router, house.owner)
        self.token = house.ask(calls.Watch(collection="docs")).token

    def send(self, rid: int, text: str) -> None:
        call = calls.Upsert(rid=rid, collection="docs", points=(Point(id=7, payload={"text": text}),))
        self.dealer.send(wire.encode(call))

    def serve(self, answers: int) -> list[int]:
        """Serve until so many calls are answered; return whose."""
        found: list[int] = []
        while len(found) < answers:
            due_at = self.desk.next_deadline
            wait_s = 10.0 if due_at is None else max(due_at - time.monotonic(), 0.0)
            assert self.router.poll(int(wait_s * 1000) + 1) or due_at is not None, "nothing comes any more"
            self.desk.serve_ready()
            self.desk.seen(self.house.owner.seq)
            while self.dealer.poll(0):
                found.append(wire.rid_of(self.dealer.recv()))
        return found

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def applications(house: House) -> Iterator[Applications]:
    applications = Applications(house)
    yield applications
    applications.close()


def test_slowed_writes_take_turns_in_their_order(house: House, applications: Applications) -> None:
    house.ask(calls.Slow(token=applications.token, for_s=10.0, points_per_s=1.0))
    for rid in (1, 2, 3):
        applications.send(rid, f"written {rid}")
    assert applications.serve(1) == [1]
    assert applications.desk.next_deadline is not None
    assert applications.serve(2) == [2, 3]
    assert house.points()[7].payload["text"] == "written 3"
    assert applications.desk.next_deadline is None


def test_writes_that_waited_for_their_turn_go_before_those_that_come_after_the_slowing(
    house: House, applications: Applications
) -> None:
    house.ask(calls.Slow(token=applications.token, for_s=10.0, points_per_s=1.0))
    applications.send(1, "written 1")
    applications.send(2, "written 2")
    assert applications.serve(1) == [1]
    house.ask(calls.Slow(token=applications.token, for_s=0.0, points_per_s=0.0))
    applications.send(3, "written 3")
    assert applications.serve(2) == [2, 3]
    assert house.points()[7].payload["text"] == "written 3"


def test_held_writes_wait_until_they_are_let_go(house: House, applications: Applications) -> None:
    house.ask(calls.Hold(token=applications.token, for_s=2.0))
    applications.send(1, "written while held")
    assert applications.router.poll(10_000)
    applications.desk.serve_ready()
    assert house.points()[7].payload["text"] == TEXTS[7]
    house.ask(calls.Hold(token=applications.token, for_s=0.0))
    assert applications.serve(1) == [1]
    assert house.points()[7].payload["text"] == "written while held"
