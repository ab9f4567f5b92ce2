"""`bench hitrate`: how often the result store would have had the answer, ours beside the policies one would use instead.

stream ─▶ policy of N entries ─▶ share of hits, in percent, after a warm-up of a quarter of the stream
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import policies
from ..measure import find_above
from ..policies import BELADY, LIBRARY, LRU, PEERS, Maker, Ours, OwnBelady, OwnLru, Stream, hit_percent, synthetic
from ..report import Goal, MissingInput, Options, Result, Table

NAME = "hitrate"
SUMMARY = "hit rate of what is kept and what leaves: ours, LRU, LFU, SIEVE, S3-FIFO, W-TinyLFU, ARC, Belady"

CAPACITIES = (300, 1000)
FOLDER = "shared/data/traces"
TRACE = "cache2k_web07.npz"
GET_IT = (
    "The trace is web07 of the cache2k benchmark (https://github.com/cache2k/cache2k-benchmark) as an .npz file whose array `q`"
    " holds the request's ids in order: name its folder with --data."
)
ONE_PER_S = 30.0  # the trace has no times: 76,118 requests are 26 days, as many as the longest half-life
OTHER_RATES_S = (10.0, 120.0)
REQUESTS, QUICK_REQUESTS = 60_000, 20_000
EXACT_REQUESTS, EXACT_CAPACITY = 12_000, 300  # ranking at every eviction is slow
WANTED = 0.5  # points above the best peer

OURS = "ours"
WMIX = "W-mix: sum of counts, window 20 %"
VARIANTS: Mapping[str, Maker] = {
    OURS: Ours(),
    "ours, window 20 %": Ours(window_share=0.2),
    "ours, counts of everything": Ours(queries=10**9),
    "ours, counts of 2 an entry": Ours(queries_an_entry=2),
    WMIX: Ours(is_learned=False, window_share=0.2),
    "W-mix: sum of counts, window 10 %": Ours(is_learned=False, window_share=0.1),
}
QUICK_VARIANTS = (OURS, WMIX)

Slot = tuple[str, int]  # stream, entries
Rates = dict[Slot, dict[str, float]]  # policy -> hits in percent


@dataclass(frozen=True, slots=True)
class Checks:
    """What the two shortcuts and the assumed rate change, in hits in percent."""

    exact: Mapping[str, tuple[float, float]]  # stream -> ours as it runs, ours ranking at every eviction
    rates: Mapping[tuple[float, int], float]  # (seconds a request, entries) -> ours on the trace


def run(options: Options) -> Result:
    streams = _streams(options)
    why_absent = policies.absent()
    began_s = time.process_time()
    found: Rates = {}
    for stream in streams:
        for capacity in CAPACITIES:
            found[stream.name, capacity] = {
                name: hit_percent(make, capacity, stream)
                for name, make in _makers(options.is_quick, why_absent is None).items()
            }
    checks = None if options.is_quick else _checks(streams)
    notes = _notes(options, streams, why_absent, time.process_time() - began_s)
    return Result(
        bench=NAME,
        tables=[_table(found), *([] if checks is None else _check_tables(checks))],
        figures=_figures(found, checks) | ({"not_measured": {LIBRARY: why_absent}} if why_absent else {}),
        goals=_goals(found, why_absent or ""),
        notes=notes,
        versions={} if why_absent else {LIBRARY: policies.library_version()},
    )


def _makers(is_quick: bool, has_library: bool) -> dict[str, Maker]:
    peers: dict[str, Maker] = {name: policies.peer(name) for name in PEERS} if has_library else {LRU: OwnLru}
    ours = {name: make for name, make in VARIANTS.items() if not is_quick or name in QUICK_VARIANTS}
    return ours | peers | {BELADY: OwnBelady}


def _streams(options: Options) -> list[Stream]:
    """Return the real trace and the synthetic ones."""
    folder = options.data or find_above(Path.cwd(), FOLDER)
    if folder is None or not (folder / TRACE).is_file():
        raise MissingInput(f"no {TRACE} in {folder or FOLDER + ' here or above'}. {GET_IT}")
    names = np.load(folder / TRACE)["q"].tolist()
    web = Stream("web07", names, []).at_rate(ONE_PER_S)
    count = QUICK_REQUESTS if options.is_quick else REQUESTS
    made = [
        synthetic("Zipf 0.9, drift", 101, count, ONE_PER_S, exponent=0.9, drift=0.05, bursts=0.0),
        synthetic("Zipf 0.9, bursts", 102, count, ONE_PER_S, exponent=0.9, drift=0.0, bursts=0.2),
        synthetic("Zipf 0.9, drift and bursts", 103, count, ONE_PER_S, exponent=0.9, drift=0.05, bursts=0.2),
        synthetic("Zipf 1.1, drift and bursts", 104, count, ONE_PER_S, exponent=1.1, drift=0.1, bursts=0.1),
    ]
    if options.is_quick:
        return [web.first(QUICK_REQUESTS), made[2]]
    return [web, *made]


def _checks(streams: list[Stream]) -> Checks:
    exact = {
        stream.name: (
            hit_percent(Ours(), EXACT_CAPACITY, stream.first(EXACT_REQUESTS)),
            hit_percent(Ours(refresh=0), EXACT_CAPACITY, stream.first(EXACT_REQUESTS)),
        )
        for stream in (streams[0], streams[3])
    }
    rates = {
        (rate_s, capacity): hit_percent(Ours(), capacity, streams[0].at_rate(rate_s))
        for rate_s in OTHER_RATES_S
        for capacity in CAPACITIES
    }
    return Checks(exact, rates)


# --- what the rates say -------------------------------------------------------------------------------------------------


def best_peer(rates: Mapping[str, float]) -> tuple[str, float] | None:
    """Return the best of the peers the goal names, Belady and ARC left out; None where they were not measured."""
    named = [(rate, name) for name, rate in rates.items() if name in PEERS and name != "ARC"]
    if {name for _, name in named} <= {LRU}:
        return None
    rate, name = max(named)
    return name, rate


def _goals(found: Rates, why: str) -> dict[str, Goal]:
    goals = {}
    for (stream, capacity), rates in found.items():
        best = best_peer(rates)
        ahead = None if best is None else rates[OURS] - best[1]
        goals[f"hit rate above the best peer but Belady, {stream}, {capacity} entries, in points"] = Goal.at_least(
            ahead, WANTED, f"best peer: {best[0]}" if best else why
        )
    return goals


def _table(found: Rates) -> Table:
    slots = list(found)
    names = list(found[slots[0]])
    rows = [(name, *(f"{found[slot][name]:.2f}" for slot in slots)) for name in names]
    return Table("Hits in percent", ("policy", *(f"{stream}: {capacity}" for stream, capacity in slots)), rows)


def _check_tables(checks: Checks) -> list[Table]:
    exact = [(stream, f"{ours:.2f}", f"{exact:.2f}") for stream, (ours, exact) in checks.exact.items()]
    rates = [(f"one per {rate_s:g} s, {capacity}", f"{hits:.2f}") for (rate_s, capacity), hits in checks.rates.items()]
    return [
        Table(
            f"Hits in percent of the first {EXACT_REQUESTS:,} requests, {EXACT_CAPACITY} entries",
            ("stream", "ours", "ranked at every eviction"),
            exact,
        ),
        Table("Hits in percent of ours on web07 at other request rates", ("rate, entries", "ours"), rates),
    ]


def _figures(found: Rates, checks: Checks | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"hit_percent": {f"{stream}, {n}": rates for (stream, n), rates in found.items()}}
    if checks is not None:
        figures["exact_ranking"] = {name: {"ours": a, "exact": b} for name, (a, b) in checks.exact.items()}
        figures["web07_at_other_rates"] = {f"{s:g} s, {n}": hits for (s, n), hits in checks.rates.items()}
    return figures


def _notes(options: Options, streams: list[Stream], why_absent: str | None, cpu_s: float) -> list[str]:
    notes = [
        f"web07 has no times: one request per {ONE_PER_S:g} s is assumed. The first quarter of each stream is not counted.",
        f"Synthetic streams of {len(streams[-1].names):,} requests, one per {ONE_PER_S:g} s; `synthetic` in bench/policies.py"
        " says what they are made of. The model was fitted on other seeds and on web07; an earlier one had been seen on these.",
        "Every policy admits every miss, but Belady, which may decline one (bypass). Entries have one size; nothing expires.",
        "The best peer is sought among LRU, LFU, SIEVE, S3-FIFO and both W-TinyLFU; ARC is shown beside them.",
        f"{cpu_s:.0f} s of CPU for all replays.",
    ]
    if options.is_quick:
        notes.insert(
            0, f"--quick: the first {QUICK_REQUESTS:,} requests of web07 and one short synthetic stream: no verdict."
        )
    if why_absent:
        notes.insert(0, f"Peers not measured: {why_absent}")
    return notes
