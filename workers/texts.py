"""Owns which text a point is embedded from, and which stamp says that it was. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ipc.records import Point, PointId
from .fingerprint import fingerprint, is_stale, stamp


def text_of(point: Point, field: str) -> str | None:
    """Return the text a point is embedded from; None where it has none."""
    text = point.payload.get(field)
    return text if isinstance(text, str) and text.strip() else None


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes a vector: a model by its name and revision, and how documents were cut up before."""

    model: str
    revision: str
    chunking: str = ""

    def stamp(self, text: str) -> dict[str, str]:
        return stamp(fingerprint(text), self.model, self.revision, self.chunking)

    def made(self, point: Point, text: str) -> bool:
        """Say whether a point's stamp says that its vector is that of its text, made so."""
        return not is_stale(point.payload, self.stamp(text))


@dataclass(frozen=True, slots=True)
class Page:
    """Points by what is to be done with them."""

    texts: dict[PointId, str]
    stale: list[Point]  # have a text, and not its vector
    bare: list[Point]  # have no text


def sort(points: Sequence[Point], field: str, maker: Maker, *, is_rebuild: bool = False) -> Page:
    """Return which of `points` are to be embedded: all that have a text where `is_rebuild`."""
    texts = {point.id: text for point in points if (text := text_of(point, field)) is not None}
    stale = [p for p in points if p.id in texts and (is_rebuild or not maker.made(p, texts[p.id]))]
    return Page(texts, stale, [point for point in points if point.id not in texts])


def note_fields(longest: dict[str, int], points: Sequence[Point]) -> None:
    """Add up the lengths of the text fields seen, for the suggestion in an error."""
    for point in points:
        for name, value in point.payload.items():
            if isinstance(value, str):
                longest[name] = longest.get(name, 0) + len(value)
