"""Remote mode over real HTTP: QdrantStore and the tasks on it, against a server whose calls are struck by faults.

The server is the fake of bench/fake_qdrant; where QDRANT_URL names a real one, the same runs once more against that, with the
faults in front of it (README, "With your own Qdrant"). After each fault: every live point has the vector of its current text,
nothing deleted is back, nothing written is lost, and no reader saw an empty or half-built collection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from bench.fake_qdrant.faults import ALWAYS, Fault, Kind, take
from bench.fake_qdrant.running import FakeQdrant, running
from morgan.background.ipc.errors import CollectionNotFound, InvalidArgument, StoreUnavailable
from morgan.background.ipc.records import IndexSettings, Point, PointId, QueryJob
from morgan.background.workers.adopting import adopt_alias
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.rollback import roll_back
from morgan.background.workers.task import Step
from morgan.background.workers.vectors import COPIED_KEY, STAMP_KEY, Rewrite
from morgan.background.workers.versions import kept_alias, kept_versions
from tests.components.qdrant_servers import QDRANT_API_KEY, QDRANT_URL, client_at
from tests.components.remote_site import HASTY_S, NEW, NOW, OLD, PATIENT_S, TEXTS, Site

MakeSite = Callable[..., Site]

AT_ONCE = (Kind.STATUS, Kind.FAILED, Kind.CUT, Kind.LOST, Kind.TORN)
HELD = (Kind.LATE, Kind.SLOW)  # until the client has left
KINDS = (*AT_ONCE, *HELD)
IN_TURN = (*AT_ONCE, Kind.LATE)  # where each of many calls fails: a slow one is a lost one that costs time


def but(reason: str, params: Iterable[Any], *failing: Any) -> list[Any]:
    """Return parameters, those marked that the service does not get right yet."""
    mark = pytest.mark.xfail(strict=True, reason=reason)
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=mark if one in failing else ())
        for one in params
    ]


READS = {
    "names": ("GET", "/collections"),
    "aliases": ("GET", "/aliases"),
    "exists": ("GET", "/collections/*/exists"),
    "described": ("GET", "/collections/*__v?"),
    "scrolled": ("POST", "*/points/scroll"),
    "retrieved": ("POST", "*/points"),
}
CREATE = ("PUT", "/collections/*__v?")
ALIASES = ("POST", "/collections/aliases")
UPSERT = ("PUT", "*/points")
DELETE = ("POST", "*/points/delete")
DROP = ("DELETE", "*")
VECTORS = ("PUT", "*/points/vectors")
BATCH = ("POST", "*/points/batch")
QUERY = ("POST", "*/points/query/batch")


@pytest.fixture(scope="module", params=["fake", *(["server"] if QDRANT_URL else [])])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeQdrant]:
    with running(*(("--forward", QDRANT_URL) if request.param == "server" else ())) as server:
        yield server


@pytest.fixture(scope="module")
def application(fake: FakeQdrant) -> Iterator[QdrantClient]:
    found = client_at(fake.plain_url, api_key=QDRANT_API_KEY)
    yield found
    found.close()


@pytest.fixture(scope="module")
def struck(fake: FakeQdrant) -> Iterator[dict[bool, QdrantClient]]:
    """The service's clients: one that waits, and, for faults in which calls are held, one that does not wait long."""
    found = {
        is_hasty: client_at(fake.url, timeout_s=HASTY_S if is_hasty else PATIENT_S, api_key=QDRANT_API_KEY)
        for is_hasty in (False, True)
    }
    yield found
    for client in found.values():
        client.close()


@pytest.fixture
def make_site(fake: FakeQdrant, application: QdrantClient, struck: dict[bool, QdrantClient]) -> Iterator[MakeSite]:
    made: list[Site] = []

    def make(kind: Kind | None = None) -> Site:
        """Return a site for faults of a kind; None: of none that is held."""
        made.append(Site(fake, application, struck[kind in HELD]))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def fault(kind: Kind, call: tuple[str, str], **fields: Any) -> Fault:
    return Fault(kind, *call, **fields)


def rewrite_of(number: PointId, text: str, vector: Any = None) -> Rewrite:
    made = NEW.embed([text])[0] if vector is None else vector
    return Rewrite(number, made, "text", fingerprint(text), {"fp": fingerprint(text), "model": "new", "rev": "fake"})


def vector_of(site: Site, number: PointId) -> Any:
    (point,) = site.direct.fetch(site.name, [number], with_vectors=True)
    return np.frombuffer(point.vector or b"", "<f4")


# --- the store --------------------------------------------------------------------------------------------------------


def test_collections_and_aliases_are_made_described_and_dropped(site: Site) -> None:
    store, real = site.store, f"{site.name}__v1"
    made = store.create(real, 5, distance="dot", vector_name="dense")
    assert (made.name, made.points, made.vector_size, made.distance, made.vector_name) == (real, 0, 5, "dot", "dense")
    store.set_alias(site.name, real)
    assert store.info(site.name).aliases == (site.name,)
    for taken in (real, site.name):
        with pytest.raises(InvalidArgument, match="exists already"):
            store.create(taken, 5)
    with pytest.raises(InvalidArgument, match="is an alias"):
        store.drop(site.name)
    store.drop(real)
    with pytest.raises(CollectionNotFound):
        store.info(site.name)
    assert store.collections() == []


def test_pages_points_and_searches_are_those_of_what_was_written(site: Site) -> None:
    site.fill(NEW)
    extra = {"n": 7, "even": True, "kind": "a"}
    site.store.upsert(site.name, [Point(100, {"text": "alone", **extra}, NEW.embed(["alone"])[0].tobytes())])
    pages, after = [], None
    while True:
        page, after = site.store.scroll(site.name, after=after, limit=5)
        pages.append([point.id for point in page])
        if after is None:
            break
    assert sorted(one for page in pages for one in page) == [*range(12), 100]
    assert [len(page) for page in pages] == [5, 5, 3]
    assert {point.id for point in site.store.fetch(site.name, [3, 100, 999])} == {3, 100}
    queries = NEW.embed([TEXTS[3], "alone"])
    for exact in (False, True):
        first, second = site.store.search(site.name, queries, limit=2, exact=exact, ef=32)
        assert (first[0].id, second[0].id, len(first)) == (3, 100, 2)
        assert first[0].score == pytest.approx(1.0, abs=1e-5)
    for wanted, found in (
        ({"kind": "a"}, {100}),
        ({"n": 7, "even": True}, {100}),
        ({"even": False}, set()),
        ({"kind": ["a", "b"]}, {100}),
        ({"text": [TEXTS[1], TEXTS[2]]}, {1, 2}),
    ):
        (hits,) = site.store.search(site.name, queries[:1], query_filter=wanted)
        assert {hit.id for hit in hits} == found
    site.store.delete(site.name, [100, 999])
    assert site.store.info(site.name).points == 12


def test_a_version_like_another_has_its_indexes_graph_and_vectors(site: Site) -> None:
    first, second = f"{site.name}__v1", f"{site.name}__v2"
    params = {"dense": models.VectorParams(size=16, distance=models.Distance.COSINE)}
    sparse = {"words": models.SparseVectorParams()}
    site.application.create_collection(first, params, sparse_vectors_config=sparse)
    done = site.store.configure_index(first, IndexSettings(m=8, ef_construct=50, ef=64), {"kind": "keyword"})
    assert len(done) == 3
    vectors = {"dense": [1.0] * 16, "words": models.SparseVector(indices=[3], values=[0.5])}
    site.application.upsert(first, [models.PointStruct(id=1, vector=vectors, payload={"text": "one"})], wait=True)
    site.store.create(second, 24, distance="cosine", vector_name="dense", like=first)
    made = site.store.index_info(second)
    assert (made.settings.m, made.settings.ef_construct, made.payload) == (8, 50, {"kind": "keyword"})
    assert site.store.transfer(first, second, [rewrite_of(1, "one")]) == 1
    (copy,) = site.application.retrieve(second, [1], with_vectors=True)
    assert copy.vector["words"] == vectors["words"]
    assert np.array(copy.vector["dense"]) @ NEW.embed(["one"])[0] == pytest.approx(1.0, abs=1e-5)


def test_a_rewrite_changes_what_has_its_text_and_nothing_else(site: Site) -> None:
    site.fill(NEW)
    site.write({2: "changed since"})
    rewrites = [rewrite_of(1, TEXTS[1], NEW.embed(["other"])[0]), rewrite_of(2, TEXTS[2]), rewrite_of(99, "gone")]
    assert site.store.rewrite(site.name, rewrites) == 1
    assert vector_of(site, 1) @ NEW.embed(["other"])[0] == pytest.approx(1.0, abs=1e-5)
    assert vector_of(site, 2) @ NEW.embed(["changed since"])[0] == pytest.approx(1.0, abs=1e-5)
    assert site.direct.fetch(site.name, [99]) == []


@pytest.mark.parametrize("call", [VECTORS, BATCH], ids=["before the vectors", "before the stamps"])
def test_what_an_application_writes_in_the_middle_of_a_rewrite_wins(site: Site, call: tuple[str, str]) -> None:
    site.fill(NEW)
    during(site, call, partial(site.write, {1: "written meanwhile"}), [1, 2])
    site.check()
    (point,) = site.direct.fetch(site.name, [1])
    assert point.payload[STAMP_KEY]["fp"] == fingerprint("written meanwhile")


@pytest.mark.xfail(
    strict=True, reason="a server refuses the whole update of vectors for a point that was deleted meanwhile"
)
def test_a_point_deleted_in_the_middle_of_a_rewrite_does_not_fail_the_others(site: Site) -> None:
    site.fill(NEW)
    during(site, VECTORS, partial(site.delete, 1), [1, 2])
    site.check()


def during(site: Site, call: tuple[str, str], do: Callable[[], None], ids: list[int]) -> None:
    """Rewrite some points, in a thread, and do something while one of its calls is held on its way."""
    site.fake.strike(fault(Kind.LATE, call))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            site.store.rewrite(site.name, [rewrite_of(number, TEXTS[number]) for number in ids])
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    rewriting = threading.Thread(target=work)
    rewriting.start()
    while not site.fake.struck() and rewriting.is_alive():
        rewriting.join(0.005)
    do()
    site.fake.release()
    rewriting.join()
    if errors:
        raise errors[0]


def test_a_transfer_copies_what_is_there_and_a_conditional_one_writes_over_copies_alone(site: Site) -> None:
    site.fill(NEW)
    target = f"{site.name}__v2"
    site.direct.create(target, NEW.size)

    def copy(number: int, text: str) -> Rewrite:
        one = rewrite_of(number, text)
        return Rewrite(one.id, one.vector, "text", one.text_fingerprint, dict(one.stamp) | {COPIED_KEY: target})

    assert site.store.transfer(site.name, target, [copy(1, TEXTS[1]), copy(2, "not its text"), copy(99, "gone")]) == 1
    site.direct.upsert(target, site.points({3: "an application's"}, target))
    fresh = [copy(number, TEXTS[number]) for number in (1, 3, 4)]
    site.store.transfer_if(site.name, target, fresh, [], mark=target, is_new=True)
    held = {point.id: point.payload for point in site.direct.scroll(target)[0]}
    assert {number: payload["text"] for number, payload in held.items()} == {
        1: TEXTS[1],
        3: "an application's",
        4: TEXTS[4],
    }
    site.write({1: "late", 3: "late", 5: "late"})
    late = [copy(number, "late") for number in (1, 3, 5)]
    site.store.transfer_if(site.name, target, late, [], mark=target, is_new=False)
    site.store.delete_if(target, [3, 4, 99], mark=target)
    held = {point.id: point.payload for point in site.direct.scroll(target)[0]}
    assert {number: payload["text"] for number, payload in held.items()} == {1: "late", 3: "an application's"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_does_not_answer_is_said_to_be_away(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill(NEW)
    points = site.points({1: "new"})
    for call, ask in (
        (QUERY, partial(site.store.search, site.name, NEW.embed(["a"]))),
        (UPSERT, partial(site.store.upsert, site.name, points)),
    ):
        site.fake.strike(fault(kind, call))
        with pytest.raises(StoreUnavailable, match=r"Qdrant at http"):
            ask()
    site.fake.release()
    assert (site.store.fetch(site.name, [1])[0].payload["text"] == "new") == (kind not in (Kind.STATUS, Kind.CUT))


@pytest.mark.parametrize("status", [500, 502, 504])
def test_an_error_of_the_server_is_said_to_be_one(site: Site, status: int) -> None:
    site.fake.strike(Fault(Kind.STATUS, status=status))
    with pytest.raises(StoreUnavailable, match=str(status)):
        site.store.collections()


@pytest.mark.xfail(
    strict=True, reason="a server that is too busy, or ran out of its own time, is not taken for one that is away"
)
@pytest.mark.parametrize("status", [429, 408])
def test_a_server_that_is_too_busy_is_waited_for(site: Site, status: int) -> None:
    site.fake.strike(Fault(Kind.STATUS, status=status))
    with pytest.raises(StoreUnavailable, match=str(status)):
        site.store.collections()


# --- re-index in place ------------------------------------------------------------------------------------------------

STALE = {1: "stale one", 4: "stale four", 8: "stale eight", 200: "a new one, stale"}


def stale(site: Site) -> Site:
    """A collection of the configured model in which some texts are newer than their vectors."""
    site.fill(NEW)
    held = {point.id: point for point in site.direct.scroll(site.name, limit=100, with_vectors=True)[0]}
    points = [
        Point(number, held.get(number, held[1]).payload | {"text": text}, held[1].vector)
        for number, text in STALE.items()
    ]
    site.direct.upsert(site.name, points)
    site.texts |= STALE
    return site


@pytest.mark.parametrize("kind", IN_TURN)
def test_a_reindex_in_place_whose_every_kind_of_call_fails_once_is_done_in_the_end(
    make_site: MakeSite, kind: Kind
) -> None:
    site = stale(make_site(kind))
    site.between = site.fake.release
    calls = [*(READS.values() if kind in AT_ONCE else ()), VECTORS, BATCH]
    site.fake.strike(*(fault(kind, call) for call in calls), fault(kind, VECTORS, skip=1), fault(kind, BATCH, skip=1))
    result = site.run()
    assert result["documents_processed"] == 13
    assert len(site.failures) >= len(site.fake.struck()) >= len(calls) - 1
    site.check()


@pytest.mark.parametrize("call", [VECTORS, BATCH], ids=["vectors", "stamps"])
def test_a_write_in_place_that_comes_late_does_not_undo_the_applications(
    make_site: MakeSite, call: tuple[str, str]
) -> None:
    site = stale(make_site(Kind.LATE))
    site.fake.strike(fault(Kind.LATE, call))

    def go_on() -> None:
        site.write({1: "written meanwhile"})
        site.fake.release()

    site.between = go_on
    site.run()
    assert site.failures
    site.check()


def test_vectors_of_the_model_are_adopted_through_failing_calls(site: Site) -> None:
    site.fill(NEW)
    bare = [
        Point(p.id, {"text": p.payload["text"]}, p.vector)
        for p in site.direct.scroll(site.name, limit=100, with_vectors=True)[0]
    ]
    site.direct.upsert(site.name, bare)
    site.fake.strike(fault(Kind.CUT, BATCH, skip=1), fault(Kind.LOST, BATCH, skip=1))
    result = site.run()
    assert len(site.failures) >= 2
    assert (result["documents_embedded"], result["documents_processed"]) == (0, 12)
    site.check()


# --- another version beside it ----------------------------------------------------------------------------------------


NEWCOMERS = (
    "an attempt after the swap does not know what was there before it: what is new in the old version is left there"
)
SWAPPED_MEANWHILE = (
    "a swap that takes effect after the next attempt has looked for it is taken for one that is impossible"
)
ROLLED_FORWARD = "a roll-back that is asked for again takes the version that it left for the one to go back to"


def written(site: Site, texts: dict[PointId, str], gone: PointId, to: str = "") -> None:
    site.write(texts, to)
    site.delete(gone, of=to)


def busy(site: Site, **then: Callable[[], None]) -> None:
    """Let the application change, add and delete wherever a re-index may miss it; and do what `then` says at a point."""
    late = f"{site.name}__v1"
    moments: dict[str, list[Callable[[], None]]] = {
        "copied": [partial(written, site, {1: "changed", 100: "added"}, 2)],
        "caught up": [partial(written, site, {3: "changed", 101: "added"}, 4)],
        "judged": [partial(written, site, {5: "changed", 102: "added"}, 6)],
        # what was on its way to the old version when it was swapped, and newer writes to the new one
        "swapped": [
            partial(written, site, {7: "late", 103: "added late"}, 8, late),
            partial(written, site, {9: "newer", 104: "added after"}, 10),
        ],
    }
    for point, do in then.items():
        moments.setdefault(point.replace("_", " "), []).append(do)

    def once(point: str) -> None:
        for do in moments.pop(point, []):
            do()

    site.reached = once


def test_a_new_model_is_built_judged_and_swapped_in_while_the_application_writes(site: Site) -> None:
    busy(site.fill())
    result = site.run()
    assert (result["swapped"], result["served"]) == (True, f"{site.name}__v2")
    assert result["gate_figures"]["queries"] >= 4
    site.check()
    site.check_one_way_back()
    # and faults are tried with every kind of call that it made
    tried = [*READS.values(), *WRITES, QUERY]
    strange = [
        call for call in site.fake.calls() if not any(matches(one, call["method"], call["path"]) for one in tried)
    ]
    assert strange == []


def matches(pattern: tuple[str, str], method: str, path: str) -> bool:
    found, _ = take([Fault(Kind.CUT, *pattern)], method, path, "")
    return found is not None


WRITES = [CREATE, ALIASES, UPSERT, DELETE]


def faults(kind: Kind, *, is_new: bool = False) -> list[Fault]:
    """Return a fault for each kind of call, but for the swap. Reads that are held cost time and show nothing more."""
    calls = [*(READS.values() if kind in AT_ONCE else ()), UPSERT, DELETE, *([CREATE, ALIASES] if is_new else [])]
    return [fault(kind, call) for call in calls]


@pytest.mark.parametrize(
    ("moment", "kind"),
    [*(("begin", kind) for kind in IN_TURN), ("copied", Kind.CUT), ("copied", Kind.LATE), ("caught up", Kind.LOST)],
)
def test_a_rebuild_whose_every_kind_of_call_fails_once_is_done_in_the_end(
    make_site: MakeSite, moment: str, kind: Kind
) -> None:
    site = make_site(kind).fill()
    arm = partial(site.fake.strike, *faults(kind, is_new=moment == "begin"))
    if moment == "begin":
        arm()
    busy(site, **({} if moment == "begin" else {moment: arm}))
    site.between = site.fake.release
    result = site.run(without_gate=True)
    assert result["swapped"]
    assert len(site.failures) >= len(site.fake.struck()) >= 2
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("kind", but(NEWCOMERS, [Kind.STATUS, Kind.LOST, Kind.LATE], Kind.STATUS, Kind.LOST))
def test_when_every_kind_of_call_fails_once_after_the_swap_nothing_is_lost(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill()
    again = [fault(kind, UPSERT, body='"insert_only"'), fault(kind, UPSERT, body='"update_only"'), fault(kind, DELETE)]
    reads = [fault(kind, call) for call in READS.values()] if kind in AT_ONCE else []
    busy(site, swapped=partial(site.fake.strike, *again, *reads))
    site.between = site.fake.release
    assert site.run(without_gate=True)["swapped"]
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("kind", but(NEWCOMERS, KINDS, Kind.FAILED, Kind.LOST, Kind.TORN, Kind.LATE, Kind.SLOW))
def test_a_swap_that_fails_or_whose_answer_is_lost_is_done_once(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill()
    busy(site, judged=partial(site.fake.strike, fault(kind, ALIASES)))

    def meanwhile() -> None:
        """What the application does before the task is tried again: to whatever the name means by then."""
        site.fake.release()
        written(site, {11: "newer", 105: "added meanwhile"}, 0)
        if site.direct.info(site.name).name.endswith("__v2"):
            written(site, {7: "late", 103: "added late"}, 8, f"{site.name}__v1")

    site.between = meanwhile
    assert site.run(without_gate=True)["swapped"]
    assert site.failures
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("moment", but(SWAPPED_MEANWHILE, ["compared", "done"], "compared"))
def test_a_swap_that_takes_effect_while_the_next_attempt_is_at_work_loses_nothing(
    make_site: MakeSite, moment: str
) -> None:
    site = make_site(Kind.LATE).fill()
    busy(site, judged=partial(site.fake.strike, fault(Kind.LATE, ALIASES)))

    def on_step(step: Step) -> None:
        if not site.failures or released:
            return
        if step.progress.note == "comparing both versions" if moment == "compared" else site.served() == "v2":
            released.append(True)
            site.fake.release()
            written(site, {11: "newer", 105: "added meanwhile"}, 0)

    released: list[bool] = []
    site.on_step = on_step
    assert site.run(without_gate=True)["swapped"]
    assert released
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("point", but(NEWCOMERS, ["created", "copied", "judged", "swapped"], "swapped"))
def test_an_outage_at_any_point_is_waited_for(site: Site, point: str) -> None:
    outage = partial(site.fake.strike, Fault(Kind.CUT, count=ALWAYS))
    busy(site.fill(), **{point: outage})

    def meanwhile() -> None:
        if len(site.failures) == 3:
            site.fake.clear()
            written(site, {11: "newer", 105: "added meanwhile"}, 0)

    site.between = meanwhile
    assert site.run(without_gate=True)["swapped"]
    assert len(site.failures) == 3
    site.check()
    site.check_one_way_back()


@pytest.mark.xfail(
    strict=True, reason="copies and deletions are not under a condition: one that comes late is done all the same"
)
@pytest.mark.parametrize("call", [UPSERT, DELETE], ids=["copy", "deletion"])
def test_what_a_server_does_only_after_the_swap_is_not_done_to_newer_writes(
    make_site: MakeSite, call: tuple[str, str]
) -> None:
    site = make_site(Kind.LATE).fill()

    def newer() -> None:
        written(site, {1: "newer", 2: "back again", 3: "newer"}, 0)
        site.fake.release()

    site.delete(4)
    busy(site, copied=partial(site.fake.strike, fault(Kind.LATE, call)), swapped=newer)
    site.run(without_gate=True)
    site.check()


def test_a_version_that_is_judged_and_refused_through_failing_calls_is_dropped_and_the_old_one_untouched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(site.fill())
    monkeypatch.setattr(NEW, "is_blind", True)
    queries = tuple(QueryJob(text=text, judgments={str(number): 1.0}) for number, text in TEXTS.items())
    site.fake.strike(fault(Kind.CUT, QUERY, skip=1), fault(Kind.STATUS, QUERY, skip=4), fault(Kind.LOST, DROP))
    result = site.run(queries=queries)
    assert (result["success"], result["swapped"]) == (False, False)
    assert len(site.failures) >= 3
    assert [info.name for info in site.versions()] == [f"{site.name}__v1"]
    site.check(OLD)


def test_a_reader_sees_one_version_or_the_other_whatever_becomes_of_the_swap(site: Site, fake: FakeQdrant) -> None:
    site.fill()
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        mine = client_at(fake.plain_url, api_key=QDRANT_API_KEY)
        while not stop.is_set():
            try:
                seen.append(len(mine.scroll(site.name, limit=100)[0]))
            except Exception as error:  # noqa: BLE001 - whatever a reader gets is what it should not
                site.problems.append(repr(error))
        mine.close()

    reader = threading.Thread(target=read)
    reader.start()
    site.fake.strike(fault(Kind.LOST, ALIASES, skip=1), fault(Kind.CUT, UPSERT))
    try:
        site.run(without_gate=True)
    finally:
        stop.set()
        reader.join()
    assert set(seen) == {len(TEXTS)}
    site.check()


# --- the way back -----------------------------------------------------------------------------------------------------


def again_until_done(site: Site, do: Callable[[], Any]) -> None:
    """Do as an operator does: the same command again, until it is not told that the server does not answer."""
    while True:
        try:
            do()
            return
        except StoreUnavailable as error:
            site.failures.append(str(error))
            assert len(site.failures) < 20, site.failures
            site.between()
        except InvalidArgument:
            if not site.failures:
                raise
            return  # told in words that it is done already; what came of it is checked


@pytest.mark.parametrize("kind", but(ROLLED_FORWARD, KINDS, Kind.FAILED, Kind.LOST, Kind.TORN, Kind.LATE, Kind.SLOW))
def test_a_roll_back_that_fails_or_whose_answer_is_lost_is_done_once(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill_swapped()
    site.fake.strike(fault(kind, ALIASES))
    site.between = site.fake.release
    again_until_done(site, partial(roll_back, site.store, site.name, is_forced=False, until_at=NOW + 7200))
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    site.check(OLD)
    site.check_one_way_back()
    assert [kept.alias for kept in kept_versions(site.versions())] == [kept_alias(site.name, NOW + 7200)]


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.CUT])
def test_a_roll_back_whose_every_kind_of_read_fails_once_is_done_in_the_end(site: Site, kind: Kind) -> None:
    site.fill_swapped()
    site.fake.strike(*(fault(kind, call) for call in READS.values()))
    again_until_done(site, partial(roll_back, site.store, site.name, is_forced=False, until_at=NOW + 7200))
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    site.check(OLD)


# --- an alias for a collection that has none --------------------------------------------------------------------------

ADOPT_CALLS = {"create": CREATE, "copy": UPSERT, "drop": DROP, "alias": ALIASES}


@pytest.mark.parametrize(
    ("name", "kind"),
    but(
        "without its collection the name is not known any more, and the copy is not found",
        [(name, kind) for name in ADOPT_CALLS for kind in (Kind.STATUS, Kind.LOST, Kind.LATE)],
        *(("drop", Kind.LOST), ("drop", Kind.LATE), ("alias", Kind.STATUS)),
    ),
)
def test_adopt_alias_that_was_cut_off_is_done_by_the_next_call(make_site: MakeSite, name: str, kind: Kind) -> None:
    site = make_site(kind).fill(NEW, alias=False)
    site.fake.strike(fault(kind, ADOPT_CALLS[name]))
    site.between = site.fake.release
    again_until_done(site, partial(adopt_alias, site.store, site.name, lambda *_: None))
    assert site.failures
    assert site.direct.info(site.name).name == f"{site.name}__v1"
    assert len(site.versions()) == 1
    site.check()


# --- the end of what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_whose_time_is_over_is_dropped_in_the_end_and_no_other(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill_swapped()
    site.now += 3601
    site.fake.strike(fault(kind, DROP))
    site.between = site.fake.release
    assert site.run()["how"] == "in_place"
    assert site.failures
    assert [info.name for info in site.versions()] == [f"{site.name}__v2"]
    site.check()


def test_of_two_earlier_versions_the_older_one_is_dropped_at_the_swap(site: Site) -> None:
    site.fill_swapped()
    site.fake.strike(fault(Kind.CUT, DROP), fault(Kind.LOST, DROP))
    site.run(without_gate=True, force_rebuild=True)
    assert len(site.failures) >= 2
    site.check()
    assert [info.name.rpartition("__")[2] for info in site.versions()] == ["v2", "v3"]


def test_the_suite_leaves_what_is_not_its_own(site: Site, application: QdrantClient) -> None:
    """A re-index drops what has expired on the whole server: here it is shown its own collections alone."""
    other = f"not_{site.name}"
    try:
        application.create_collection(other, models.VectorParams(size=2, distance=models.Distance.DOT))
        QdrantStore(application).set_alias(kept_alias(other, 1.0), other)
        site.fill(NEW).run()
        assert application.collection_exists(other)
        with pytest.raises(AssertionError, match="not this test's"):
            site.store._client.delete_collection(other)
    finally:
        application.delete_collection(other)
