"""Owns what a benchmark says: tables for people, one RESULT line for programs, and the facts of the machine it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

LIBRARIES = (
    "morgan-background",
    "msgspec",
    "numpy",
    "pyzmq",
    "xxhash",
    "torch",
    "sentence-transformers",
    "qdrant-client",
    "qdrant-edge-py",
)


class MissingInput(Exception):
    """What the benchmark works on is not at hand. The message says where it was looked for and how to get it."""


@dataclass(frozen=True, slots=True)
class Options:
    is_quick: bool = False
    data: Path | None = None
    model: Path | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and what it should be. `met` is None where it could not be measured; `why` then says so."""

    value: float | None
    goal: str
    met: bool | None
    why: str = ""

    @classmethod
    def at_least(cls, value: float | None, bound: float, why: str = "") -> Self:
        return cls(value, f">= {bound:g}", None if value is None else value >= bound, why)

    @classmethod
    def at_most(cls, value: float | None, bound: float, why: str = "") -> Self:
        return cls(value, f"<= {bound:g}", None if value is None else value <= bound, why)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a heading; the first column is left-aligned, the others right."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        grid = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in grid
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.heading, *(line.rstrip() for line in lines)])


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found. `figures` and `goals` go into the RESULT line, `notes` say how to read them."""

    bench: str
    tables: Sequence[Table]
    figures: Mapping[str, Any]
    goals: Mapping[str, Goal] = field(default_factory=dict)
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of peers


@dataclass(frozen=True, slots=True)
class Noise:
    """What the machine was doing: load average over a minute, and CPU time the hypervisor took (percent of all)."""

    at_s: float
    load: float
    stolen_ticks: int

    @classmethod
    def now(cls) -> Self:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return cls(time.monotonic(), os.getloadavg()[0], int(fields[8]))

    def until(self, end: Noise) -> dict[str, float]:
        ticks = (end.at_s - self.at_s) * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        return {
            "load_before": self.load,
            "load_after": end.load,
            "stolen_percent": 100 * (end.stolen_ticks - self.stolen_ticks) / ticks if ticks else 0.0,
        }


def machine(noise: Mapping[str, float], peers: Mapping[str, str]) -> dict[str, Any]:
    """Return what a reader needs to compare: CPU, cores, kernel, versions, and how busy the machine was."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES) | dict(peers),
        "noise": {name: round(value, 2) for name, value in noise.items()},
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Processor")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def show(result: Result, before: Noise, json_path: Path | None = None) -> None:
    """Print tables, goals, notes and machine, last the RESULT line; with `json_path`, its object goes there too."""
    facts = machine(before.until(Noise.now()), result.versions)
    found = {
        "bench": result.bench,
        "machine": facts,
        "figures": result.figures,
        "goals": {
            words: {"value": goal.value, "goal": goal.goal, "met": goal.met} | ({"why": goal.why} if goal.why else {})
            for words, goal in result.goals.items()
        },
    }
    for table in result.tables:
        print(f"\n{table.text()}")
    if result.goals:
        print(f"\n{goal_table(result.goals).text()}")
    noise = facts["noise"]
    print(
        f"\n{facts['cpu']}, {facts['usable_cores']} of {facts['cores']} cores, Linux {facts['kernel']}, Python"
        f" {facts['python']}; load {noise['load_before']:.2f} before, {noise['load_after']:.2f} after,"
        f" {noise['stolen_percent']:.1f} % stolen"
    )
    print(", ".join(f"{name} {version}" for name, version in facts["libraries"].items()))
    for note in result.notes:
        print(f"- {note}")
    line = json.dumps(found)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(line + "\n", encoding="utf-8")
    print(f"\nRESULT {line}")
    sys.stdout.flush()


def goal_table(goals: Mapping[str, Goal]) -> Table:
    words = {True: "met", False: "not met", None: "not measured"}
    rows = [
        (
            name,
            "-" if goal.value is None else f"{goal.value:.3g}",
            goal.goal,
            words[goal.met] + (f": {goal.why}" if goal.why else ""),
        )
        for name, goal in goals.items()
    ]
    return Table("Goals", ("goal", "value", "wanted", "verdict"), rows)
