"""Owns when a worker that does not pace itself is stopped by force, and when it goes on: SIGSTOP, the last resort. Pure.

    look every second ─▶ Use ─▶ step(debt, use, elapsed_s) ─▶ RUN | STOP

A worker paces itself between sub-batches of some 35 ms. One that does not get there, because a library's call takes long,
uses what it was not granted, and only a signal reaches it. The rules:

- Only a worker that runs a task, and is not told to leave; never the store owner, for whom an application waits.
- What it used beyond what it was granted adds up to a debt; what it is granted pays it back. It is stopped at DEBT_S.
- It goes on when the debt is paid, and in any case after STOPPED_S, for a second at least: so that it can come to its next
  step, and give a sign of life.
- The time in which it is stopped counts as no hang (lookout.py), and every signal to it is followed by SIGCONT (pool.py).
- If the supervisor is killed meanwhile the kernel kills the worker (PDEATHSIG, link.py): that reaches a stopped one, too.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

DEBT_S = 2.0  # CPU seconds: four times what a mean over the governor's window can be off by
STOPPED_S = 5.0  # half of what counts as silence (hangs.py)


@dataclass(frozen=True, slots=True)
class Use:
    """What a worker has used and been granted in all, in CPU seconds. `task` None: it has none, or is leaving."""

    task: Hashable
    used_s: float
    granted_s: float


@dataclass(frozen=True, slots=True)
class Debt:
    """What is known of a worker: its last use, what it owes, for how long it has been stopped."""

    use: Use
    owed_s: float = 0.0
    stopped_s: float | None = None  # None: it runs


def step(debt: Debt | None, use: Use, elapsed_s: float) -> Debt:
    """Return what is known after a look; `stopped_s` says whether it is to be stopped until the next one."""
    if debt is None or use.task is None or use.task != debt.use.task:
        return Debt(use)
    fresh_s = max(use.used_s - debt.use.used_s, 0.0) - max(use.granted_s - debt.use.granted_s, 0.0)
    owed_s = max(debt.owed_s + fresh_s, 0.0)
    if debt.stopped_s is None:
        return Debt(use, owed_s, 0.0 if owed_s > DEBT_S else None)
    stopped_s = debt.stopped_s + elapsed_s
    return Debt(use, owed_s, None if owed_s <= 0 or stopped_s >= STOPPED_S else stopped_s)
