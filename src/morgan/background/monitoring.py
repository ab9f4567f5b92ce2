"""Owns `ResourceMonitor`: how busy this machine is, and whether a background task may run now."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .supervisor import governor
from .supervisor.assemble import local_hour
from .supervisor.config import Config, load
from .supervisor.monitor import Monitor


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """`cpu_usage` and `memory_usage` are 0..1 of the whole machine; 1.0 where they could not be read."""

    cpu_usage: float
    memory_usage: float
    can_run_task: bool
    active_hours: bool
    reason: str = ""


class ResourceMonitor:
    """Reads CPU and memory and applies the limits: 30 % of the machine 9-18 h, 70 % 22-6 h, a ramp between; memory 80 %.

    A reading that fails or makes no sense counts as a busy machine: usage 1.0, no task may run.
    """

    def __init__(self, config: Config | None = None) -> None:
        config = config or load()
        self._limits, self._zone = config.limits(), config.zone()
        self._monitor = Monitor()

    def check_resources(self) -> ResourceStatus:
        """Return what is used since the last call, and whether a task may run under the limits of this hour."""
        readings = self._monitor.sample([])
        hour = local_hour(self._zone, time.time())
        _, decision = governor.step(governor.GovernorState(), readings, self._limits, hour)
        is_active = governor.is_active_hours(self._limits, hour)
        if not readings.is_plausible:
            return ResourceStatus(1.0, 1.0, False, is_active, decision.reason)
        return ResourceStatus(
            cpu_usage=min((readings.own_cpu_permille + readings.others_cpu_permille) / 1000, 1.0),
            memory_usage=min(readings.memory_used_permille / 1000, 1.0),
            can_run_task=decision.is_admitting,
            active_hours=is_active,
            reason=decision.reason,
        )

    def can_run_task(self) -> bool:
        return self.check_resources().can_run_task

    def get_resource_summary(self) -> dict[str, float | bool | str]:
        """Return "cpu" and "memory" (0..1), "can_run_task", "active_hours" and "reason"."""
        status = self.check_resources()
        return {
            "cpu": status.cpu_usage,
            "memory": status.memory_usage,
            "can_run_task": status.can_run_task,
            "active_hours": status.active_hours,
            "reason": status.reason,
        }
