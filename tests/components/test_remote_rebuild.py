"""A re-index of a server's collection by a version beside it, over real HTTP: at every call every kind of fault.

What is tried against what server, and what has to be true afterwards: test_remote_http.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from bench.fake_qdrant.faults import ALWAYS, Fault, Kind, take
from bench.fake_qdrant.running import FakeQdrant
from morgan.background.ipc.records import PointId, QueryJob
from morgan.background.workers import retries
from morgan.background.workers.task import Step

from .qdrant_servers import QDRANT_API_KEY, client_at
from .remote_calls import (
    ALIASES,
    AT_ONCE,
    CREATE,
    DELETE,
    DROP,
    IN_TURN,
    KINDS,
    QUERY,
    READS,
    UPSERT,
    fault,
)
from .remote_site import NEW, OLD, STRICT, TEXTS, Site

MakeSite = Callable[..., Site]

COMPARING = "bringing over the last writes"  # what a step of an attempt after a lost swap says


@pytest.fixture(autouse=True)
def hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap is asked for once: what comes of it is the next attempt's to find out. But for tests of asking again."""
    if "patient" not in request.fixturenames:
        monkeypatch.setattr(retries, "FOR_S", 0.0)


@pytest.fixture
def patient() -> None:
    """See `hasty`."""


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
    tried = [*READS, *WRITES, QUERY]
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
    calls = [*(READS if kind in AT_ONCE else ()), UPSERT, DELETE, *([CREATE, ALIASES] if is_new else [])]
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


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.LOST, Kind.LATE])
def test_when_every_kind_of_call_fails_once_after_the_swap_nothing_is_lost(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill()
    again = [fault(kind, UPSERT, body='"insert_only"'), fault(kind, UPSERT, body='"update_only"'), fault(kind, DELETE)]
    reads = [fault(kind, call) for call in READS] if kind in AT_ONCE else []
    busy(site, swapped=partial(site.fake.strike, *again, *reads))
    site.between = site.fake.release
    assert site.run(without_gate=True)["swapped"]
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_that_fails_or_whose_answer_is_lost_is_asked_for_again(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill()
    busy(site, judged=partial(site.fake.strike, fault(kind, ALIASES)), swapped=site.fake.release)
    assert site.run(without_gate=True)["swapped"]
    assert site.failures == []
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("moment", ["compared", "done"])
def test_a_swap_that_takes_effect_while_the_next_attempt_is_at_work_loses_nothing(
    make_site: MakeSite, moment: str
) -> None:
    site = make_site(Kind.LATE).fill()
    busy(site, judged=partial(site.fake.strike, fault(Kind.LATE, ALIASES)))

    def on_step(step: Step) -> None:
        if not site.failures or released:
            return
        if step.progress.note == COMPARING if moment == "compared" else site.served() == "v2":
            released.append(True)
            site.fake.release()
            written(site, {11: "newer", 105: "added meanwhile"}, 0)

    released: list[bool] = []
    site.on_step = on_step
    assert site.run(without_gate=True)["swapped"]
    assert released
    site.check()
    site.check_one_way_back()


@pytest.mark.parametrize("point", ["created", "copied", "judged", "swapped"])
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
    # what was deleted since cannot be told from what was never there: the one race of late requests that remains
    site.check(but_for=(10,) if call == UPSERT else ())


def test_a_rebuild_is_done_under_strict_mode(site: Site) -> None:
    site.strict = STRICT
    busy(site.fill(), created=partial(strict_as_well, site))
    site.run(without_gate=True)
    site.check()


def strict_as_well(site: Site) -> None:
    """Have the version that is being built under strict mode, as where it is the default."""
    site.application.update_collection(f"{site.name}__v2", strict_mode_config=STRICT)


def test_a_name_of_a_version_being_built_that_comes_late_does_not_have_the_served_one_dropped(
    make_site: MakeSite,
) -> None:
    site = make_site(Kind.LATE).fill()
    site.fake.strike(fault(Kind.LATE, ALIASES))
    site.run(without_gate=True)
    site.fake.release()  # the version that is served by now is named as one being built
    site.at("named", site.look)
    site.run(without_gate=True, force_rebuild=True)
    site.check()
    site.check_one_way_back()


def test_a_deletion_that_comes_late_is_not_of_the_next_version(make_site: MakeSite) -> None:
    site = make_site(Kind.LATE).fill()
    site.direct.create(f"{site.name}__v2", NEW.size)  # as an attempt left it that was killed before it was named
    site.fake.strike(fault(Kind.LATE, DROP))
    site.run(without_gate=True)
    site.fake.release()
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


def test_a_reader_sees_one_version_or_the_other_whatever_becomes_of_the_swap(site: Site, server: FakeQdrant) -> None:
    site.fill()
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        mine = client_at(server.plain_url, api_key=QDRANT_API_KEY)
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
