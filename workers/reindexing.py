"""Owns the re-index task: looks at a collection, decides how, and goes on where an earlier attempt was left."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import cast

import msgspec

from ..ipc.errors import InvalidArgument
from ..ipc.records import CollectionInfo, IndexSettings, TaskProgress
from .in_place import InPlace, refresh
from .rebuilds import Shadow
from .rollback import drop_expired
from .shadow import rebuild
from .survey import Plan, Survey, is_ours, is_plain, plan_of, surveyed
from .task import Job, Outcome, Step, Steps, Tools
from .vectors import MADE_BY_KEY, Tunable
from .versions import serving_aliases

INDEXED_POINTS = 20_000  # up to here the embedded engine makes the index of stamps in 0.6 s; searches wait meanwhile

UNKNOWN_MODEL = (
    "no stamp says which model made the vectors of {name!r}, so a rebuilt index cannot be compared with it: have it made"
    " without comparison with without_gate"
)


@dataclass(frozen=True, slots=True)
class Planned:
    plan: Plan
    survey: Survey | None = None  # None: the first page said enough


def reindex(job: Job, tools: Tools) -> Steps:
    """Re-index `job.collection`.

    Params: force_rebuild embeds every point that has a text; distance rebuilds with another one; without_gate swaps
    without comparing the versions; allow_mixed embeds another model's vectors in place where no swap is possible;
    only_new looks at the points alone that no re-index has seen, in a collection that is the configured model's already.

    Raises CollectionNotFound, VectorSizeMismatch, SwapImpossible, TextFieldNotFound, each with what can be done.
    """
    info = tools.store.info(job.collection)
    made_for = f"{info.name} {tools.maker}"
    at = _checkpoint(job, made_for, tools)
    if at is None:
        if info.points == 0:
            return Outcome(result=_skipped(job, "empty"), is_skipped=True)
        if job.params.get("only_new"):
            return (yield from new_points(job, tools, info, made_for))
        at = _begin(job, made_for, tools, (yield from planned(job, tools, info)))
        if isinstance(at, InPlace) and at.is_adopting:  # once the first page is stamped, this is not seen again
            yield Step(TaskProgress(done=0, total=info.points, note="adopting vectors"), msgspec.to_builtins(at))
    if isinstance(at, Shadow):
        return (yield from rebuild(job, tools, info, tools.maker, at))
    drop_expired(tools.store, tools.clock())
    return (yield from refresh(job, tools, info, tools.maker, at))


def _checkpoint(job: Job, made_for: str, tools: Tools) -> InPlace | Shadow | None:
    """Return where the last attempt was left, if it was at the same work."""
    if not job.checkpoint:
        return None
    at = msgspec.convert(job.checkpoint, InPlace | Shadow)
    if at.made_for == made_for:
        return at
    # after a swap the name means another collection: the checkpoint's own
    served = next(
        (info for info in tools.store.collections() if isinstance(at, Shadow) and info.name == at.target), None
    )
    return at if isinstance(at, Shadow) and served is not None and at.base in served.aliases else None


def planned(job: Job, tools: Tools, info: CollectionInfo) -> Generator[Step, None, Planned]:
    """Look at the collection and return how it is re-indexed. Raises what says why it cannot be."""
    is_rebuild, distance = bool(job.params.get("force_rebuild")), str(job.params.get("distance", ""))
    is_same_shape = info.vector_size == tools.embedder.size and distance in ("", info.distance)
    if is_same_shape and not is_rebuild and is_plain(job.collection, tools):
        return Planned(Plan.IN_PLACE)
    survey = yield from surveyed(job.collection, tools, info)
    plan = plan_of(
        survey,
        info,
        tools.maker,
        tools.embedder.size,
        is_rebuild=is_rebuild,
        is_swappable=tools.store.can_rename or bool(serving_aliases(info)),
        may_mix=bool(job.params.get("allow_mixed")),
        distance=distance,
    )
    if plan is Plan.SHADOW and not job.params.get("without_gate") and not survey.made_by(tools.maker):
        raise InvalidArgument(UNKNOWN_MODEL.format(name=info.name))
    return Planned(plan, survey)


def _begin(job: Job, made_for: str, tools: Tools, planned: Planned) -> InPlace | Shadow:
    if planned.plan is Plan.SHADOW and planned.survey is not None:
        return Shadow(
            made_for=made_for,
            distance=str(job.params.get("distance", "")),
            old_model=planned.survey.made_by(tools.maker),
            is_judging=not job.params.get("without_gate"),
        )
    is_rebuild = bool(job.params.get("force_rebuild"))
    return InPlace(made_for=made_for, is_adopting=planned.plan is Plan.ADOPT, is_rebuild=is_rebuild)


def new_points(job: Job, tools: Tools, info: CollectionInfo, made_for: str) -> Steps:
    """Embed the points that no re-index has seen, found by an index of their stamps: the others are not read.

    A point whose text was changed with its stamp left on it is not among them: the full pass finds it.
    """
    if info.vector_size != tools.embedder.size or not is_ours(job.collection, tools):
        reason = "a full re-index comes first: it is not known to be the configured model's"
        return Outcome(result=_skipped(job, reason), is_skipped=True)
    store = cast(Tunable, tools.store)
    is_slow = tools.settings.store.is_embedded and info.points > INDEXED_POINTS
    if not is_slow and MADE_BY_KEY not in store.index_info(job.collection).payload:
        store.configure_index(job.collection, IndexSettings(), {MADE_BY_KEY: "keyword"})
    return (yield from refresh(job, tools, info, tools.maker, InPlace(made_for=made_for, is_new_only=True)))


def _skipped(job: Job, reason: str) -> dict[str, object]:
    return {
        "success": True,
        "collection_name": job.collection,
        "documents_processed": 0,
        "processing_time_seconds": 0.0,
        "reason": reason,
        "error_message": None,
    }
