"""Owns how a collection is to be re-indexed: what its stamps and a sample of its vectors say, and the plan made of that.

stamps of the configured model ─▶ in place: only what changed
no stamps, vectors are the model's ─▶ in place: stamps alone (adopted)
stamps of another model, or a rebuild ─▶ shadow and swap
no stamps, vectors of an unknown model ─▶ refused: an application may depend on them
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ..ipc.errors import SwapImpossible, VectorSizeMismatch
from ..ipc.records import CollectionInfo, Point, PointId, TaskProgress
from .fingerprint import is_stamped, maker_of
from .task import Step, Tools
from .texts import Maker, text_of

SAMPLED = 64  # all of them are the model's: then, at 95 %, at most 4.6 % of the rest are not (1 - 0.05^(1/64))
SAME = 0.999  # cosine above which two vectors are the same text's and model's; other hardware rounds within 1e-5
FIELDS = 3  # other fields that vectors may be of
SURVEY_PAGE = 256  # points read at once: only payloads


class Plan(StrEnum):
    IN_PLACE = "in_place"  # embed what is stale where it is
    ADOPT = "adopt"  # the same, and stamp what has no stamp without embedding it
    SHADOW = "shadow"  # build the next version beside it, and swap


@dataclass(slots=True)
class Survey:
    with_text: int = 0
    unstamped: int = 0
    makers: Counter[tuple[str, str]] = field(default_factory=Counter)  # (model, revision) of stamped points
    sample: list[PointId] = field(default_factory=list)  # of those without a stamp
    matched: int = 0  # of the sample: their vector is that of their text by the configured model
    related: int = 0  # the same, or that of another of their texts, such as a title: it is the same model's
    distinct: int = 0  # vectors in the sample: where there is one, it stands in for those that are still to be made
    alike: int = 0  # points of the sample with the most common vector, if more than one has it

    @property
    def is_strange(self) -> bool:
        """Say whether most of the sample are vectors of another model's.

        A stand-in counts as nobody's: a first run that was cut off between some vectors and their stamps leaves both.
        """
        return self.distinct > 1 and (self.related + self.alike) * 2 < len(self.sample)

    def made_by(self, maker: Maker) -> str:
        """Return the name of the model that made most vectors; "" where it is not known."""
        if self.makers:
            return self.makers.most_common(1)[0][0][0]
        return maker.model if self.related * 2 > len(self.sample) else ""


def surveyed(collection: str, tools: Tools, info: CollectionInfo) -> Generator[Step, None, Survey]:
    """Read all payloads; then embed a sample of the points that have no stamp and compare it with their vectors."""
    survey, chosen = Survey(), random.Random(0)
    text_field, after, seen = tools.settings.model.text_field, None, 0
    while True:
        tools.pace()
        points, after = tools.store.scroll(collection, after=after, limit=SURVEY_PAGE)
        for point in points:
            if text_of(point, text_field) is None:
                continue
            survey.with_text += 1
            if not is_stamped(point.payload):
                survey.unstamped += 1
                _keep_fairly(survey.sample, point.id, survey.unstamped, chosen)
            else:
                survey.makers[maker_of(point.payload)] += 1
        seen += len(points)
        yield Step(TaskProgress(done=seen, total=max(info.points, seen), note="looking at what there is"))
        if after is None:
            break
    if survey.sample and info.vector_size == tools.embedder.size:
        _look_at(survey, collection, tools)
    return survey


def _keep_fairly(sample: list[PointId], one: PointId, seen: int, chosen: random.Random) -> None:
    """Keep a uniform sample of a stream whose length is not known (Vitter 1985, algorithm R)."""
    if len(sample) < SAMPLED:
        sample.append(one)
    elif (place := chosen.randrange(seen)) < SAMPLED:
        sample[place] = one


def _look_at(survey: Survey, collection: str, tools: Tools) -> None:
    """Count how many sampled points have the vector of their text, or else of another field: then it is the same model."""
    points = tools.store.fetch(collection, survey.sample, with_vectors=True)
    held = Counter(point.vector for point in points)
    survey.distinct = len(held)
    survey.alike = max((count for count in held.values() if count > 1), default=0)
    if survey.alike == len(points):
        return  # one vector for all of them is no text's: nothing to compare with
    survey.matched = survey.related = _matching(points, tools.settings.model.text_field, tools)
    if survey.distinct > 1 and survey.matched * 2 < len(points):
        texts = Counter(key for point in points for key, value in point.payload.items() if isinstance(value, str))
        others = [key for key, _ in texts.most_common(FIELDS + 1) if key != tools.settings.model.text_field]
        survey.related = max((_matching(points, key, tools) for key in others[:FIELDS]), default=0)


def _matching(points: Sequence[Point], text_field: str, tools: Tools) -> int:
    """Return how many of some points have the vector of one of their texts."""
    held = [(text, p.vector) for p in points if (text := text_of(p, text_field)) is not None and p.vector is not None]
    if not held:
        return 0
    made = tools.embedder.embed([text for text, _ in held], pace=tools.pace)
    there = np.stack([np.frombuffer(vector, dtype="<f4") for _, vector in held])
    norms = np.linalg.norm(there, axis=1) * np.linalg.norm(made, axis=1)
    cosines = (there * made).sum(axis=1) / np.maximum(norms, 1e-12)
    return int((cosines >= SAME).sum())


def is_plain(collection: str, tools: Tools) -> bool:
    """Say whether the first page shows a collection that is ours already: all stamped by the configured model."""
    maker = tools.maker
    points, _ = tools.store.scroll(collection, limit=tools.settings.scroll_size)
    with_text = [point for point in points if text_of(point, tools.settings.model.text_field) is not None]
    return all(maker_of(point.payload) == (maker.model, maker.revision) for point in with_text)


def is_ours(collection: str, tools: Tools) -> bool:
    """Say the same of a collection that may have new points, without a stamp, on its first page: not of them alone."""
    maker = tools.maker
    points, _ = tools.store.scroll(collection, limit=tools.settings.scroll_size)
    makers = {maker_of(point.payload) for point in points if is_stamped(point.payload)}
    return makers == {(maker.model, maker.revision)}


def plan_of(
    survey: Survey,
    info: CollectionInfo,
    maker: Maker,
    size: int,
    *,
    is_rebuild: bool,
    is_swappable: bool,
    may_mix: bool,
    distance: str = "",
) -> Plan:
    """Return how to re-index. `size`: of the configured model's vectors. `may_mix`: two models' vectors for a while.

    Raises VectorSizeMismatch and SwapImpossible where it cannot be done without asking, with what can be asked for.
    """
    same = survey.makers[maker.model, maker.revision]
    others = sum(survey.makers.values()) - same
    strange = sum(count for (model, _), count in survey.makers.items() if model != maker.model)
    is_another_shape = info.vector_size != size or distance not in ("", info.distance)
    is_known = others > 0 or same > 0  # we have made vectors of it before: which model it has is our doing
    if info.vector_size != size and not (is_known or is_rebuild):
        raise VectorSizeMismatch(
            f"{info.name!r} has vectors of {info.vector_size} dimensions, the model {maker.model!r} makes {size}: set"
            " [model] name to the model that made them, or have all vectors made anew with force_rebuild"
        )
    has_placeholders = survey.distinct <= 1 and not is_known and not is_another_shape
    if has_placeholders:
        return Plan.IN_PLACE  # nobody depends on them
    if is_rebuild or is_another_shape or others > max(same, survey.unstamped):
        if is_swappable:
            return Plan.SHADOW
        # of another revision of the same model: its weights are gone, and searches use the new ones already
        if not is_another_shape and (may_mix or not strange):
            return Plan.IN_PLACE
        raise SwapImpossible(
            f"{info.name!r} is addressed by its own name, so a version with other vectors cannot take its place without a"
            f" gap: `morgan-background adopt-alias {info.name}` makes an alias of it (searches fail for some milliseconds)"
            + (
                ""
                if is_another_shape
                else "; or allow_mixed embeds in place: until it is through, searches mix two models"
            )
        )
    if survey.unstamped and survey.matched == len(survey.sample) > 0:
        return Plan.ADOPT
    if survey.unstamped > same + others and survey.is_strange:
        raise VectorSizeMismatch(
            f"the vectors of {info.name!r} are not of the model {maker.model!r}: of {len(survey.sample)} sampled points"
            f" {survey.related} have the vector of one of their texts. Set [model] name to the model that made them, or have all"
            " vectors made anew with force_rebuild"
        )
    return Plan.IN_PLACE
