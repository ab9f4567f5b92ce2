"""Owns what the service says of itself: the maps behind `status`, `activity` and the statistics. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ipc.commands import Role
from ..ipc.records import ExecutionRecord, QueryRecord, ScheduleRecord, TaskRecord, TaskStatus, TaskType
from . import evidence, procfs
from .cgroup import in_force
from .core import Core
from .quality import Day, day_of, joined
from .scheduler import period_s
from .waiting import wait_of

QUALITY_DAYS = 30  # that the figures of quality are of, where nobody asks for more
WAITING_ROWS = 100  # tasks whose wait is explained in the status, the next in turn; `tasks list` explains any


def resources(core: Core) -> dict[str, Any]:
    """Return readings and budget; shares are 0..1 of the whole machine."""
    readings, decision = core.budget.readings, core.budget.decision
    if not readings.is_plausible:  # spec-notes: a failed reading counts as a busy machine
        cpu_usage = memory_usage = 1.0
    else:
        cpu_usage = min((readings.own_cpu_permille + readings.others_cpu_permille) / 1000, 1.0)
        memory_usage = readings.memory_used_permille / 1000
    return {
        "cpu_usage": cpu_usage,
        "memory_usage": memory_usage,
        "can_run_task": decision.is_admitting,
        "active_hours": core.budget.is_active_hours,
        "own_cpu": readings.own_cpu_permille / 1000,
        "others_cpu": readings.others_cpu_permille / 1000,
        "budget": decision.budget_permille / 1000,
        "reason": decision.reason,
        "cpus": readings.cpus,
        "memory_step": decision.memory.name.lower(),
        "on_battery": readings.is_on_battery,
    }


def execution_stats(core: Core) -> dict[str, Any]:
    """Return totals over all executions ever. `success_rate` is of those that ran; `average_improvement` of measured ones."""
    totals = core.journal.execution_totals()
    ran = totals["completed"] + totals["failed"]
    measured = totals["improvement_count"]
    return {
        "total_executions": totals["total"],
        "completed": totals["completed"],
        "failed": totals["failed"],
        "skipped": totals["skipped"],
        "cancelled": totals["cancelled"],
        "success_rate": totals["completed"] / ran if ran else 0.0,
        "average_improvement": totals["improvement_sum"] / measured if measured else 0.0,
        "measured_executions": measured,
    }


def service_status(core: Core, now: float, pid: int) -> dict[str, Any]:
    """Return the keys of `BackgroundProcessingService.get_service_status`, times in Unix seconds."""
    open_tasks = core.queue.open()
    pending = [task for task in open_tasks if task.status is TaskStatus.PENDING]
    core.collect_counts(now)
    return {
        "service_running": not core.is_draining,
        "lane": core.settings.lane,
        "pid": pid,
        "uptime_s": now - core.started_at,
        "last_check": core.last_check_at,
        "resources": resources(core),
        "execution": execution_stats(core),
        "cache": core.keeper.stats(now),
        "quality": summary(core, now),
        "scheduled_tasks": len(core.schedules),
        "tasks": {"pending": len(pending), "running": len(open_tasks) - len(pending)},
        "running": [
            {
                "task_id": task.task_id,
                "done": task.progress.done,
                "total": task.progress.total,
                "note": task.progress.note,
                "eta_s": task.progress.eta_s,
            }
            for task in open_tasks
            if task.status is TaskStatus.RUNNING
        ],
        "waiting": _waiting(core, pending, now),
        "workers": [
            {
                "index": worker.index,
                "role": worker.role.value,
                "pid": worker.pid,
                "state": "busy" if worker.task_id else "ready" if worker.is_started else "starting",
                "task_id": worker.task_id,
                "heartbeat_age_s": worker.health.heartbeat_age_s if worker.health else None,
                "steps": worker.health.steps if worker.health else None,
                "rss_mib": round(worker.health.rss_kib / 1024, 1) if worker.health else None,
                "courtesy": procfs.courtesy(worker.pid) + in_force(worker.pid) if worker.role is Role.TASKS else [],
            }
            for worker in core.workers.values()
        ],
        "fork_server": core.fork_server,
        "paused": list(core.queue.paused),
        "refused_connections": core.refused_connections,
        "store": _store(core),
        "warming": warming(core, now),
        "problems": [f"{about}: {what}" for about, what in core.problems.items()],
    }


def warming(core: Core, now: float) -> dict[str, Any]:
    """Return what warming may use of an hour, and when each collection is warmed next."""
    spare = core.spare_s(now)
    schedules = [one for one in core.schedules.values() if one.task_type is TaskType.WARM and one.is_enabled]
    return {
        "spare_cpu_s": spare,
        "used_cpu_s": core.warming.spent_s(now),
        "collections": [
            {
                "collection_name": one.collection,
                "next_run": one.next_run_at,
                "every_s": period_s(one),
                "why": _why(one),
            }
            for one in sorted(schedules, key=lambda one: (one.next_run_at, one.collection))
        ],
    }


def _why(schedule: ScheduleRecord) -> str:
    if schedule.metadata.get("origin") != "default":
        return f"its own schedule is {schedule.frequency.value}"
    return str(schedule.metadata.get("why", f"{schedule.frequency.value} until more is known"))


def in_a_line(core: Core) -> str:
    """Return what systemd shows of the service."""
    running = len(core.queue.running())
    words = f"{running} running, {len(core.queue.open()) - running} waiting"
    return f"{words}; {len(core.problems)} problems: see morgan-background status" if core.problems else words


def _waiting(core: Core, pending: list[TaskRecord], now: float) -> list[dict[str, Any]]:
    held = core.conditions(now)
    return [
        {
            "task_id": task.task_id,
            "why": wait.why,
            "cause": wait.cause.value,
            "expected_at": wait.expected_at,
            "expected": wait.expected,
        }
        for task in pending[:WAITING_ROWS]
        if (wait := wait_of(task, held)) is not None
    ]


def _store(core: Core) -> dict[str, Any]:
    store = core.settings.worker.store
    if core.settings.lane == "inline":
        return {"kind": "live client", "where": "in the calling process"}
    if store.is_embedded:
        return {"kind": "embedded", "where": store.path}
    return {"kind": "server", "where": store.url}


def activity(core: Core, limit: int, now: float) -> dict[str, Any]:
    """Return the keys of `BackgroundProcessingService.get_recent_activity`."""
    return {
        "executions": [execution_row(e) for e in core.journal.executions(limit)],
        "quality_trends": [trend_row(e) for e in core.journal.executions(limit, only_measured=True)],
        "popular_queries": [query_row(q) for q in core.popularity.popular(now, None, limit, 1)],
        "quality": summary(core, now),
    }


def quality(core: Core, now: float, days: int) -> dict[str, Any]:
    """Return what is known of quality in the last so many days, and of each of them."""
    since, tables = evidence.first_day(now, days), core.journal.quality
    tables.sum_up(now)
    found = joined([*tables.days(day_of(since)), *core.quality.rows()])
    of_days = evidence.history(found, tables.measured_days(day_of(since)))
    return _report(core, found, since, now) | {"history": of_days}


def summary(core: Core, now: float) -> dict[str, Any]:
    """Return the same of QUALITY_DAYS as a whole."""
    since = evidence.first_day(now, QUALITY_DAYS)
    found = joined([*core.journal.quality.days(day_of(since)), *core.quality.rows()])
    return _report(core, found, since, now)


def _report(core: Core, found: Mapping[str, Sequence[Day]], since: float, now: float) -> dict[str, Any]:
    latest, times = core.journal.quality.measured(since), core.keeper.response_times()
    return evidence.report(found, latest, times, since=since, now=now)


def execution_row(e: ExecutionRecord) -> dict[str, Any]:
    return {
        "task_id": e.task_id,
        "task_type": e.task_type.value,
        "collection_name": e.collection,
        "status": e.status.value,
        "started_at": e.started_at,
        "completed_at": e.completed_at,
        "cpu_s": e.cpu_s,
        "error_message": e.error_message,
    }


def trend_row(e: ExecutionRecord) -> dict[str, Any]:
    before, after = e.before_score or 0.0, e.after_score or 0.0
    return {
        "task_id": e.task_id,
        "task_type": e.task_type.value,
        "collection_name": e.collection,
        "metric": e.metric,
        "before_score": before,
        "after_score": after,
        "improvement": after - before,
        "measurement_time": e.completed_at,
    }


def query_row(q: QueryRecord) -> dict[str, Any]:
    return {
        "query": q.query_text,
        "collection_name": q.collection,
        "access_count": q.access_count,
        "popularity": q.popularity,
        "average_response_time": q.total_response_s / q.timed_count if q.timed_count else 0.0,
        "last_accessed": q.last_accessed_at,
    }
