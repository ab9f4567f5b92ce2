"""The picture of quality over time, as it is in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import pytest

from morgan.background.cli import quality_plot
from morgan.background.cli.plot import DPI
from morgan.background.ipc.durations import bucket_of
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.records import Measure
from morgan.background.supervisor import evidence
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.quality import DAY_S, Day, joined

TODAY = 20_000
NOW = TODAY * DAY_S + 3600.0


def found(days: int) -> dict[str, Any]:
    """Return a report in which reranking, hits and feedback are better every day."""
    journal, rows = Journal(None), []
    for number in range(days):
        day = TODAY - days + 1 + number
        share = 30 + number
        measures = [
            Measure(
                query_text=f"q{n}",
                reranker="r",
                overlap=0.6,
                agreement=0.5,
                ndcg=(0.5, 0.5 + share / 100 + n / 999),
                mrr=(0, 0),
            )
            for n in range(25)
        ]
        journal.quality.add_measures("docs", measures, day * DAY_S)
        journal.quality.sum_up(day * DAY_S)
        rows += [
            Day(day, "", lookups=100, hits=share, served={bucket_of(1e-5): 40}),
            Day(day, "docs", positive=share, negative=30, hits=share, searches=70, computed={bucket_of(0.2): 70}),
        ]
    since = evidence.first_day(NOW, days)
    report = evidence.report(joined(rows), [], [], since=since, now=NOW)
    report["history"] = evidence.history(joined(rows), journal.quality.measured_days(0))
    journal.close()
    return report


def test_every_figure_has_a_panel_with_a_line_for_each_collection(tmp_path: Path) -> None:
    report = found(10)
    panels = quality_plot.panels_of(report["history"])
    drawn = {title.partition(" ")[0]: lines for title, _, lines in panels}
    assert {title: sorted(lines) for title, lines in drawn.items()} == {
        "Change": ["docs, r"],
        "Rank": ["docs, r"],
        "Searches": ["all searches", "docs"],
        "Median": ["docs, computed", "served from the store"],
        "Feedback": ["docs"],
    }
    _, values, low, high = drawn["Feedback"]["docs"]
    assert len(values) == 10
    assert values == sorted(values)
    assert all(a < b < c for a, b, c in zip(low, values, high, strict=True))
    quality_plot.draw(report, tmp_path / "a.png")
    quality_plot.draw(found(0) | {"since": NOW - DAY_S}, tmp_path / "none.png")
    full, empty = (np.asarray(matplotlib.image.imread(tmp_path / name))[..., :3] for name in ("a.png", "none.png"))
    assert full.shape == (round(quality_plot.SIZE_INCHES[1] * DPI), round(quality_plot.SIZE_INCHES[0] * DPI), 3)
    dark = [float((image.mean(axis=2) < 0.9).mean()) for image in (full, empty)]
    assert dark[0] > 1.3 * dark[1]


def test_a_picture_of_quality_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        quality_plot.draw(found(0) | {"since": NOW - DAY_S}, tmp_path / "nowhere" / "a.png")
