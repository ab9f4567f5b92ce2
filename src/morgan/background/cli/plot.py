"""Owns the picture of the governor's decisions: CPU budget, own use, others' use and the limit over time.

matplotlib is imported late: it is an extra of its own, and nothing else needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from ..ipc.errors import InvalidArgument
from ..ipc.messages import DecisionList
from ..ipc.records import DecisionRow
from .governor import is_gap

SIZE_INCHES = (11.0, 5.0)
DPI = 120
DAY_S = 86400.0  # matplotlib counts dates in days since 1970, in UTC
# Told apart by lightness alone, since it may be printed in grey; the hours are lighter than what is drawn over them.
OWN, OTHERS = "#666666", "#b0b0b0"
ACTIVE, QUIET = "#fbf1e2", "#d5e1ee"


def check() -> None:
    """Raise InvalidArgument where this Python has no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidArgument(
            "--plot needs matplotlib, which is not installed here: pip install 'morgan-background[plot]';"
            " the service itself does not need it"
        ) from None


def draw(found: DecisionList, since: float, until: float, path: Path) -> None:
    """Draw the rows between two times (Unix seconds) into a PNG file. Raises InvalidArgument where it cannot be written."""
    from matplotlib import dates
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display is asked for
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    zone = ZoneInfo(found.zone)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = [Patch(facecolor=ACTIVE, label="active hours"), Patch(facecolor=QUIET, label="quiet hours")]
    for color, start_h, end_h in (
        (ACTIVE, found.active_start_h, found.active_end_h),
        (QUIET, found.quiet_start_h, found.quiet_end_h),
    ):
        for begin, end in spans(since, until, start_h, end_h, zone):
            axes.axvspan(begin / DAY_S, end / DAY_S, color=color, linewidth=0, zorder=0)
    at, figures = columns(found.decisions)
    times = [moment / DAY_S for moment in at]
    used = [own + others for own, others in zip(figures["own"], figures["others"], strict=True)]
    axes.fill_between(times, figures["own"], used, step="post", color=OTHERS, linewidth=0, label="others' use")
    axes.fill_between(times, 0, figures["own"], step="post", color=OWN, linewidth=0, label="own use")
    axes.step(times, figures["limit"], "k--", where="post", linewidth=1.0, label="limit, for everything together")
    axes.step(times, figures["budget"], "k-", where="post", linewidth=1.8, label="budget, for own use")
    axes.set_xlim(since / DAY_S, until / DAY_S)
    axes.set_ylim(0, 102)  # so that a limit of the whole machine is seen
    axes.set_ylabel("% of the machine's CPU")
    axes.set_xlabel(f"time ({found.zone})")
    axes.set_title("CPU budget of background work")
    locator = dates.AutoDateLocator(tz=zone, minticks=4, maxticks=13)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
    axes.grid(axis="y", color="#909090", linewidth=0.4)
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=[*handles, *shades], loc="outside lower center", ncols=6, fontsize="small", frameon=False)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from error


def columns(rows: tuple[DecisionRow, ...]) -> tuple[list[float], dict[str, list[float]]]:
    """Return times and, for each figure, its mean from that time on in percent; NaN where nothing is known."""
    names = ("own", "others", "limit", "budget")
    times: list[float] = []
    figures: dict[str, list[float]] = {name: [] for name in names}

    def ends(last: DecisionRow) -> None:
        times.extend([last.started_at + last.seconds] * 2)
        for name in names:  # twice: an area ends at the last value before a NaN, not at the NaN
            figures[name] += [figures[name][-1], math.nan]

    for before, row in zip((None, *rows), rows, strict=False):
        if before is not None and is_gap(before, row):
            ends(before)
        times.append(row.started_at)
        for name in names:
            figures[name].append(100 * getattr(row, name).mean)
    if rows:
        ends(rows[-1])
    return times, figures


def spans(since: float, until: float, start_h: int, end_h: int, zone: ZoneInfo) -> Iterator[tuple[float, float]]:
    """Yield when the hours from `start_h` to `end_h` of the zone's clock begin and end (Unix seconds), cut to the times."""
    day = datetime.fromtimestamp(since, zone).date() - timedelta(days=1)
    while True:
        begin = datetime(day.year, day.month, day.day, start_h % 24, tzinfo=zone)
        end_day = day if start_h < end_h else day + timedelta(days=1)
        end = datetime(end_day.year, end_day.month, end_day.day, end_h % 24, tzinfo=zone)
        if begin.timestamp() >= until:
            return
        if end.timestamp() > since:
            yield max(begin.timestamp(), since), min(end.timestamp(), until)
        day += timedelta(days=1)
