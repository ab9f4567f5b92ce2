"""Owns the configuration's nouns: its sections, their defaults and ranges, and what each part of the service reads of them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.paths import default_runtime_dir, default_state_dir
from ..ipc.settings import (
    CollectionSettings,
    GateSettings,
    LearningSettings,
    ModelSettings,
    RerankSettings,
    Secret,
    StoreSettings,
    TuningSettings,
    WorkerSettings,
)
from . import hangs
from .governor import Limits
from .queue import QueuePolicy
from .restarts import Wear


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections. The text after each field in docs/configuration.md is the documentation."""


class Service(Section, frozen=True):
    state_dir: str = ""
    runtime_dir: str = ""
    workers: int = 0
    check_interval_s: float = 300.0
    timezone: str = ""
    grace_s: float = 10.0
    max_rss_mib: int = 2048
    max_tasks: int = 0
    log_level: str = "info"
    allowed_users: tuple[str, ...] = ()
    cgroups: bool = True


class CpuLimits(Section, frozen=True):
    active_hours_cpu_limit: float = 0.30
    quiet_hours_cpu_limit: float = 0.70
    memory_limit: float = 0.80
    active_start: int = 9
    active_end: int = 18
    quiet_start: int = 22
    quiet_end: int = 6


class Store(Section, frozen=True):
    url: str = ""
    api_key_file: str = ""
    api_key_env: str = ""
    path: str = ""
    timeout_s: float = 30.0


class Model(Section, frozen=True):
    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    text_field: str = "text"
    source_field: str = "source"
    vector_name: str = ""
    device: str = "cpu"
    batch_size: int = 32
    threads: int = 0
    loader: str = "auto"
    precision: str = "fp32"
    chunking: str = ""


class Reranker(Section, frozen=True):
    cross_encoder: str = ""
    candidates: int = 50
    fusion: str = "rrf"
    top_k: int = 10
    max_queries: int = 50


class Gate(Section, frozen=True):
    ndcg_tolerance: float = 0.02
    recall_tolerance: float = 0.01
    latency_ratio: float = 1.2
    latency_floor_ms: float = 1.0
    queries: int = 200
    min_judged: int = 200
    require_judgments: bool = False


class Tuning(Section, frozen=True):
    recall_goal: float = 0.98
    apply: bool = False


class Learning(Section, frozen=True):
    min_judged: int = 50
    train_from: int = 200
    epochs: int = 4


class Reindex(Section, frozen=True):
    retention_hours: float = 168.0


class Cache(Section, frozen=True):
    ttl_hours: float = 24.0
    soft_ttl_hours: float = 12.0
    max_cached_queries: int = 1000
    alias_overlap: float = 1.0
    similar_errors: float = 0.0
    min_frequency: int = 3


class Schedule(Section, frozen=True):
    auto: bool = True
    collections: tuple[str, ...] = ("morgan_knowledge", "morgan_memories", "morgan_web_content", "morgan_code")


class Collection(Section, frozen=True):
    text_field: str = ""
    source_field: str = ""
    time_field: str = ""
    recency_half_life_days: float = 0.0
    recency_weight: float = 0.25
    new_points: bool = False


COLLECTIONS = {"morgan_memories": Collection(new_points=True)}  # a conversation is searched right after it


class Retry(Section, frozen=True):
    max_attempts: int = 5
    max_kills: int = 3
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0
    step_timeout_s: float = 900.0


def uid_named(name: str) -> int:
    """Return the uid of a user by name or number. Raises KeyError for a name that this machine does not know."""
    return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. `source` is the file it came from, None for defaults."""

    service: Service = Service()
    limits_: CpuLimits = msgspec.field(default=CpuLimits(), name="limits")
    store: Store = Store()
    model: Model = Model()
    reranker: Reranker = Reranker()
    reindex: Reindex = Reindex()
    gate: Gate = Gate()
    tuning: Tuning = Tuning()
    learning: Learning = Learning()
    cache: Cache = Cache()
    schedule: Schedule = Schedule()
    queue: Retry = Retry()
    collections: dict[str, Collection] = msgspec.field(default_factory=COLLECTIONS.copy)
    source: Path | None = None
    api_key: Secret = Secret()

    def state_dir(self) -> Path:
        return Path(self.service.state_dir) if self.service.state_dir else default_state_dir()

    def runtime_dir(self) -> Path:
        return Path(self.service.runtime_dir) if self.service.runtime_dir else default_runtime_dir(self.state_dir())

    def workers(self) -> int:
        """Return how many task workers to run: the configured number, or all usable CPUs but one."""
        return self.service.workers or max(len(os.sched_getaffinity(0)) - 1, 1)

    def zone(self) -> ZoneInfo:
        """Return the configured zone, or this machine's."""
        return ZoneInfo(self.service.timezone or machine_zone())

    def limits(self) -> Limits:
        limits = self.limits_
        return Limits(
            active_cpu_permille=round(limits.active_hours_cpu_limit * 1000),
            quiet_cpu_permille=round(limits.quiet_hours_cpu_limit * 1000),
            memory_permille=round(limits.memory_limit * 1000),
            active_start_h=limits.active_start,
            active_end_h=limits.active_end,
            quiet_start_h=limits.quiet_start,
            quiet_end_h=limits.quiet_end,
        )

    def queue_policy(self) -> QueuePolicy:
        queue = self.queue
        return QueuePolicy(queue.max_attempts, queue.max_kills, queue.backoff_base_s, queue.backoff_cap_s)

    def allowed_uids(self) -> frozenset[int]:
        """Return who may connect: this user, root, and the configured ones."""
        return frozenset({os.getuid(), 0, *map(uid_named, self.service.allowed_users)})

    def hang_limits(self) -> hangs.Limits:
        return hangs.Limits(self.queue.step_timeout_s, self.service.grace_s)

    def wear(self) -> Wear:
        return Wear(self.service.max_rss_mib * 1024, self.service.max_tasks)

    def worker_settings(self) -> WorkerSettings:
        store, model, reranker = self.store, self.model, self.reranker
        return WorkerSettings(
            store=StoreSettings(
                url=store.url,
                api_key=self.api_key,
                path=store.path or str(self.state_dir() / "vectors"),
                timeout_s=store.timeout_s,
            ),
            model=ModelSettings(**msgspec.structs.asdict(model), graph_folder=str(self.state_dir() / "graphs")),
            rerank=RerankSettings(**msgspec.structs.asdict(reranker)),
            gate=GateSettings(**msgspec.structs.asdict(self.gate)),
            tuning=TuningSettings(**msgspec.structs.asdict(self.tuning)),
            rebuild_folder=str(self.state_dir() / "rebuilds"),
            learning=LearningSettings(
                **msgspec.structs.asdict(self.learning), folder=str(self.state_dir() / "rerankers")
            ),
            collections={
                name: CollectionSettings(**msgspec.structs.asdict(own)) for name, own in self.collections.items()
            },
            retention_s=self.reindex.retention_hours * 3600,
            grace_s=self.service.grace_s,
        )


SECTIONS: dict[str, type[Section]] = {
    "service": Service,
    "limits": CpuLimits,
    "store": Store,
    "model": Model,
    "reranker": Reranker,
    "reindex": Reindex,
    "gate": Gate,
    "tuning": Tuning,
    "learning": Learning,
    "cache": Cache,
    "schedule": Schedule,
    "queue": Retry,
}

# What a number may be, inclusive. Keys that are not here take any value of their type.
RANGES: dict[str, tuple[float, float]] = {
    "service.workers": (0, 256),
    "service.check_interval_s": (1, 86400),
    "service.grace_s": (0, 600),
    "service.max_rss_mib": (64, 1_048_576),
    "service.max_tasks": (0, 1_000_000_000),
    "limits.active_hours_cpu_limit": (0, 1),
    "limits.quiet_hours_cpu_limit": (0, 1),
    "limits.memory_limit": (0, 1),
    "limits.active_start": (0, 23),
    "limits.active_end": (0, 23),
    "limits.quiet_start": (0, 23),
    "limits.quiet_end": (0, 23),
    "store.timeout_s": (0.1, 3600),
    "model.batch_size": (1, 1024),
    "model.threads": (0, 256),
    "reranker.candidates": (1, 1000),
    "reranker.top_k": (1, 1000),
    "reranker.max_queries": (1, 1000),
    "reindex.retention_hours": (0, 87_600),
    "tuning.recall_goal": (0.5, 1),
    "learning.min_judged": (20, 1_000_000),
    "learning.train_from": (20, 1_000_000),
    "learning.epochs": (1, 20),
    "collections.NAME.recency_half_life_days": (0, 36_500),
    "collections.NAME.recency_weight": (0, 1),
    "gate.ndcg_tolerance": (0, 1),
    "gate.recall_tolerance": (0, 1),
    "gate.latency_ratio": (1, 100),
    "gate.latency_floor_ms": (0, 60_000),
    "gate.queries": (1, 10_000),
    "gate.min_judged": (2, 1_000_000),
    "cache.ttl_hours": (0.001, 8760),
    "cache.soft_ttl_hours": (0.001, 8760),
    "cache.max_cached_queries": (1, 100_000),
    "cache.alias_overlap": (0, 1),
    "cache.similar_errors": (0, 1),
    "cache.min_frequency": (1, 1_000_000),
    "queue.max_attempts": (1, 1000),
    "queue.max_kills": (1, 1000),
    "queue.backoff_base_s": (0.01, 3600),
    "queue.backoff_cap_s": (0.01, 86400),
    "queue.step_timeout_s": (1, 86400),
}

LOG_LEVELS = ("debug", "info", "warning", "error")


def machine_zone(etc: Path = Path("/etc")) -> str:
    """Return this machine's IANA zone: TZ, where /etc/localtime points, or /etc/timezone; UTC where none says.

    In the order of what the rest of the machine goes by: /etc/timezone stays behind where only the link is changed.
    """
    candidates = [os.environ.get("TZ", "").lstrip(":")]
    target = os.path.realpath(etc / "localtime")
    candidates.append(target.partition("/zoneinfo/")[2])
    timezone = etc / "timezone"
    if timezone.is_file():
        candidates.append(timezone.read_text().strip())
    for name in candidates:
        if name:
            try:
                return ZoneInfo(name).key
            except (KeyError, ValueError, OSError):
                continue  # a POSIX rule or a stray file: the next source
    return "UTC"
