"""Owns what is proposed for an index from what was measured of it. Pure: tuning.py measures and applies.

Nothing is proposed that was not measured; what could not be is said in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ipc.records import CollectionInfo, IndexInfo, IndexSettings

FASTER = 0.9  # of the median now: a shallower search that saves less is not worth a change
QUANTISED_LOSS = 0.005  # of recall@10 that int8 vectors may cost, with rescoring
LARGE_BYTES = 256 * 1024 * 1024  # of vectors, from which a quarter of them in memory is worth proposing


@dataclass(frozen=True, slots=True)
class Depth:
    """What a search of the collection does with one `ef`; 0 is as it is configured."""

    ef: int
    recall: float  # mean recall@10 against exact search
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What a graph of other settings does on a sample of the vectors, all searched with one `ef`."""

    m: int
    ef_construct: int
    is_int8: bool  # quantised, with rescoring from the original vectors
    recall: float
    p50_ms: float
    build_s: float


@dataclass(frozen=True, slots=True)
class Filtered:
    """Searches that filter by a field without a payload index."""

    field: str
    kind: str  # of the index that its values need
    uses: int  # searches since the owner was started; 0 where it was named by hand
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Proposals:
    """`settings` and `payload` can be applied; `by_hand` cannot. All with their reasons in words."""

    settings: IndexSettings
    payload: Mapping[str, str]
    reasons: tuple[str, ...]
    by_hand: tuple[str, ...]
    notes: tuple[str, ...]


def propose(
    info: CollectionInfo,
    index: IndexInfo,
    depths: Sequence[Depth],
    trials: Sequence[Trial],
    filtered: Sequence[Filtered],
    recall_goal: float,
) -> Proposals:
    """Return what to change for recall@10 to reach `recall_goal` at the least latency.

    `depths` holds the row of ef 0 and others; `trials` begins with the graph as it is now, or is empty.
    """
    reasons, by_hand, notes = [], [], []
    settings = IndexSettings()
    if not index.indexed_vectors:
        notes.append("there is no graph: every search is exact, so that there is no depth to tune")
    elif depths:
        settings, reason = _depth(depths, recall_goal)
        if reason:
            reasons.append(reason)
        elif max(row.recall for row in depths) < recall_goal:
            settings, said = _graph(depths, trials, recall_goal)
            (reasons if settings != IndexSettings() else notes).append(said)
    by_hand += _int8(info, trials)
    if index.indexed_vectors and not trials:
        notes.append("other graphs and int8 vectors were not measured")
    payload = {one.field: one.kind for one in filtered}
    reasons += [
        f"index {one.field!r} as {one.kind}: a search that filters by it takes {one.p50_ms:.2f} ms at the median without,"
        f" and {one.uses} did since the owner was started"
        for one in filtered
    ]
    return Proposals(settings, payload, tuple(reasons), tuple(by_hand), tuple(notes))


def _depth(depths: Sequence[Depth], goal: float) -> tuple[IndexSettings, str]:
    """Return the shallowest search that reaches the goal, unless the one in use does and it saves little."""
    now = next(row for row in depths if row.ef == 0)
    reaching = sorted((row for row in depths if row.ef and row.recall >= goal), key=lambda row: row.ef)
    if not reaching:
        return IndexSettings(), ""
    best = reaching[0]
    if now.recall >= goal and best.p50_ms > FASTER * now.p50_ms:
        return IndexSettings(), ""
    return (
        IndexSettings(ef=best.ef),
        f"search with ef {best.ef}: recall@10 {best.recall:.3f} at {best.p50_ms:.2f} ms,"
        f" now {now.recall:.3f} at {now.p50_ms:.2f} ms; the goal is {goal:g}",
    )


def _graph(depths: Sequence[Depth], trials: Sequence[Trial], goal: float) -> tuple[IndexSettings, str]:
    """Return another graph where no depth reaches the goal and a trial found more with it."""
    deepest = max(depths, key=lambda row: row.recall)
    short = f"no depth of search reaches recall@10 {goal:g}: the best is {deepest.recall:.3f} at ef {deepest.ef}"
    plain = [trial for trial in trials if not trial.is_int8]
    better = [trial for trial in plain[1:] if trial.recall > plain[0].recall]
    if not better:
        return IndexSettings(), f"{short}, and no other graph that was tried on a sample finds more"
    best = max(better, key=lambda trial: trial.recall)
    return (
        IndexSettings(m=best.m, ef_construct=best.ef_construct),
        f"{short}. On a sample a graph of m {best.m} and ef_construct {best.ef_construct} has {best.recall:.3f} where the"
        f" one in use has {plain[0].recall:.3f}",
    )


def _int8(info: CollectionInfo, trials: Sequence[Trial]) -> list[str]:
    size = info.points * info.vector_size * 4
    quantised = next((trial for trial in trials if trial.is_int8), None)
    if quantised is None or size < LARGE_BYTES or quantised.recall < trials[0].recall - QUANTISED_LOSS:
        return []
    return [
        f"int8 vectors in memory, {size // 4 // 2**20} instead of {size // 2**20} MiB with the originals on disk: on a"
        f" sample recall@10 is {quantised.recall:.3f} with rescoring, {trials[0].recall:.3f} without quantisation; each"
        " search must ask for rescoring"
    ]
