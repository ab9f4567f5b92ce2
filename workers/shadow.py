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
from typing import Any

from ..ipc.errors import StoreUnavailable, TextFieldNotFound
from ..ipc.records import CollectionInfo, Point, PointId
from .changes import anything, names_of
from .chase import HOLD_S, Chase, Move, Round
from .copying import FEW, Copying
from .in_place import no_text
from .judging import compared
from .lending import Lending, build_index
from .pipeline import Piece, piece_size, pieces, takes_threads
from .rebuilds import Phase, Shadow
from .rollback import drop_expired
from .task import Job, Outcome, Step, Steps, Tools
from .texts import Maker, note_fields, text_of
from .vectors import Conditional, Rewrite
from .versions import base_of, building_alias, free_kept_alias, kept_versions, next_version, own_name, serving_aliases
from .watches import Touched
from .write_gate import NoGate

log = logging.getLogger(__name__)

PASSES = 8  # comparisons of both versions before the swap, and after it, where nobody tells what was touched
QUIET_PASSES = 2  # empty ones in a row: then no write is on its way to the old version any more


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


class _Rebuild(Copying):
    """The steps, each from where the one before it left."""

    # --- steps --------------------------------------------------------------------------------------------------------

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
