"""A server's answer is lost, or the task is: what a swap, a roll-back and an adopted alias are then.

Through qdrant-client's local mode, whose requests are obeyed and then answered with a cut connection. Over HTTP, with more
kinds of faults: test_remote_http.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from bench.fake_embedder import FakeEmbedder
from morgan.background.ipc.errors import StoreUnavailable
from morgan.background.ipc.records import Point, TaskType
from morgan.background.workers import retries
from morgan.background.workers.adopting import adopt_alias
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.retries import until_answered
from morgan.background.workers.rollback import roll_back
from morgan.background.workers.task import Job, Step, Verdict, drive
from morgan.background.workers.vectors import COPIED_KEY, STAMP_KEY, Rewrite
from morgan.background.workers.versions import building_alias, kept_versions, next_version

from .test_shadow_on_a_server import NEW, TEXTS, Server


def lose(server: Server, method: str, *, times: int = 1, is_done: bool = True) -> None:
    """Cut the connection of the next calls of a client's method, after they are done or instead."""
    call, left = getattr(server.client, method), [times]

    def cut(*given: Any, **named: Any) -> Any:
        if not left[0]:
            return call(*given, **named)
        left[0] -= 1
        if is_done:
            call(*given, **named)
        raise httpx.ReadError("the connection was cut")

    setattr(server.client, method, cut)


def resumed(server: Server, point: str, meanwhile: Callable[[], None], *, folder: Path) -> dict[str, Any]:
    """Re-index; end the task at `point`, as a kill does; do what comes `meanwhile`; go on at its checkpoint."""
    settings = msgspec.structs.replace(server.tools.settings, rebuild_folder=str(folder))
    server.tools = replace(server.tools, settings=settings)
    left: dict[str, Any] = {}

    def stop(at: str) -> None:
        if at == point:
            raise KeyboardInterrupt

    def keep(step: Step) -> Verdict:
        if step.checkpoint is not None:
            left["at"] = step.checkpoint
        return Verdict.GO_ON

    server.reached = stop
    with pytest.raises(KeyboardInterrupt):
        drive(reindex(Job("t", TaskType.REINDEX, "docs"), server.tools), keep)
    server.reached = lambda _: None
    meanwhile()
    ended = drive(reindex(Job("t", TaskType.REINDEX, "docs", checkpoint=left["at"]), server.tools), keep)
    assert not isinstance(ended, Verdict)
    return ended.result


@pytest.mark.parametrize("is_done", [True, False])
def test_a_swap_whose_answer_is_lost_is_asked_for_again_and_made_once(is_done: bool) -> None:
    server, texts = Server(), dict(TEXTS)

    def write(at: str) -> None:
        if at == "judged":
            lose(server, "update_collection_aliases", is_done=is_done)
        if at == "swapped":
            server.write({1: "late", 100: "added late"}, to="docs__v1")

    server.reached = write
    result = server.run()
    assert (result["swapped"], result["served"], result["kept"]) == (True, "docs__v2", "docs__v1")
    server.check(texts | {1: "late", 100: "added late"})
    assert server.store.info("docs").aliases == ("docs",)
    assert [kept.collection for kept in kept_versions(server.store.collections())] == ["docs__v1"]


def test_a_task_killed_after_the_swap_brings_over_what_was_written_last_and_nothing_that_was_deleted(
    tmp_path: Path,
) -> None:
    server = Server()

    def meanwhile() -> None:
        server.write({100: "added just before the swap"}, to="docs__v1")
        server.store.delete("docs", [2])

    assert resumed(server, "swapped", meanwhile, folder=tmp_path)["swapped"]
    texts = TEXTS | {100: "added just before the swap"}
    del texts[2]
    server.check(texts)
    assert list(tmp_path.iterdir()) == []


def test_without_the_known_ids_what_was_deleted_stays_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()

    def meanwhile() -> None:
        for file in tmp_path.iterdir():
            file.unlink()
        server.write({100: "added just before the swap"}, to="docs__v1")
        server.store.delete("docs", [2])

    assert resumed(server, "swapped", meanwhile, folder=tmp_path)["swapped"]
    server.check({number: text for number, text in TEXTS.items() if number != 2})
    assert "docs__v1 in the moment before it stay there" in caplog.text


def test_a_swap_that_takes_effect_while_the_next_attempt_compares_harms_no_newer_write(tmp_path: Path) -> None:
    """The server held the request, and obeys it when the next attempt has looked which version is served."""
    server, left = Server(), dict[str, str]()
    store = server.store
    swap, scroll = store.swap, store.scroll

    def lost(old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        left["kept_as"] = kept_as
        store.swap = swap  # type: ignore[method-assign]
        raise KeyboardInterrupt

    def late(name: str, **options: Any) -> Any:
        if name == "docs__v1":
            store.scroll = scroll  # type: ignore[method-assign]
            store.swap("docs__v1", "docs__v2", kept_as=left["kept_as"], rename_to="")
            server.write({7: "written to the new version", 101: "added to the new version"})
            store.delete("docs", [2])
        return scroll(name, **options)

    def meanwhile() -> None:
        server.write({100: "added to the old version", 8: "changed in the old version"}, to="docs__v1")
        store.delete("docs__v1", [3])
        store.scroll = late  # type: ignore[method-assign]

    store.swap = lost  # type: ignore[method-assign]
    assert resumed(server, "", meanwhile, folder=tmp_path)["swapped"]
    texts = TEXTS | {7: "written to the new version", 8: "changed in the old version"}
    texts |= {100: "added to the old version", 101: "added to the new version"}
    del texts[2], texts[3]
    server.check(texts)
    assert store.info("docs").aliases == ("docs",)


def test_copies_and_deletions_that_are_obeyed_after_the_swap_harm_no_newer_write() -> None:
    server = Server()
    assert server.run()["swapped"]
    server.write({1: "newer", 2: "newer, too"})
    mark = {"fp": fingerprint(TEXTS[1]), "model": "new", "rev": "", COPIED_KEY: "docs__v2"}
    (vector,) = NEW.embed([TEXTS[1]])
    rewrites = [Rewrite(1, vector, "text", fingerprint(TEXTS[1]), mark)]
    server.store.transfer_if("docs__v1", "docs__v2", rewrites, [], mark="docs__v2")
    server.store.delete_if("docs__v2", [2], mark="docs__v2")
    server.check(TEXTS | {1: "newer", 2: "newer, too"})


def test_a_point_without_text_that_changes_late_is_brought_over_and_keeps_no_vector_of_another_size() -> None:
    server = Server()
    picture = Point(id=200, payload={"picture": "a"}, vector=np.ones(16, dtype="<f4").tobytes())
    server.store.upsert("docs", [picture])

    def write(at: str) -> None:
        if at == "swapped":
            later = [
                Point(id=200, payload={"picture": "b"}, vector=picture.vector),
                Point(id=201, payload={"picture": "c"}, vector=picture.vector),
            ]
            server.store.upsert("docs__v1", later)

    server.reached = write
    assert server.run()["swapped"]
    found = {one.id: one.payload.get("picture") for one in server.store.fetch("docs", [200, 201])}
    assert found == {200: "b", 201: "c"}


def test_a_version_that_is_searched_is_never_cleared_away() -> None:
    server = Server()
    server.store.set_alias(building_alias("docs"), "docs__v1")  # by a request that came too late
    assert server.run()["swapped"]
    server.check(TEXTS)
    assert server.store.info("docs__v1").points == len(TEXTS)


def test_a_roll_back_whose_answer_is_lost_goes_back_once() -> None:
    server = Server()
    assert server.run()["swapped"]
    lose(server, "update_collection_aliases")
    done = roll_back(server.store, "docs", is_forced=False, until_at=1_800_000_000.0)
    assert (done.served.name, done.kept.name) == ("docs__v1", "docs__v2")
    assert server.store.info("docs").name == "docs__v1"
    assert [kept.collection for kept in kept_versions(server.store.collections())] == ["docs__v2"]


def test_rolled_back_twice_within_a_second_each_version_has_its_alias() -> None:
    server = Server()
    assert server.run()["swapped"]
    for served, kept in (("docs__v1", "docs__v2"), ("docs__v2", "docs__v1")):
        done = roll_back(server.store, "docs", is_forced=False, until_at=1_800_000_000.0)
        assert (done.served.name, done.kept.name) == (served, kept)
        assert [one.collection for one in kept_versions(server.store.collections())] == [kept]


def test_a_roll_back_that_nobody_answers_says_how_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    assert server.run()["swapped"]
    monkeypatch.setattr(retries, "FOR_S", 0.0)
    lose(server, "update_collection_aliases", times=1000, is_done=False)
    with pytest.raises(StoreUnavailable, match=r"not known.*morgan-background collections.*'docs__v1', it was"):
        roll_back(server.store, "docs", is_forced=False, until_at=1_800_000_000.0)


@pytest.mark.parametrize("method", ["delete_collection", "update_collection_aliases"])
@pytest.mark.parametrize("is_done", [True, False])
def test_an_adopted_alias_is_made_though_answers_are_lost(method: str, is_done: bool) -> None:
    server = Server(alias="")
    server.store.create("plain", 16)
    server.write(TEXTS, to="plain")
    lose(server, method, is_done=is_done)
    if method == "update_collection_aliases":  # the copy's own name, before anything is deleted
        with pytest.raises(StoreUnavailable):
            adopt_alias(server.store, "plain", lambda *_: None)
        assert server.store.info("plain").name == "plain"
    made = adopt_alias(server.store, "plain", lambda *_: None)
    assert (made.name, made.points, made.aliases) == ("plain__v1", len(TEXTS), ("plain",))


def test_an_adopted_alias_cut_off_after_the_deletion_goes_on() -> None:
    server = Server(alias="")
    server.store.create("plain", 16)
    server.write(TEXTS, to="plain")
    set_alias = server.store.set_alias

    def cut(alias: str, name: str) -> None:
        if alias == "plain":
            raise KeyboardInterrupt
        set_alias(alias, name)

    server.store.set_alias = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        adopt_alias(server.store, "plain", lambda *_: None)
    server.store.set_alias = set_alias  # type: ignore[method-assign]
    copied: list[tuple[int, int]] = []
    made = adopt_alias(server.store, "plain", lambda done, total: copied.append((done, total)))
    assert (made.name, made.points, made.aliases, copied) == ("plain__v1", len(TEXTS), ("plain",), [])
    assert next_version("plain", server.store.collections()) == "plain__v2"


def test_a_point_deleted_while_its_batch_is_embedded_is_left_out_and_the_others_are_written() -> None:
    server = Server()
    update, (vector,) = server.client.update_vectors, FakeEmbedder("old", 16).embed(["another"])

    def after_a_deletion(*given: Any, **named: Any) -> Any:
        server.client.update_vectors = update
        server.store.delete("docs", [2])
        return update(*given, **named)

    server.client.update_vectors = after_a_deletion
    rewrites = [Rewrite(n, vector, "text", fingerprint(TEXTS[n]), {"fp": "new"}) for n in (1, 2, 3)]
    server.store.rewrite("docs", rewrites)
    found = {point.id: point.payload for point in server.store.fetch("docs", [1, 2, 3])}
    assert {number: payload[STAMP_KEY]["fp"] for number, payload in found.items()} == {1: "new", 3: "new"}


def test_a_change_is_asked_for_again_until_it_is_answered_and_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def change() -> int:
        asked.append(1)
        if len(asked) < 3:
            raise StoreUnavailable("not yet")
        return 7

    assert (until_answered(change), len(asked)) == (7, 3)
    asked.clear()
    monkeypatch.setattr(retries, "FOR_S", 0.0)
    with pytest.raises(StoreUnavailable, match="not yet"):
        until_answered(change)
    assert len(asked) == 1
