"""Owns the re-index that cannot be done in place: build the next version beside the one in use, judge it, swap.

    begin ─▶ build ─▶ index ─▶ catch up ─▶ judge ──no──▶ drop the new one
                                   ▲          └─yes─▶ swap ─▶ settle (where writes may pass us by) ─▶ done
    applications write the old version all the time; what they touched is copied again, at last under a short hold

Every step may be the last one: killed anywhere, the next attempt goes on at the checkpoint, and readers have seen either
version as a whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from enum import StrEnum
from typing import Any

import msgspec

from ..ipc.errors import StoreUnavailable, TextFieldNotFound
from ..ipc.records import CollectionInfo, Point, PointId, TaskProgress
from .changes import anything, names_of
from .chase import HOLD_S, Chase, Move, Round
from .fingerprint import of_payload
from .in_place import eta_s, no_text
from .judging import compared
from .known import KnownIds
from .lending import Lending, build_index
from .pipeline import Piece, piece_size, pieces, takes_threads
from .rollback import drop_expired, own_payload
from .task import Job, Outcome, Step, Steps, Tools
from .texts import Maker, note_fields, sort, text_of
from .vectors import AS_KEY, COPIED_KEY, STAMP_KEY, Conditional, Only, Rewrite
from .versions import base_of, building_alias, free_kept_alias, kept_versions, next_version, own_name, serving_aliases
from .watches import Touched
from .write_gate import NoGate

log = logging.getLogger(__name__)

COMPARED = 256  # points compared in one call
FEW = 16  # touched points: with so few left the swap is tried, and they are copied without pauses
ROUNDS = 8  # of copying what was touched: from there on it has to get less each time
SLOW_S = 5.0  # for which writes are slowed at once; asked for again with each page of points
PASSES = 8  # comparisons of both versions before the swap, and after it, where nobody tells what was touched
QUIET_PASSES = 2  # empty ones in a row: then no write is on its way to the old version any more


class Phase(StrEnum):
    BEGIN = "begin"
    BUILD = "build"  # copy all points
    INDEX = "index"  # build the graph
    CATCH_UP = "catch_up"  # copy what was touched meanwhile
    JUDGE = "judge"
    SWAP = "swap"
    SETTLE = "settle"  # it is served: what still reached the old version is brought over
    DONE = "done"


class Shadow(msgspec.Struct, tag="shadow", tag_field="kind"):
    """Where it stands."""

    made_for: str = ""  # collection, model and revision
    phase: Phase = Phase.BEGIN
    base: str = ""
    source: str = ""  # the version in use, by its own name; after the swap by the one it then has
    target: str = ""
    distance: str = ""
    old_model: str = ""  # "" where it is not known
    is_judging: bool = True
    after: PointId | None = None
    token: int = 0  # of the watch, and up to which change what it saw is copied
    seq: int = 0
    points: int = 0  # of the old version at the beginning
    seen: int = 0
    embedded: int = 0
    without_text: int = 0
    again: int = 0  # copied again, or deleted, because they were touched meanwhile
    hold_ms: float = 0.0  # for how long writes were held at most
    slowed_to: float = 0.0  # points a second that writes were slowed to; 0: they were not
    kept_as: str = ""
    kept_until_at: float = 0.0
    verdict: str = ""
    figures: dict[str, Any] = {}
    elapsed_s: float = 0.0


def rebuild(job: Job, tools: Tools, info: CollectionInfo, maker: Maker, at: Shadow) -> Steps:
    """Build, judge and swap in the next version of `info`. Raises TextFieldNotFound where no point has the field."""
    run = _Rebuild(job, tools, maker, at)
    drop_expired(tools.store, tools.clock())
    if at.phase is not Phase.BEGIN:
        run.find_again()
    if at.phase is Phase.BEGIN:
        yield from run.begin(info)
    if at.phase is Phase.BUILD:
        yield from run.build()
    if at.phase is Phase.INDEX:
        yield from run.index()
    if at.phase is Phase.CATCH_UP:
        yield from run.catch_up()
    if at.phase is Phase.JUDGE:
        is_passed = yield from run.judge()
        if not is_passed:
            return run.refused()
    if at.phase is Phase.SWAP:
        yield from run.swap()
    if at.phase is Phase.SETTLE:
        yield from run.settle()
    return run.done()


class _Rebuild:
    def __init__(self, job: Job, tools: Tools, maker: Maker, at: Shadow) -> None:
        self.job, self.tools, self.maker, self.at = job, tools, maker, at
        self.store = tools.store
        self.gate = tools.gate or NoGate(tools.store)
        self.field = tools.settings.model.text_field
        self.began_at, self.before_s, self.seen_before = tools.clock(), at.elapsed_s, at.seen
        self._known: KnownIds | None = None
        self.is_swap_open = at.phase is Phase.SWAP  # an earlier attempt asked for it: a server may obey that yet
        self.slowed_to = 0.0  # points a second, now

    @property
    def known(self) -> KnownIds:
        """What the new version had when they were compared last."""
        if self._known is None:
            is_kept = not self.gate.sees_every_write  # else nothing is left to settle
            folder = self.tools.settings.rebuild_folder if is_kept else ""
            self._known = KnownIds(folder, self.at.base)
        return self._known

    # --- steps --------------------------------------------------------------------------------------------------------

    def step(self, note: str, changes: tuple[Any, ...] = ()) -> Step:
        at = self.at
        elapsed_s = self.tools.clock() - self.began_at
        at.elapsed_s = self.before_s + elapsed_s
        left = max(at.points - at.seen, 0)
        progress = TaskProgress(
            done=at.seen,
            total=max(at.points, at.seen),
            note=note,
            eta_s=eta_s(elapsed_s, at.seen - self.seen_before, left) if at.phase is Phase.BUILD else None,
        )
        return Step(progress, msgspec.to_builtins(at), changes=changes)

    def find_again(self) -> None:
        """Look where an earlier attempt was left: it may have been killed just after the swap."""
        at = self.at
        collections = self.store.collections()
        target = next((info for info in collections if info.name == at.target), None)
        if target is None:  # the new one was dropped by somebody
            at.phase = Phase.BEGIN
        elif at.base in target.aliases and at.phase is not Phase.DONE:
            at.phase = Phase.SETTLE
            kept = next((kept for kept in kept_versions(collections) if kept.alias == at.kept_as), None)
            if kept is None:  # rolled back and swapped again, or dropped, by somebody: nothing to bring over from
                at.phase = Phase.DONE
            else:
                at.source = kept.collection
                if not self.known.recall(at.kept_as) and not self.gate.sees_every_write:
                    log.warning(
                        "%s: which points %s had before the swap is not on the disk any more: new ones that were written to"
                        " %s in the moment before it stay there",
                        *(at.base, at.target, at.source),
                    )

    def begin(self, info: CollectionInfo) -> Generator[Step, None, None]:
        """Make the next version, empty. Watched from before its first point on: no write is missed."""
        at, store = self.at, self.store
        at.base, at.source, at.points = base_of(self.job.collection, info), info.name, info.points
        at.after, at.seen, at.embedded, at.without_text, at.again = None, 0, 0, 0, 0
        at.target = next_version(
            at.base, store.collections()
        )  # a name of what is dropped now may be dropped again, late
        self._clear_away()
        at.token, at.seq = self.gate.watch(at.source)
        store.create(
            at.target,
            self.tools.embedder.size,
            distance=at.distance or info.distance,
            vector_name=info.vector_name,
            like=info.name,
        )
        self.tools.reached("created")
        store.set_alias(building_alias(at.base), at.target)
        self.tools.reached("named")
        at.phase = Phase.BUILD
        yield self.step(f"building {at.target}")

    def _clear_away(self) -> None:
        """Drop what an attempt left that does not go on: a shadow, or one that was made and not named yet (empty)."""
        at, store = self.at, self.store
        for info in store.collections():
            is_unnamed = not info.aliases and info.points == 0 and info.name.startswith(f"{at.base}__v")
            is_left = building_alias(at.base) in info.aliases and not serving_aliases(info)
            if is_left or (is_unnamed and info.name != at.source):
                store.drop(info.name)

    def build(self) -> Generator[Step, None, None]:
        at, fields = self.at, dict[str, int]()
        with closing(self._pieces()) as built:
            for piece in built:
                note_fields(fields, piece.points)
                at.embedded += piece.done
                at.without_text += sum(text_of(point, self.field) is None for point in piece.points)
                at.seen += len(piece.points)
                at.after = piece.after
                self.tools.reached("copied")
                if at.after is not None:
                    yield self.step(f"building {at.target}")
        if at.seen and at.without_text == at.seen:
            self.store.drop(at.target)
            raise TextFieldNotFound(no_text(self.job.collection, self.field, fields))
        at.phase = Phase.INDEX
        yield self.step(f"{at.target} is built")

    def _pieces(self) -> Generator[Piece[int], None, None]:
        """Copy from where the build stands: yield each piece of the old version once it is in the new one."""
        store, source = self.store, self.at.source
        size = piece_size(store, self.tools.settings.scroll_size)

        def make(points: Sequence[Point]) -> tuple[list[Rewrite], list[PointId]]:
            self.tools.pace()
            return self._rewrites(points, is_paced=True)

        def read(after: PointId | None) -> tuple[list[Point], PointId | None]:
            return store.scroll(source, after=after, limit=size)

        return pieces(read, make, self._put, self.at.after, is_overlapping=takes_threads(store))

    def index(self) -> Generator[Step, None, None]:
        """Build the graph of an embedded collection in this process: it holds the interpreter, and nobody else's then."""
        at = self.at
        if isinstance(self.store, Lending):
            yield self.step(f"building the graph of {at.target}")
            build_index(self.store.lend(at.target))
        self.tools.reached("indexed")
        at.phase = Phase.CATCH_UP
        yield self.step(f"{at.target} is indexed")

    def catch_up(self) -> Generator[Step, None, None]:
        at = self.at
        yield from self._drain()
        if not self.gate.sees_every_write or not self._is_explained():
            for _ in range(PASSES):
                if not (yield from self._compare()):
                    break
        self.tools.reached("caught up")
        at.phase = Phase.JUDGE
        yield self.step("caught up")

    def _is_explained(self) -> bool:
        """Say whether both versions have as many points, but for those that were touched in between."""
        at = self.at
        more = abs(self.store.info(at.source).points - self.store.info(at.target).points)
        if not more:
            return True
        touched = self.gate.touched(at.token, at.seq)
        return touched is not None and not touched.is_whole and more <= len(touched.ids) + touched.left

    def judge(self) -> Generator[Step, None, bool]:
        at = self.at
        if at.is_judging:
            yield self.step("comparing both versions' search results")
            verdict = yield from compared(self.job, self.tools, at.source, at.target, at.old_model)
            at.verdict, at.figures = verdict.reason, verdict.figures
            if not verdict.is_passed:
                self.store.drop(at.target)
                return False
        self.tools.reached("judged")
        at.kept_until_at = self.tools.clock() + self.tools.settings.retention_s
        at.kept_as = free_kept_alias(at.base, at.kept_until_at, self.store.collections())
        at.phase = Phase.SWAP
        yield self.step("no worse than before: swapping")  # `kept_as` is known to whoever goes on after the swap
        return True

    def swap(self) -> Generator[Step, None, None]:
        at = self.at
        names = names_of(self.store.info(at.source))
        if not self.gate.sees_every_write:
            yield from self._compare_before_swap()
        yield from self._chase()
        self.tools.reached("swapped")
        at.source = self.store.info(at.kept_as).name
        at.phase = Phase.SETTLE
        is_told = not isinstance(self.gate, NoGate)  # the owner tells the supervisor itself
        yield self.step(f"{at.target} is served", () if is_told else (anything((*names, at.target), is_soft=True),))

    def _compare_before_swap(self) -> Generator[Step, None, None]:
        """Compare once more, as if the new version were served already where it may come to be at any moment."""
        is_known = self.is_swap_open and self.known.recall(self.at.kept_as)
        if is_known and isinstance(self.store, Conditional):
            yield from self._settle_once(self.store)
            self.known.end(self.at.kept_as)
        else:
            yield from self._compare()

    def _chase(self) -> Generator[Step, None, None]:
        """Swap, however fast applications write. Raises StoreUnavailable where they do so faster than it can be copied."""
        at, chase, began = self.at, Chase(), time.monotonic()
        rename_to = own_name(at.base, self.store.collections())
        while True:
            since, began = began, time.monotonic()
            touched = self.gate.touched(at.token, at.seq)
            if touched is None or touched.is_whole:
                yield from self._drain()
                continue
            self._catch(touched, is_paced=len(touched.ids) > FEW)
            done = Round(len(touched.ids), touched.left, time.monotonic() - began, began - since)
            if self._is_swapped(rename_to):
                return
            move = chase.after(done)
            if move is Move.GIVE_UP:
                self._slow(0.0)
                raise StoreUnavailable(f"{at.base!r}: {chase.reason}")
            if move is Move.HOLD and self._swap_held(chase, rename_to):
                return
            if chase.slowed_to:
                self._slow(chase.slowed_to)
            yield self.step("catching up with what is written")

    def _slow(self, points_per_s: float) -> None:
        """Have writes slowed, or slowed for longer; 0: no more. It ends by itself where this process does."""
        self.slowed_to = points_per_s
        self.at.slowed_to = points_per_s or self.at.slowed_to
        self.gate.slow(self.at.token, SLOW_S, points_per_s)

    def _catch(self, touched: Touched, *, is_paced: bool) -> None:
        self._again(touched.ids, is_paced=is_paced)
        self.known.copied(touched.ids)
        self.at.seq = touched.seq

    def _is_swapped(self, rename_to: str) -> bool:
        """Swap, unless a point was touched since the last one was copied."""
        at = self.at
        return self.gate.swap(at.source, at.target, kept_as=at.kept_as, rename_to=rename_to, token=at.token, seq=at.seq)

    def _swap_held(self, chase: Chase, rename_to: str) -> bool:
        """Hold writes, copy the last few, swap; let them go on where that would take longer than they may be held."""
        at, gate, is_done = self.at, self.gate, False
        began = time.monotonic()
        gate.hold(at.token, HOLD_S)
        while True:
            touched = gate.touched(at.token, at.seq)
            left_s = began + HOLD_S - time.monotonic()
            if touched is None or touched.is_whole or not chase.fits(len(touched.ids) + touched.left, left_s):
                break
            self._catch(touched, is_paced=False)
            if not touched.left:
                is_done = self._is_swapped(rename_to)
                break
        if not is_done:
            gate.hold(at.token, 0.0)
        at.hold_ms = max(at.hold_ms, (time.monotonic() - began) * 1000)
        return is_done

    def settle(self) -> Generator[Step, None, None]:
        """Bring over what reached the old version between the last comparison and the swap. Where every write is seen,
        nothing did."""
        at = self.at
        if not self.gate.sees_every_write and isinstance(self.store, Conditional):
            quiet = 0
            for _ in range(PASSES):
                found = yield from self._settle_once(self.store)
                quiet = 0 if found else quiet + 1
                if quiet == QUIET_PASSES:
                    break
        for kept in kept_versions(self.store.collections()):  # one way back is kept, not a copy for each rebuild
            if kept.base == at.base and kept.collection not in (at.source, at.target):
                self.store.drop(kept.collection)
        self.known.discard()
        self.tools.reached("settled")
        at.phase = Phase.DONE
        yield self.step("settled")

    # --- copying ------------------------------------------------------------------------------------------------------

    def _rewrites(self, points: Sequence[Point], *, is_paced: bool) -> tuple[list[Rewrite], list[PointId]]:
        """Return the points as the new version is to have them, and those that have no text."""
        page = sort(points, self.field, self.maker, is_rebuild=True)
        rewrites: list[Rewrite] = []
        if page.stale:
            pace = self.tools.pace if is_paced else None
            vectors = self.tools.embedder.embed([page.texts[point.id] for point in page.stale], pace=pace)
            for point, vector in zip(page.stale, vectors, strict=True):
                mark = self.maker.stamp(page.texts[point.id])
                rewrites.append(Rewrite(point.id, vector, self.field, mark["fp"], mark | {COPIED_KEY: self.at.target}))
        return rewrites, [point.id for point in page.bare]

    @property
    def _keeps_vectors(self) -> bool:
        """Whether a point without text may keep its vector: the model is the same."""
        return self.at.old_model == self.maker.model

    def _copy(self, points: Sequence[Point], *, is_paced: bool) -> int:
        """Copy points into the new version; return how many were embedded."""
        return self._put(self._rewrites(points, is_paced=is_paced))

    def _put(self, made: tuple[list[Rewrite], list[PointId]]) -> int:
        (rewrites, bare), at, keeps = made, self.at, self._keeps_vectors
        if isinstance(self.store, Conditional):  # what it obeys after the swap, late, harms no newer write
            self.store.transfer_if(at.source, at.target, rewrites, bare, mark=at.target, keeps_vectors=keeps)
        else:
            self.store.transfer(at.source, at.target, rewrites, bare, keeps_vectors=keeps)
        return len(rewrites)

    def _delete(self, ids: Sequence[PointId]) -> None:
        """Delete copies from the new version."""
        if isinstance(self.store, Conditional):
            self.store.delete_if(self.at.target, ids, mark=self.at.target)
        else:
            self.store.delete(self.at.target, ids)

    def _again(self, ids: Sequence[PointId], *, is_paced: bool) -> None:
        """Copy or delete points that were touched."""
        at, size = self.at, self.tools.settings.scroll_size
        for start in range(0, len(ids), size):
            if start and self.slowed_to:
                self._slow(self.slowed_to)
            some = ids[start : start + size]
            points = self.store.fetch(at.source, some)
            there = {point.id for point in points}
            if gone := [one for one in some if one not in there]:
                self._delete(gone)
            at.embedded += self._copy(points, is_paced=is_paced)
        at.again += len(ids)

    def _drain(self) -> Generator[Step, None, None]:
        """Copy what was touched, until so little is left that a swap may find a moment without, or it gets no less."""
        at, least, rounds = self.at, 0, 0
        while True:
            touched = self.gate.touched(at.token, at.seq)
            if touched is None or touched.is_whole:  # the owner is another, and has not seen all writes
                at.token, at.seq = self.gate.watch(at.source)
                yield from self._compare()
                continue
            self._again(touched.ids, is_paced=True)
            at.seq = touched.seq
            self.tools.reached("copied again")
            yield self.step("catching up with what was written meanwhile")
            count, rounds = len(touched.ids) + touched.left, rounds + 1
            if count <= FEW or (rounds > ROUNDS and count >= least):
                return
            least = min(count, least) if rounds > 1 else count

    # --- comparing ----------------------------------------------------------------------------------------------------

    def _differs(self, point: Point, copy: Point | None) -> bool:
        if copy is None or own_payload(point) != own_payload(copy):
            return True
        text = text_of(point, self.field)
        return text is not None and not self.maker.made(copy, text)

    def _compare(self) -> Generator[Step, None, int]:
        """Copy every point that differs, delete those that are gone; return how many there were."""
        at, found, after = self.at, 0, None
        self.known.begin()
        while True:
            self.tools.pace()
            points, after = self.store.scroll(at.source, after=after, limit=COMPARED)
            copies = {one.id: one for one in self.store.fetch(at.target, [point.id for point in points])}
            differing = [point.id for point in points if self._differs(point, copies.get(point.id))]
            self._again(differing, is_paced=True)
            found += len(differing)
            yield self.step("comparing both versions")
            if after is None:
                break
        while True:
            self.tools.pace()
            points, after = self.store.scroll(at.target, after=after, limit=COMPARED)
            there = {one.id for one in self.store.fetch(at.source, [point.id for point in points])}
            gone = [point.id for point in points if point.id not in there]
            self.known.compared(there)
            self._again(gone, is_paced=True)
            found += len(gone)
            yield self.step("comparing both versions")
            if after is None:
                self.known.end(at.kept_as)
                return found

    def _settle_once(self, store: Conditional) -> Generator[Step, None, int]:
        """Bring over, under conditions, what the old version has and the new one does not; return how much it was.

        Two writes cannot be told apart and are decided for the new version (docs/design.md): a point that was never
        copied and was deleted after the swap comes back; a payload set on a copied point after the swap is overwritten
        where the old one was changed just before it.
        """
        at, found, after = self.at, 0, None
        while True:
            points, after = self.store.scroll(at.source, after=after, limit=COMPARED)
            copies = {one.id: one for one in self.store.fetch(at.target, [point.id for point in points])}
            unknown = set(self.known.unknown([point.id for point in points if point.id not in copies]))
            fresh = [point for point in points if point.id in unknown]
            late = [p for p in points if (copy := copies.get(p.id)) and self._is_late(p, copy)]
            for some, only in ((fresh, Only.NEW), (late, Only.MARKED)):
                if some:
                    rewrites, bare = self._rewrites(some, is_paced=True)
                    keeps = self._keeps_vectors
                    store.transfer_if(
                        at.source, at.target, rewrites, bare, mark=at.target, only=only, keeps_vectors=keeps
                    )
                    self.known.copied([point.id for point in some])
            found += len(fresh) + len(late)
            yield self.step("bringing over the last writes")
            if after is None:
                break
        while True:
            points, after = self.store.scroll(at.target, after=after, limit=COMPARED)
            copied = [point.id for point in points if self._is_copy(point)]
            there = {one.id for one in self.store.fetch(at.source, copied)}
            if gone := [one for one in copied if one not in there]:
                store.delete_if(at.target, gone, mark=at.target)
                self.known.gone(gone)
            found += len(gone)
            yield self.step("bringing over the last writes")
            if after is None:
                at.again += found
                return found

    def _is_copy(self, point: Point) -> bool:
        mark = point.payload.get(STAMP_KEY)
        return isinstance(mark, dict) and mark.get(COPIED_KEY) == self.at.target

    def _is_late(self, point: Point, copy: Point) -> bool:
        """Say whether a point of the old version was changed after its copy, which nobody has written since.

        A copy that differs from what it was made of, and that is as before, had its payload set in the new version.
        """
        if not self._is_copy(copy) or not self._differs(point, copy):
            return False
        return bool(copy.payload[STAMP_KEY].get(AS_KEY) != of_payload(point.payload))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def refused(self) -> Outcome:
        reason = f"the new version was not swapped in: {self.at.verdict}"
        return self._outcome({"success": False, "swapped": False, "error_message": reason})

    def done(self) -> Outcome:
        at = self.at
        return self._outcome(
            {
                "success": True,
                "swapped": True,
                "served": at.target,
                "kept": at.source,
                "kept_as": at.kept_as,
                "kept_until": at.kept_until_at,
                "error_message": None,
            }
        )

    def _outcome(self, end: dict[str, Any]) -> Outcome:
        at = self.at
        at.elapsed_s = self.before_s + self.tools.clock() - self.began_at
        before, after = at.figures.get("ndcg_before"), at.figures.get("ndcg_after")
        is_measured = before is not None and after is not None
        result = {
            "collection_name": self.job.collection,
            "how": "shadow",
            "documents_processed": at.seen,
            "documents_embedded": at.embedded,
            "documents_unchanged": 0,
            "documents_without_text": at.without_text,
            "documents_changed_meanwhile": at.again,
            "writes_held_ms": at.hold_ms,
            "writes_slowed_to_per_s": at.slowed_to,
            "processing_time_seconds": at.elapsed_s,
            "model": self.maker.model,
            "gate": at.verdict,
            "gate_figures": at.figures,
            "quality_metric": "nDCG@10" if is_measured else None,
            "quality_before": before,
            "quality_after": after,
            "quality_improvement": None if before is None or after is None else after - before,
        } | end
        return Outcome(
            result=result,
            metric="nDCG@10" if is_measured else None,
            before_score=before,
            after_score=after,
        )
