"""Owns how a worker runs tasks: wait for one, run its steps, report each, obey between them.

The same in a worker process (its port is link.py's socket) and in the inline lane (its port is the core itself).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ..ipc.commands import Command, Drain, Event, Failed, Finished, Progress, Run, Stopped, StopTask
from ..ipc.errors import MorganError
from ..ipc.records import TaskType
from .pacing import Pacer
from .task import Job, Outcome, Step, TaskFunction, Tools, Verdict, drive

log = logging.getLogger(__name__)


class Port(Protocol):
    """Commands in, events out."""

    def send(self, event: Event) -> None: ...

    def wait(self, timeout_s: float | None) -> Command | None:
        """Return the next command; None after `timeout_s`."""
        ...

    def peek(self) -> Command | None:
        """Return the next command if it is there already, and leave it there."""
        ...

    def nap(self, timeout_s: float) -> None:
        """Wait, at most until a command arrives."""
        ...


MakeTools = Callable[[Callable[[], None]], Tools]


class Interrupted(Exception):
    """The task was told to stop while it waited for CPU budget in the middle of a step; the step is run again later."""


class TaskWorker:
    """Runs one task at a time. `make_tools(pace)` is called at the first task: models load late.

    `duty()` is the share of one CPU granted now, in permille; `count_step()` is called after each step; `cpu()` is the
    CPU time used so far, in seconds.
    """

    def __init__(
        self,
        port: Port,
        make_tools: MakeTools,
        tasks: Mapping[TaskType, TaskFunction],
        *,
        duty: Callable[[], int],
        count_step: Callable[[], None],
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._port, self._make_tools, self._tasks, self._count_step = port, make_tools, tasks, count_step
        self._tools: Tools | None = None
        self._is_leaving = False
        self._cpu = cpu
        self._pacer = Pacer(duty=duty, wait=port.nap, check=self._check, cpu=cpu)
        self._running: Run | None = None

    def serve(self) -> None:
        """Serve until drained."""
        while not self._is_leaving:
            match self._port.wait(None):
                case Run() as command:
                    self.run(command)
                case Drain():
                    return
                case _:
                    pass  # StopTask for a task that ended meanwhile

    def run(self, command: Run) -> None:
        """Run one attempt to its end and report how it ended. Raises nothing a task does wrong."""
        cpu_before_s = self._cpu()
        self._running = command
        task_id, attempt = command.task_id, command.attempt

        def cpu_s() -> float:
            return self._cpu() - cpu_before_s

        try:
            if self._tools is None:
                self._tools = self._make_tools(self._pacer.pace)
            self._pacer.reset()
            task = self._tasks[command.task_type]
            job = Job(
                task_id,
                command.task_type,
                command.collection,
                command.params,
                command.queries,
                command.checkpoint,
                command.cached,
            )
            ended = drive(task(job, self._tools), self._on_step)
        except Interrupted:
            ended = self._verdict()
        except MorganError as error:
            self._port.send(
                Failed(
                    task_id=task_id,
                    attempt=attempt,
                    code=error.code,
                    message=str(error),
                    is_transient=error.is_transient,
                    cpu_s=cpu_s(),
                )
            )
            return
        except Exception as error:
            log.exception("task %s failed", task_id)
            message = f"{type(error).__name__}: {error}"
            self._port.send(
                Failed(
                    task_id=task_id, attempt=attempt, code="error", message=message, is_transient=True, cpu_s=cpu_s()
                )
            )
            return
        finally:
            self._running = None
        if isinstance(ended, Outcome):
            self._port.send(
                Finished(
                    task_id=task_id,
                    attempt=attempt,
                    result=ended.result,
                    cpu_s=cpu_s(),
                    metric=ended.metric,
                    before_score=ended.before_score,
                    after_score=ended.after_score,
                    is_skipped=ended.is_skipped,
                )
            )
        else:
            self._port.send(
                Stopped(task_id=task_id, attempt=attempt, is_cancelled=ended is Verdict.CANCEL, cpu_s=cpu_s())
            )

    def _on_step(self, step: Step) -> Verdict:
        running = self._running
        assert running is not None
        self._port.send(
            Progress(
                task_id=running.task_id,
                attempt=running.attempt,
                progress=step.progress,
                checkpoint=step.checkpoint,
                results=step.results,
                changes=step.changes,
            )
        )
        self._count_step()
        return self._verdict()

    def _verdict(self) -> Verdict:
        """Say what the commands that wait ask of the running task."""
        while (command := self._port.peek()) is not None:
            self._port.wait(0)
            match command:
                case Drain():
                    self._is_leaving = True
                    return Verdict.PAUSE
                case StopTask() if self._running is not None and command.task_id == self._running.task_id:
                    return Verdict.CANCEL if command.is_cancelled else Verdict.PAUSE
        return Verdict.GO_ON

    def _check(self) -> None:
        """Leave a wait for budget when a stop is asked: with a budget of 0 the step's end may be hours away."""
        command = self._port.peek()
        if isinstance(command, Drain | StopTask):
            raise Interrupted
