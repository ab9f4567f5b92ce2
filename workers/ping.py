"""Owns the ping: a task that answers and does nothing. It needs no model, no store and no collection.

For health checks, and for measuring what the way to a worker and back costs.
"""

from __future__ import annotations

import time

from ..ipc.records import TaskProgress
from .task import Job, Outcome, Step, Steps

SLICE_S = 0.05  # of holding a worker; between two a stop is obeyed


def ping(job: Job) -> Steps:
    """Answer with the job's `token`. `hold_s`: keep the worker for so many seconds first, without using its CPU.

    Only a first attempt holds. So a worker that is killed meanwhile shows how soon its task is done by another.
    """
    hold_s = float(job.params.get("hold_s", 0.0))
    if hold_s and job.checkpoint is None:
        end_at = time.monotonic() + hold_s
        checkpoint: dict[str, object] | None = {"has_held": True}
        while (left_s := end_at - time.monotonic()) > 0:
            yield Step(TaskProgress(note=f"holding for {hold_s:g} s"), checkpoint)
            checkpoint = None
            time.sleep(min(left_s, SLICE_S))
    return Outcome(result={"success": True, "token": job.params.get("token", "")})
