"""Owns how a worker runs tasks: wait for one, run its steps, report each, obey between them.

The same in a worker process (its port is link.py's socket) and in the inline lane (its port is the core itself).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..ipc.commands import Command, Drain, Event, Failed, Finished, Leaving, Progress, Run, Stopped, StopTask
from ..ipc.errors import MorganError
from .pacing import Pacer
from .task import Bare, Interrupted, Job, Outcome, Step, Steps, Tasks, Tools, Verdict, drive

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


class TaskWorker:
    """Runs one task at a time. `make_tools(pace)` is called at the first task that needs any: models load late.

    `duty()` is the share of one CPU granted now, in permille; `count_step()` is called after each step, `count_pace()`
    at each sign of life within one; `cpu()` is the CPU time used so far, in seconds.
    """

    def __init__(
        self,
        port: Port,
        make_tools: MakeTools,
        tasks: Tasks,
        *,
        duty: Callable[[], int],
        count_step: Callable[[], None],
        count_pace: Callable[[], None] = lambda: None,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._port, self._make_tools, self._tasks, self._count_step = port, make_tools, tasks, count_step
        self._tools: Tools | None = None
        self._is_leaving = False
        self._cpu = cpu
        self._pacer = Pacer(duty=duty, wait=port.nap, check=self._check, cpu=cpu, count=count_pace)
        self._running: Run | None = None
        self._ahead: deque[Run] = deque()  # handed over while another ran

    def serve(self) -> None:
        """Serve until drained; what was not begun by then is given back."""
        while not self._is_leaving:
            match self._ahead.popleft() if self._ahead else self._port.wait(None):
                case Run() as command:
                    self.run(command)
                case Drain():
                    self._leave()
                case _:
                    pass  # StopTask for a task that ended meanwhile
        while (late := self._port.peek()) is not None:
            self._port.wait(0)
            if isinstance(late, Run):
                self._ahead.append(late)
        for command in self._ahead:
            self._give_back(command)

    def _leave(self) -> None:
        self._is_leaving = True
        self._port.send(Leaving())  # before the tasks go back: else one of them could be handed to this worker again

    def _give_back(self, command: Run, *, is_cancelled: bool = False) -> None:
        self._port.send(Stopped(task_id=command.task_id, attempt=command.attempt, is_cancelled=is_cancelled, cpu_s=0.0))

    def run(self, command: Run) -> None:
        """Run one attempt to its end and report how it ended. Raises nothing a task does wrong."""
        cpu_before_s = self._cpu()
        self._running = command
        try:
            ended = drive(self._steps(command), self._on_step)
        except Interrupted:
            ended = self._verdict()
        except MorganError as error:
            self._failed(command, error.code, str(error), self._cpu() - cpu_before_s, is_transient=error.is_transient)
            return
        except Exception as error:
            log.exception("task %s failed", command.task_id)
            message = f"{type(error).__name__}: {error}"
            self._failed(command, "error", message, self._cpu() - cpu_before_s, is_transient=True)
            return
        finally:
            self._running = None
        cpu_s = self._cpu() - cpu_before_s
        if isinstance(ended, Outcome):
            self._port.send(
                Finished(
                    task_id=command.task_id,
                    attempt=command.attempt,
                    result=ended.result,
                    cpu_s=cpu_s,
                    metric=ended.metric,
                    before_score=ended.before_score,
                    after_score=ended.after_score,
                    is_skipped=ended.is_skipped,
                )
            )
        else:
            is_cancelled = ended is Verdict.CANCEL
            self._port.send(
                Stopped(task_id=command.task_id, attempt=command.attempt, is_cancelled=is_cancelled, cpu_s=cpu_s)
            )

    def _steps(self, command: Run) -> Steps:
        """Begin a task; its models are loaded now if they have not been yet."""
        job = Job(
            command.task_id,
            command.task_type,
            command.collection,
            command.params,
            command.queries,
            command.checkpoint,
            command.cached,
            command.why_none,
        )
        task = self._tasks[command.task_type]
        if isinstance(task, Bare):
            return task.steps(job)
        if self._tools is None:
            self._tools = self._make_tools(self._pacer.pace)
        self._pacer.reset()
        return task(job, self._tools.of(job.collection))

    def _failed(self, command: Run, code: str, message: str, cpu_s: float, *, is_transient: bool) -> None:
        self._port.send(
            Failed(
                task_id=command.task_id,
                attempt=command.attempt,
                code=code,
                message=message,
                is_transient=is_transient,
                cpu_s=cpu_s,
            )
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
                measures=step.measures,
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
                    self._leave()
                    return Verdict.PAUSE
                case StopTask() if self._running is not None and command.task_id == self._running.task_id:
                    return Verdict.CANCEL if command.is_cancelled else Verdict.PAUSE
                case StopTask():
                    for other in [one for one in self._ahead if one.task_id == command.task_id]:
                        self._ahead.remove(other)
                        self._give_back(other, is_cancelled=command.is_cancelled)
                case Run():
                    self._ahead.append(command)
        return Verdict.GO_ON

    def _check(self) -> None:
        """Leave a wait for budget when a stop is asked: with a budget of 0 the step's end may be hours away."""
        command = self._port.peek()
        if isinstance(command, Drain | StopTask):
            raise Interrupted
