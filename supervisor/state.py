"""Owns the core's nouns: what it knows of a worker, whom it owes an answer, and what it wants done."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..ipc.commands import Command, Role
from ..ipc.messages import Reply

ReplyTo = Hashable
"""Whom to answer: a ROUTER's identity frame in the daemon, any token in the inline lane."""


@dataclass(slots=True)
class Worker:
    """A worker as the core sees it. Its process is pool.py's."""

    index: int
    role: Role
    pid: int
    is_started: bool = False  # the owner: its socket answers; a task worker: it said Ready
    task_id: str | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Waiter:
    """A client that asked to be told of a task's change."""

    reply_to: ReplyTo
    rid: int
    task_id: str
    seen: int
    deadline_at: float


@dataclass(frozen=True, slots=True)
class SendCommand:
    worker: int
    command: Command


@dataclass(frozen=True, slots=True)
class SendReply:
    reply_to: ReplyTo
    reply: Reply


Action = SendCommand | SendReply
