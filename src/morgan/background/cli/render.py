"""Owns how figures look as text: tables, durations, sizes, times. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MISSING = "-"


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return aligned columns: numbers to the right, the rest to the left, no trailing blanks."""
    cells = [[text(value) for value in row] for row in rows]
    values = [list(row) for row in cells]
    widths = [max(len(h), *(len(row[i]) for row in cells)) if cells else len(h) for i, h in enumerate(headers)]
    right = [bool(values) and all(_is_number(row[i]) for row in values) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()

    return "\n".join([line(list(headers)), *(line(row) for row in cells)])


def _is_number(cell: str) -> bool:
    return cell == MISSING or cell.replace(".", "", 1).replace("%", "").replace("-", "", 1).strip().isdigit()


def text(value: Any) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)


def percent(share: Any) -> str:
    return MISSING if share is None else f"{100 * float(share):.0f} %"


def change(metric: str | None, before: float | None, after: float | None) -> str:
    """Return a measured change of quality, "" where none was measured."""
    if before is None or after is None:
        return ""
    return f"{metric} {before:.3f} to {after:.3f}"


def duration(seconds: float | None) -> str:
    """Return seconds in the two largest units that matter: 4.2 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(at: float | None) -> str:
    """Return a Unix time as local date and time."""
    return MISSING if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def status(report: Mapping[str, Any]) -> str:
    """Return the screen of `morgan-background status`."""
    resources, cache = report.get("resources", {}), report.get("cache", {})
    execution, store, tasks = report.get("execution", {}), report.get("store", {}), report.get("tasks", {})
    lines = [
        f"service   {'running' if report.get('service_running') else 'draining'}, pid {report.get('pid', MISSING)},"
        f" up {duration(report.get('uptime_s'))}, {report.get('lane', MISSING)} lane",
        f"store     {store.get('kind', MISSING)}: {store.get('where', MISSING)}",
        f"machine   CPU {percent(resources.get('cpu_usage'))} (ours {percent(resources.get('own_cpu'))}),"
        f" memory {percent(resources.get('memory_usage'))}",
        f"budget    {percent(resources.get('budget'))} of the machine: {resources.get('reason', MISSING)}",
        f"tasks     {tasks.get('running', 0)} running, {tasks.get('pending', 0)} waiting,"
        f" {report.get('scheduled_tasks', 0)} scheduled",
        f"done      {execution.get('completed', 0)} completed, {execution.get('failed', 0)} failed,"
        f" {execution.get('skipped', 0)} skipped",
        f"cache     {cache.get('valid_entries', 0)} results, {cache.get('cache_size_mb', 0):.1f} MB,"
        f" {percent(cache.get('cache_hit_rate'))} of {cache.get('cache_lookups', 0)} lookups hit,"
        f" {cache.get('alias_hits', 0)} of {cache.get('aliases', 0)} aliases",
        *similar(cache.get("similar", {})),
    ]
    for one in report.get("running", []):
        of = f"{one.get('done', 0)} of {one.get('total') or '?'}"
        lines.append(
            f"runs      {one.get('task_id')}: {of}, {one.get('note') or 'started'}, ETA {duration(one.get('eta_s'))}"
        )
    lines += [f"quality   {line}" for line in quality(report.get("quality", {}))]
    lines += [f"waits     {one.get('task_id')}: {one.get('why')}" for one in report.get("waiting", [])]
    lines += [
        f"warms     {one.get('collection_name')} at {clock(one.get('next_run'))}, every {duration(one.get('every_s'))}:"
        f" {one.get('why')}"
        for one in report.get("warming", {}).get("collections", [])
    ]
    lines += [f"paused    {name or 'everything'}" for name in report.get("paused", [])]
    lines += [f"problem   {problem}" for problem in report.get("problems", [])]
    workers = report.get("workers", [])
    if workers:
        rows = [
            (
                *(w.get("index"), w.get("role"), w.get("pid"), w.get("state")),
                *(duration(w.get("heartbeat_age_s")), w.get("steps"), w.get("rss_mib"), w.get("task_id")),
            )
            for w in workers
        ]
        lines += ["", table(("worker", "role", "pid", "state", "last beat", "steps", "MiB", "task"), rows)]
    return "\n".join(lines)


def quality(report: Mapping[str, Any]) -> list[str]:
    """Return what a quality report says, a line a figure; of what nothing is known yet, nothing."""
    hit_rate, times = report.get("hit_rate", {}), report.get("response_time", {})
    lines = [
        _evidence("hit rate", hit_rate, f"{_span(hit_rate, percent)} of {hit_rate.get('count')} lookups"),
        _evidence("response time", gain := times.get("gain", {}), _gain(gain)),
    ]
    for one in report.get("collections", []):
        name, judged, alike = one["collection_name"], one["judged"], one["agreement"]
        for metric in ("nDCG@10", "MRR@10"):
            found = judged.get(metric, {})
            words = f"{found.get('before')} before reranking, {found.get('after')} after: {_span(found, _signed)}"
            lines.append(_evidence(f"{name}: {metric}", judged, f"{words}, {judged['count']} judged queries"))
            if "note" in judged:
                break  # once is enough
        spans = f"overlap@10 {_span(alike.get('overlap@10', {}), percent)}"
        words = f"the reranker's first ten and the vector search's: {spans}, {alike['count']} queries"
        lines.append(_evidence(f"{name}: rank agreement", alike, words))
        took, served, happy = one["response_time"], one["served"], one["satisfaction"]
        lines.append(_evidence(f"{name}: computed searches", took, _response_time(took)))
        share = f"{_span(served, percent)} of {served['count']} searches"
        lines.append(_evidence(f"{name}: served from the store", served, share))
        lines.append(_evidence(f"{name}: satisfaction", happy, _satisfaction(happy)))
    return [line for line in lines if line]


def _evidence(what: str, found: Mapping[str, Any], words: str) -> str:
    """Return a line: the figure in `words`, or how much is missing; "" where there is nothing at all."""
    if "note" in found:
        return f"{what}: {found['note']}" if found.get("count") else ""
    return f"{what}: {words}" if found else ""


def _span(found: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    return f"{shown(found.get('value'))} ({shown(found.get('low'))} to {shown(found.get('high'))})"


def _signed(value: Any) -> str:
    return MISSING if value is None else f"{float(value):+.3f}"


def _gain(gain: Mapping[str, Any]) -> str:
    if "value" not in gain:
        return ""
    return (
        f"{text(gain['value'])} times as fast from the store ({text(gain['low'])} to {text(gain['high'])}): median"
        f" {short(gain['served_s'])} of {gain['served']} searches, {short(gain['searched_s'])} when these {gain['count']}"
        " queries were computed"
    )


def _response_time(found: Mapping[str, Any]) -> str:
    if "p50_s" not in found:
        return ""
    words = f"median {short(found['p50_s'])} ({short(found['p50_low_s'])} to {short(found['p50_high_s'])})"
    tail = "" if found["p95_s"] is None else f", 95th percentile {short(found['p95_s'])}"
    return f"{words}{tail}, {found['count']} timed"


def short(seconds: float) -> str:
    """Return a response time in the unit it is read in: 4.1 µs, 12 ms."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def _satisfaction(found: Mapping[str, Any]) -> str:
    trend = found.get("trend", {})
    words = f"{_span(found, percent)} of {found.get('count')} judgments positive"
    if "note" in trend:
        return f"{words}; trend: {trend['note']}"
    if not trend:
        return words
    points = {name: 100 * 7 * trend[name] for name in ("value", "low", "high")}
    return (
        f"{words}; {trend['direction']}: {points['value']:+.1f} points a week"
        f" ({points['low']:+.1f} to {points['high']:+.1f})"
    )


def similar(report: Mapping[str, Any]) -> list[str]:
    """Return what was found out of similar queries; nothing before there is an audit."""
    if not report.get("audits"):
        return []
    safe = [f"{name} from {at:g}" for name, at in report.get("certified_from", {}).items() if at is not None]
    return [
        f"similar   {report.get('audits')} audits, {report.get('audit_errors', 0)} would have been wrong;"
        f" {report.get('served', 0)} served, {report.get('errors', 0)} wrong, {report.get('pending', 0)} not known yet:"
        f" at most {percent(report.get('bound'))} of {report.get('requests', 0)} requests,"
        f" {percent(report.get('rate'))} allowed; safe: {', '.join(safe) or 'no cosine'}"
    ]


def result(outcome: Mapping[str, Any]) -> str:
    """Return a task's result, a key a line, and below it those of a list."""
    width = max((len(key) for key in outcome), default=0)
    lines = []
    for key, value in outcome.items():
        items = value if isinstance(value, list | tuple) and value else [value]
        lines += [f"{(key if n == 0 else '').ljust(width)}  {_inner(one)}" for n, one in enumerate(items)]
    return "\n".join(lines)


def _inner(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{key} {text(one)}" for key, one in value.items())
    return MISSING if isinstance(value, list | tuple | Mapping) else text(value)


def bar(done: int, total: int, note: str, eta_s: float | None, width: int = 28) -> str:
    """Return one line of progress."""
    if total <= 0:
        return note or "working"
    filled = min(width * done // total, width)
    eta = f", {duration(eta_s)} left" if eta_s is not None and done < total else ""
    return f"[{'#' * filled}{'.' * (width - filled)}] {done}/{total} {note}{eta}"
