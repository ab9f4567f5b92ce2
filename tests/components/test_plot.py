"""The picture of the governor's decisions, as it is in the file; and what is said where it cannot be drawn."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import matplotlib.image  # type: ignore[import-not-found,unused-ignore]
import msgspec
import numpy as np
import pytest

from morgan.background.cli import governor, plot
from morgan.background.ipc import launch
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.messages import DecisionList
from morgan.background.ipc.records import DecisionRow, Spread

BERLIN = ZoneInfo("Europe/Berlin")
UNTIL = datetime(2026, 11, 25, 14, 30, tzinfo=BERLIN).timestamp()
DAY_S = 86400.0


def steady(share: float) -> Spread:
    return Spread(mean=share, peak=share)


def row(started_at: float, budget: float = 0.2, own: float = 0.15, **changed: Any) -> DecisionRow:
    one = DecisionRow(
        started_at=started_at,
        seconds=60.0,
        is_admitting=budget > 0,
        reason="active hours (09-18): 30 % of the machine",
        is_change=False,
        changes=0,
        admitted=float(budget > 0),
        budget=steady(budget),
        limit=steady(0.3),
        own=steady(own),
        others=steady(0.3 - budget),
        memory=steady(0.5),
        query_rate=steady(0.0),
    )
    return msgspec.structs.replace(one, **changed)


def found(*rows: DecisionRow) -> DecisionList:
    hours = {"active_start_h": 9, "active_end_h": 18, "quiet_start_h": 22, "quiet_end_h": 6}
    return DecisionList(decisions=rows, zone="Europe/Berlin", **hours)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Return the picture's colours, 0..255."""
    return np.rint(255 * np.asarray(matplotlib.image.imread(path))[..., :3]).astype(int)


def share_of(image: np.ndarray[Any, Any], color: str) -> float:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return float((image == wanted).all(axis=-1).mean())


def test_a_day_is_drawn_with_own_use_others_use_and_the_shaded_hours(tmp_path: Path) -> None:
    rows = [row(UNTIL - DAY_S + 60 * minute) for minute in range(1440)]
    plot.draw(found(*rows), UNTIL - DAY_S, UNTIL, tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    assert image.shape == (round(plot.SIZE_INCHES[1] * plot.DPI), round(plot.SIZE_INCHES[0] * plot.DPI), 3)
    for color, least in ((plot.OWN, 0.08), (plot.OTHERS, 0.05), (plot.ACTIVE, 0.15), (plot.QUIET, 0.15)):
        assert share_of(image, color) > least, color
    # nothing is known of the night: it is not drawn as a machine without use
    night = [one for one in rows if datetime.fromtimestamp(one.started_at, BERLIN).hour not in range(1, 5)]
    plot.draw(found(*night), UNTIL - DAY_S, UNTIL, tmp_path / "b.png")
    ratio = share_of(pixels(tmp_path / "b.png"), plot.OWN) / share_of(image, plot.OWN)
    assert ratio == pytest.approx(20 / 24, abs=0.02)


def test_a_plot_without_rows_and_one_of_a_minute_are_drawn(tmp_path: Path) -> None:
    plot.draw(found(), UNTIL - DAY_S, UNTIL, tmp_path / "none.png")
    assert share_of(pixels(tmp_path / "none.png"), plot.QUIET) > 0.15
    plot.draw(found(row(UNTIL - 60)), UNTIL - 60, UNTIL, tmp_path / "one.png")
    assert share_of(pixels(tmp_path / "one.png"), plot.OWN) > 0.05


def test_a_picture_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        plot.draw(found(), UNTIL - DAY_S, UNTIL, tmp_path / "nowhere" / "a.png")


def test_active_hours_are_those_of_the_zones_clock_also_where_it_is_set_back() -> None:
    begin = datetime(2026, 10, 24, 12, tzinfo=BERLIN).timestamp()
    cut = list(plot.spans(begin, begin + 2 * DAY_S, 22, 6, BERLIN))
    shown = [tuple(f"{datetime.fromtimestamp(at, BERLIN):%d %H:%M}" for at in span) for span in cut]
    assert shown == [("24 22:00", "25 06:00"), ("25 22:00", "26 06:00")]
    assert [end - start for start, end in cut] == [9 * 3600, 8 * 3600]
    inside = datetime(2026, 11, 25, 10, tzinfo=BERLIN).timestamp()
    assert list(plot.spans(inside, inside + 60, 9, 18, BERLIN)) == [(inside, inside + 60)]
    assert list(plot.spans(inside, inside + 60, 22, 6, BERLIN)) == []


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    # a Python that does not find it, as one it is not installed for
    script = (
        "import sys; sys.modules['matplotlib'] = None; from morgan.background.cli.parser import main;"
        " sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "governor", "--plot", str(tmp_path / "a.png")]
    folders = ["--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path)]
    done = subprocess.run([*command, *folders], env=launch.environment({}), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'morgan-background[plot]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_decided_is_said_in_a_paragraph_for_each_stretch_of_time() -> None:
    rows = [
        row(UNTIL),
        row(UNTIL + 60, own=0.05),
        row(UNTIL + 120, 0.0, 0.0, is_change=True, changes=1, reason="memory is 91 % used"),
        row(UNTIL + 180, 0.0, 0.0, changes=7, admitted=0.5, reason="memory is 87 % used"),
        row(UNTIL + 7200, 0.0, 0.0),  # the service was away
    ]
    said = [governor.words(stretch, BERLIN).splitlines() for stretch in governor.stretches(rows)]
    assert [lines[0] for lines in said] == [
        "2026-11-25 14:30:00  tasks may begin for 2 min 00 s: active hours (09-18): 30 % of the machine",
        "2026-11-25 14:32:00  no tasks for 2 min 00 s: memory is 91 % used",
        "2026-11-25 16:30:00  no tasks for 1 min 00 s: active hours (09-18): 30 % of the machine",
    ]
    assert said[0][1:] == ["    budget 20 % of the machine, used 10 % (at most 15 %), others 10 %, memory 50 %"]
    assert said[1][2:] == ["    it changed 7 times: tasks might begin 25 % of the time"]


def test_a_stretch_ends_where_there_is_another_reason_also_where_that_change_had_no_row_of_its_own() -> None:
    battery = "the machine runs on its battery: nothing runs until it is plugged in"
    reasons = ["memory is 91 % used", "memory is 84 % used", battery, battery]
    rows = [row(UNTIL + 60 * number, 0.0, 0.0, reason=reason) for number, reason in enumerate(reasons)]
    said = [governor.words(stretch, BERLIN).splitlines()[0] for stretch in governor.stretches(rows)]
    assert said == [
        f"2026-11-25 14:30:00  no tasks for 2 min 00 s: {reasons[0]}",
        f"2026-11-25 14:32:00  no tasks for 2 min 00 s: {battery}",
    ]
