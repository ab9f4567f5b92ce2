"""Owns the configuration: one TOML file, environment overrides, defaults. Every error names file, key and what is accepted."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.errors import ConfigError
from ..ipc.paths import APP, default_runtime_dir, default_state_dir
from ..ipc.settings import ModelSettings, RerankSettings, Secret, StoreSettings, WorkerSettings
from .governor import Limits
from .queue import QueuePolicy

PREFIX = "MORGAN_"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections. The text after each field in docs/configuration.md is the documentation."""


class Service(Section, frozen=True):
    state_dir: str = ""
    runtime_dir: str = ""
    workers: int = 0
    check_interval_s: float = 300.0
    timezone: str = ""
    grace_s: float = 10.0
    log_level: str = "info"


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
    batch_size: int = 4
    threads: int = 1


class Reranker(Section, frozen=True):
    cross_encoder: str = ""
    candidates: int = 50
    top_k: int = 10
    max_queries: int = 50


class Cache(Section, frozen=True):
    ttl_hours: float = 24.0
    max_cached_queries: int = 1000
    min_frequency: int = 3


class Schedule(Section, frozen=True):
    auto: bool = True
    collections: tuple[str, ...] = ("morgan_knowledge", "morgan_memories", "morgan_web_content", "morgan_code")


class Retry(Section, frozen=True):
    max_attempts: int = 5
    max_kills: int = 3
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. `source` is the file it came from, None for defaults."""

    service: Service = Service()
    limits_: CpuLimits = msgspec.field(default=CpuLimits(), name="limits")
    store: Store = Store()
    model: Model = Model()
    reranker: Reranker = Reranker()
    cache: Cache = Cache()
    schedule: Schedule = Schedule()
    queue: Retry = Retry()
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
        return ZoneInfo(self.service.timezone or _machine_zone())

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

    def worker_settings(self) -> WorkerSettings:
        store, model, reranker = self.store, self.model, self.reranker
        return WorkerSettings(
            store=StoreSettings(
                url=store.url,
                api_key=self.api_key,
                path=store.path or str(self.state_dir() / "vectors"),
                timeout_s=store.timeout_s,
            ),
            model=ModelSettings(**msgspec.structs.asdict(model)),
            rerank=RerankSettings(**msgspec.structs.asdict(reranker)),
            grace_s=self.service.grace_s,
        )


SECTIONS: dict[str, type[Section]] = {
    "service": Service,
    "limits": CpuLimits,
    "store": Store,
    "model": Model,
    "reranker": Reranker,
    "cache": Cache,
    "schedule": Schedule,
    "queue": Retry,
}

# What a number may be, inclusive. Keys that are not here take any value of their type.
RANGES: dict[str, tuple[float, float]] = {
    "service.workers": (0, 256),
    "service.check_interval_s": (1, 86400),
    "service.grace_s": (0, 600),
    "limits.active_hours_cpu_limit": (0, 1),
    "limits.quiet_hours_cpu_limit": (0, 1),
    "limits.memory_limit": (0, 1),
    "limits.active_start": (0, 23),
    "limits.active_end": (0, 23),
    "limits.quiet_start": (0, 23),
    "limits.quiet_end": (0, 23),
    "store.timeout_s": (0.1, 3600),
    "model.batch_size": (1, 1024),
    "model.threads": (1, 256),
    "reranker.candidates": (1, 1000),
    "reranker.top_k": (1, 1000),
    "reranker.max_queries": (1, 1000),
    "cache.ttl_hours": (0.001, 8760),
    "cache.max_cached_queries": (1, 100_000),
    "cache.min_frequency": (1, 1_000_000),
    "queue.max_attempts": (1, 1000),
    "queue.max_kills": (1, 1000),
    "queue.backoff_base_s": (0.01, 3600),
    "queue.backoff_cap_s": (0.01, 86400),
}

LOG_LEVELS = ("debug", "info", "warning", "error")


def search_path(env: Mapping[str, str]) -> list[Path]:
    """Return where a file is looked for when none is named, in order."""
    home = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".config")
    return [Path(home) / APP / "config.toml", Path("/etc") / APP / "config.toml"]


def load(path: Path | str | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Return the configuration from `path`, else $MORGAN_CONFIG, else the first of search_path, else defaults.

    Environment variables MORGAN_SECTION_KEY go before the file. Raises ConfigError.
    """
    env = os.environ if env is None else env
    named = path or env.get("MORGAN_CONFIG")
    source = Path(named) if named else next((p for p in search_path(env) if p.is_file()), None)
    values = _read(source) if source else {}
    origins = dict.fromkeys(_keys(values), str(source))
    for key, text in _overrides(env).items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = text
        origins[key] = PREFIX + key.replace(".", "_").upper()
    sections: dict[str, Any] = {
        ("limits_" if name == "limits" else name): _section(name, kind, values.pop(name, {}), origins, str(source))
        for name, kind in SECTIONS.items()
    }
    if values:
        unknown = next(iter(values))
        raise ConfigError(f"{source}: unknown section [{unknown}]{_nearest(unknown, SECTIONS)}")
    config = Config(source=source, **sections)
    _check_together(config)
    return msgspec.structs.replace(config, api_key=_api_key(config.store, env, origins))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `morgan-background config --defaults` prints one to begin with"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _keys(values: Mapping[str, Any]) -> list[str]:
    return [f"{section}.{name}" for section, rows in values.items() if isinstance(rows, dict) for name in rows]


def _overrides(env: Mapping[str, str]) -> dict[str, str]:
    """Return section.key -> text of the variables that name a key."""
    found = {}
    for section, kind in SECTIONS.items():
        for name in kind.__struct_fields__:
            if (text := env.get(f"{PREFIX}{section}_{name}".upper())) is not None:
                found[f"{section}.{name}"] = text
    for variable, key in (("MORGAN_STATE_DIR", "service.state_dir"), ("MORGAN_RUNTIME_DIR", "service.runtime_dir")):
        if text := env.get(variable):
            found.setdefault(key, text)
    return found


def _section(name: str, kind: type[Section], given: Any, origins: Mapping[str, str], source: str) -> Section:
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: [{name}] must be a section, not {given!r}")
    hints = get_type_hints(kind)
    accepted: dict[str, Any] = {}
    for key, value in given.items():
        full = f"{name}.{key}"
        where = f"{origins.get(full, source)}: {full}"
        if key not in hints:
            raise ConfigError(f"{where}: unknown key{_nearest(key, hints)}")
        accepted[key] = _value(where, full, value, hints[key], is_text=origins.get(full, "").startswith(PREFIX))
    return kind(**accepted)


def _value(where: str, full: str, value: Any, hint: Any, *, is_text: bool) -> Any:
    """Return `value` as the key's type, in its range. Raises ConfigError naming both."""
    if get_origin(hint) is tuple:
        items = [part.strip() for part in value.split(",") if part.strip()] if is_text else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise ConfigError(f"{where}: {value!r} must be a list of texts")
        return tuple(items)
    try:
        converted = msgspec.convert(value, hint, strict=not is_text)
    except msgspec.ValidationError:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{where}: {value!r} must be {words[hint]}{_range_words(full)}") from None
    if full in RANGES and not RANGES[full][0] <= converted <= RANGES[full][1]:
        raise ConfigError(f"{where}: {value!r} must be{_range_words(full)}")
    if full == "service.log_level" and converted not in LOG_LEVELS:
        raise ConfigError(f"{where}: {value!r} must be one of {', '.join(LOG_LEVELS)}")
    if full == "service.timezone" and converted:
        _check_zone(where, converted)
    return converted


def _range_words(full: str) -> str:
    return " from {:g} to {:g}".format(*RANGES[full]) if full in RANGES else ""


def _check_zone(where: str, name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(f"{where}: {name!r} must be a zone of the IANA database, such as Europe/Berlin") from None


def _check_together(config: Config) -> None:
    """Raise ConfigError for values that are each right and do not go together."""
    limits = config.limits_
    hours = (limits.active_start, limits.active_end, limits.quiet_start, limits.quiet_end)
    turns = [(hour - limits.active_start) % 24 for hour in hours]
    if turns != sorted(turns) or limits.active_start == limits.active_end or limits.quiet_start == limits.quiet_end:
        raise ConfigError(
            f"{config.source}: limits.active_start, active_end, quiet_start, quiet_end: {hours} must follow each other"
            " around the clock, as 9, 18, 22, 6 do"
        )
    if config.store.api_key_file and config.store.api_key_env:
        raise ConfigError(f"{config.source}: store.api_key_file and store.api_key_env: set one of them")
    if config.reranker.top_k > config.reranker.candidates:
        raise ConfigError(f"{config.source}: reranker.top_k must not exceed reranker.candidates")


def _api_key(store: Store, env: Mapping[str, str], origins: Mapping[str, str]) -> Secret:
    """Return the API key from its file, its variable, or systemd's credential qdrant_api_key. Never in a message."""
    if store.api_key_env:
        if store.api_key_env not in env:
            where = origins.get("store.api_key_env", "configuration")
            raise ConfigError(f"{where}: store.api_key_env: the variable {store.api_key_env!r} is not set")
        return Secret(env[store.api_key_env])
    credentials = env.get("CREDENTIALS_DIRECTORY")
    path = store.api_key_file or (f"{credentials}/qdrant_api_key" if credentials else "")
    if not path or (not store.api_key_file and not Path(path).is_file()):
        return Secret()
    try:
        return Secret(Path(path).read_text().strip())
    except OSError as error:
        where = origins.get("store.api_key_file", "configuration")
        raise ConfigError(f"{where}: store.api_key_file: {path} cannot be read: {error.strerror}") from error


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _machine_zone() -> str:
    """Return this machine's IANA zone: TZ, /etc/timezone, or where /etc/localtime points; UTC where none says."""
    candidates = [os.environ.get("TZ", "").lstrip(":")]
    timezone = Path("/etc/timezone")
    if timezone.is_file():
        candidates.append(timezone.read_text().strip())
    target = os.path.realpath("/etc/localtime")
    candidates.append(target.partition("/zoneinfo/")[2])
    for name in candidates:
        if name:
            try:
                return ZoneInfo(name).key
            except (KeyError, ValueError, OSError):
                continue  # a POSIX rule or a stray file: the next source
    return "UTC"


def default_toml() -> str:
    """Return a file with every section and key at its default, to begin with."""
    lines = []
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        defaults = kind()
        lines += [f"{key} = {_toml(getattr(defaults, key))}" for key in kind.__struct_fields__]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
