"""Owns how points get from one version of a collection into the next: embedded and copied, compared, brought over late."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from ..ipc.records import Point, PointId, TaskProgress
from .fingerprint import of_payload
from .in_place import eta_s
from .known import KnownIds
from .rebuilds import Phase, Shadow
from .rollback import own_payload
from .task import Job, Step, Tools
from .texts import Maker, sort, text_of
from .vectors import AS_KEY, COPIED_KEY, STAMP_KEY, Conditional, Only, Rewrite
from .write_gate import NoGate

COMPARED = 256  # points compared in one call
FEW = 16  # touched points: with so few left the swap is tried, and they are copied without pauses
ROUNDS = 8  # of copying what was touched: from there on it has to get less each time
SLOW_S = 5.0  # for which writes are slowed at once; asked for again with each page of points


class Copying:
    """What a rebuild does again and again, in every phase."""

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

    def _slow(self, points_per_s: float) -> None:
        """Have writes slowed, or slowed for longer; 0: no more. It ends by itself where this process does."""
        self.slowed_to = points_per_s
        self.at.slowed_to = points_per_s or self.at.slowed_to
        self.gate.slow(self.at.token, SLOW_S, points_per_s)

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
