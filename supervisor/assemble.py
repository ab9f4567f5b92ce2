"""Owns how a core is put together from a configuration: the same for the daemon and for the inline lane."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from ..ipc.counters import CounterFold
from ..ipc.paths import RuntimePaths
from ..ipc.store import ResultStore
from .admission import HORIZON
from .config import Config
from .core import Core, CoreSettings
from .demand import Demand, weights_or_prior
from .journal import Journal
from .monitor import KernelCpus, Monitor, PsutilCpus
from .popularity import CAPACITY, PER_ENTRY, Popularity
from .queue import Queue
from .results import CachePolicy, ResultKeeper
from .snapshot import restore, save


def core_settings(
    config: Config,
    lane: str = "daemon",
    *,
    is_auto_scheduling: bool | None = None,
    check_interval_s: float | None = None,
) -> CoreSettings:
    """Return what the core needs of `config`; arguments that are not None go before it."""
    return CoreSettings(
        worker=config.worker_settings(),
        limits=config.limits(),
        zone=config.zone(),
        lane=lane,
        min_frequency=config.cache.min_frequency,
        check_interval_s=config.service.check_interval_s if check_interval_s is None else check_interval_s,
        is_auto_scheduling=config.schedule.auto if is_auto_scheduling is None else is_auto_scheduling,
        collections=tuple(config.schedule.collections),
    )


def cache_policy(config: Config) -> CachePolicy:
    cache = config.cache
    return CachePolicy(
        ttl_s=cache.ttl_hours * 3600,
        soft_ttl_s=cache.soft_ttl_hours * 3600,
        max_entries=cache.max_cached_queries,
        alias_overlap=cache.alias_overlap,
        similar_errors=cache.similar_errors,
    )


def make_core(
    config: Config,
    settings: CoreSettings,
    runtime: RuntimePaths,
    journal: Journal,
    *,
    own_pids: Callable[[], list[int]],
    saved_results: Path | None = None,
) -> Core:
    """Join queue, popularity, result store and monitor into a core: for the daemon and for the inline lane.

    With `saved_results` the result store is brought back from that file after a reboot, and saved to it now and then.
    """
    was_restored = saved_results is not None and restore(saved_results, runtime.results)
    policy = cache_policy(config)
    popularity = Popularity(max(PER_ENTRY * policy.max_entries, CAPACITY))
    demand = Demand(HORIZON * policy.max_entries, weights_or_prior(journal.demand()))
    store = ResultStore(runtime.results, capacity=policy.max_entries + 1)  # what enters is in before another leaves
    keeper = ResultKeeper(store, CounterFold(runtime.readers), popularity, policy, demand)
    if was_restored:
        keeper.forget(journal.voided_results())
    return Core(
        settings,
        journal,
        Queue(config.queue_policy()),
        popularity,
        keeper,
        Monitor(cpus=KernelCpus() if settings.lane == "daemon" else PsutilCpus()),
        own_pids=own_pids,
        local_hour=local_hour,
        jitter=random.SystemRandom().random,  # spreads retries; no result depends on it
        started_at=time.time(),
        snapshot=lambda: None if saved_results is None else save(store, saved_results),
    )


def local_hour(zone: ZoneInfo, now: float) -> float:
    """Return the hour of the day in `zone` as a number, 13.5 for half past one in the afternoon."""
    at = datetime.fromtimestamp(now, zone)
    return at.hour + at.minute / 60 + at.second / 3600
