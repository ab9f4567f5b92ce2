"""Owns the picture of quality over time: nDCG before and after, rank agreement, hit rate, response times, satisfaction.

matplotlib is imported late: see plot.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..ipc.errors import InvalidArgument
from .plot import DAY_S, DPI

SIZE_INCHES = (11.0, 12.0)
LINES = ("-", "--", ":", "-.")  # collections are told apart by them, and by the lightness of
GREYS = ("#000000", "#707070", "#a8a8a8")
ALL = "all searches"

Series = tuple[list[float], list[float], list[float], list[float]]  # days, values, low and high ends


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a quality report into a PNG file: a point a day with its interval, where there was enough to conclude from.

    Raises InvalidArgument where it cannot be written.
    """
    from matplotlib import dates
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display is asked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(5, 1, sharex=True)
    for axes, (title, label, drawn) in zip(panels, panels_of(found["history"]), strict=True):
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set_ylabel(label, fontsize="small")
        for number, (name, (days, values, low, high)) in enumerate(sorted(drawn.items())):
            line, grey = LINES[number % len(LINES)], GREYS[number % len(GREYS)]
            axes.vlines(days, low, high, color=grey, linewidth=0.8)  # a band would show nothing of a single day
            axes.plot(days, values, linestyle=line, color=grey, marker=".", label=name)
        if not drawn:
            axes.text(0.5, 0.5, "not enough yet on any one day", transform=axes.transAxes, ha="center", color="#707070")
        else:
            axes.legend(fontsize="x-small", frameon=False)
        axes.grid(axis="y", color="#909090", linewidth=0.4)
    panels[3].set_yscale("log")
    axes = panels[-1]
    axes.set_xlim(found["since"] / DAY_S, math.floor(found["until"] / DAY_S) + 1)
    locator = dates.AutoDateLocator(minticks=3, maxticks=13)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("day (UTC)")
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from error


def panels_of(history: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, dict[str, Series]]]:
    """Return for each panel its title, its unit and its lines by name."""
    change: dict[str, Series] = {}
    alike: dict[str, Series] = {}
    hit_rate: dict[str, Series] = {}
    times: dict[str, Series] = {}
    happy: dict[str, Series] = {}
    for row in history:
        at, name = (row["day_at"] + DAY_S / 2) / DAY_S, row["collection_name"] or ALL
        for one in row["measured"]:
            label = f"{name}, {one['reranker']}"
            _add(change, label, at, one["judged"].get("nDCG@10"))
            _add(alike, label, at, one["agreement"].get("overlap@10"))
        _add(hit_rate, name, at, row["hit_rate"])
        _add(happy, name, at, row["satisfaction"])
        if (p50_s := row["p50_s"]) is not None:
            label = "served from the store" if name == ALL else f"{name}, computed"
            _add(times, label, at, {"value": p50_s, "low": p50_s, "high": p50_s})
    return [
        ("Change of nDCG@10 by reranking, on judged queries", "after - before", change),
        ("Rank agreement: the reranker's first ten against the vector search's (not a gain)", "share in common", alike),
        ("Searches answered from the store", "share", hit_rate),
        ("Median response time", "s", times),
        ("Feedback that was positive", "share", happy),
    ]


def _add(lines: dict[str, Series], name: str, at: float, found: Mapping[str, float] | None) -> None:
    if found is None:
        return
    days, values, low, high = lines.setdefault(name, ([], [], [], []))
    days.append(at)
    values.append(found["value"])
    low.append(found["low"])
    high.append(found["high"])
