"""Owns the core's nouns: what it knows of a worker, whom it owes an answer, and what it wants done."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import msgspec

from ..ipc.commands import Command, Role
from ..ipc.messages import Reply
from ..ipc.records import TaskRecord

ReplyTo = Hashable
"""Whom to answer: a ROUTER's identity frame in the daemon, any token in the inline lane."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a look at a worker found (lookout.py): the age of its last heartbeat, its steps since it started, its RSS."""

    heartbeat_age_s: float
    steps: int
    rss_kib: int


@dataclass(slots=True)
class Worker:
    """A worker as the core sees it. Its process is pool.py's."""

    index: int
    role: Role
    pid: int
    is_started: bool = False  # the owner: its socket answers; a task worker: it said Ready
    task_id: str | None = None  # what it runs
    attempt: int = 0
    is_heavy: bool = False  # what it runs is work for the budget: any task but a ping
    is_wide: bool = False  # what it runs computes in several threads where the budget has CPUs for them
    is_forced: bool = False  # what it runs ignores the budget
    is_tiny: bool = False  # what it runs takes no time worth speaking of, so more of it may be handed ahead
    ahead: dict[str, int] = field(default_factory=dict)  # attempts it holds and has not begun, in order, by task
    leased_at: float = 0.0  # when it got what it runs
    granted_at: float = 0.0  # up to when `granted_s` is added up
    granted_s: float = 0.0  # CPU seconds granted to what it runs
    tasks: int = 0  # attempts that it has ended
    is_leaving: bool = False  # it is replaced: it gets no further task
    health: Health | None = None  # of the last look; None before it, and in the inline lane


@dataclass(slots=True, eq=False)
class Waiter:
    """A client that asked to be told of a task's change."""

    reply_to: ReplyTo
    rid: int
    task_id: str
    seen: int
    deadline_at: float
    until_ended: bool = False


@dataclass(slots=True, eq=False)
class Gathering:
    """A client that waits until all of several tasks have ended, and is told of them together."""

    reply_to: ReplyTo
    rid: int
    task_ids: tuple[str, ...]  # in the order in which they are told
    deadline_at: float
    open: set[str]  # those that have not ended
    ended: dict[str, TaskRecord]


class SendCommand(msgspec.Struct, frozen=True):
    worker: int
    command: Command


class SendReply(msgspec.Struct, frozen=True):
    reply_to: ReplyTo
    reply: Reply


Action = SendCommand | SendReply
