"""Owns what a running service takes over from a changed configuration, and what it leaves for its next start.

    SIGHUP, Reload ─▶ read again ─▶ wrong? the old one stays in force, and `status` says so
                                 └▶ compare ─▶ LIVE keys to the core; the others to `status`: they need a restart

Workers are told nothing: what they are configured by needs a restart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..ipc.errors import ConfigError
from .assemble import cache_policy, core_settings
from .config import SECTIONS, Config
from .core import Core
from .notify import Notifier

log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        "service.check_interval_s",
        "service.timezone",
        "service.log_level",
        "service.max_rss_mib",
        "service.max_tasks",
        *(f"limits.{name}" for name in SECTIONS["limits"].__struct_fields__),
        "cache.ttl_hours",
        "cache.soft_ttl_hours",
        "cache.min_frequency",
        *(f"schedule.{name}" for name in SECTIONS["schedule"].__struct_fields__),
        *(f"queue.{name}" for name in SECTIONS["queue"].__struct_fields__),
    }
)
"""Keys that take effect at a reload. The others are in what runs already: folders, sockets, workers, models."""

API_KEY = "the API key"  # its value has no key of its own; where it comes from has


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys that differ: those in force now, those that need a restart."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def compared(running: Config, found: Config) -> tuple[Config, Changes]:
    """Return the configuration to run on with, `running` with the LIVE keys of `found`, and what differs. Pure."""
    applied, needs_restart, sections = [], [], {}
    for name in SECTIONS:
        field = "limits_" if name == "limits" else name
        old, new = getattr(running, field), getattr(found, field)
        differs = [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]
        live: dict[str, Any] = {key: getattr(new, key) for key in differs if f"{name}.{key}" in LIVE}
        applied += [f"{name}.{key}" for key in live]
        needs_restart += [f"{name}.{key}" for key in differs if key not in live]
        sections[field] = msgspec.structs.replace(old, **live)
    names = sorted(running.collections.keys() | found.collections.keys())
    needs_restart += [
        f"collections.{name}" for name in names if running.collections.get(name) != found.collections.get(name)
    ]
    if running.api_key != found.api_key:
        needs_restart.append(API_KEY)
    return msgspec.structs.replace(running, **sections), Changes(tuple(applied), tuple(needs_restart))


class Reloader:
    """Reads the configuration again by `load_again`, which raises ConfigError. `running` is what is in force."""

    def __init__(self, running: Config, load_again: Callable[[], Config], core: Core, notifier: Notifier) -> None:
        self.running, self._load_again, self._core, self._notifier = running, load_again, core, notifier
        self._zone_name = running.zone().key

    def reload(self, now: float) -> Changes:
        """Take over what may change. Raises ConfigError for a wrong one: then nothing changes."""
        self._notifier.reloading()
        try:
            found = self._load_again()
        except ConfigError as error:
            log.error("the configuration is not reloaded, the old one stays in force: %s", error)
            self._core.problems["configuration"] = f"not reloaded, the old one stays in force: {error}"
            self._notifier.ready("the configuration is wrong: the old one stays in force")
            raise
        self.running, changes = compared(self.running, found)
        self._apply(now)
        if changes.needs_restart:
            self._core.problems["configuration"] = f"needs a restart: {', '.join(changes.needs_restart)}"
        else:
            self._core.problems.pop("configuration", None)
        log.info("configuration reloaded: %s", in_words(changes))
        self._notifier.ready("the configuration was reloaded")
        return changes

    def _apply(self, now: float) -> None:
        running = self.running
        logging.getLogger().setLevel(running.service.log_level.upper())
        self._zone_name = running.zone().key
        self._core.reconfigure(core_settings(running), running.queue_policy(), cache_policy(running), now)

    def look_at_zone(self, now: float) -> None:
        """Follow the machine's zone where none is configured: somebody may have moved, and the machine with them."""
        if not self.running.service.timezone and (name := self.running.zone().key) != self._zone_name:
            time.tzset()  # glibc keeps the zone it saw first
            log.info("this machine's zone is %s now, not %s: schedules and hours follow", name, self._zone_name)
            self._apply(now)


def in_words(changes: Changes) -> str:
    words = [f"in force now: {', '.join(changes.applied)}"] if changes.applied else ["nothing in force changed"]
    if changes.needs_restart:
        words.append(f"needs a restart: {', '.join(changes.needs_restart)}")
    return "; ".join(words)
