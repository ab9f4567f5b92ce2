"""Owns where the configuration comes from: one TOML file, environment overrides, defaults. Sections: sections.py.

Every error names file or variable, key, and what is accepted; a secret is never part of one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.errors import ConfigError
from ..ipc.paths import APP
from ..ipc.settings import FUSIONS, LOADERS, PRECISIONS, Secret
from .sections import COLLECTIONS, LOG_LEVELS, RANGES, SECTIONS, Collection, Config, Section, Store, uid_named

__all__ = ["RANGES", "SECTIONS", "Collection", "Config", "as_environment", "default_toml", "load", "search_path"]

PREFIX = "MORGAN_"
COLLECTION_TABLES = "collections"  # [collections.NAME], one a collection
COLLECTIONS_VARIABLE = f"{PREFIX}COLLECTIONS"  # the same as a JSON object

FOLDERS_AND_FILES = ("service.state_dir", "service.runtime_dir", "store.path", "store.api_key_file")  # "~" is home


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
    for key, (variable, text) in _overrides(env).items():
        section, _, name = key.partition(".")
        if isinstance(held := values.setdefault(section, {}), dict):  # else _section refuses it
            held[name] = text
        origins[key] = variable
    sections: dict[str, Any] = {
        ("limits_" if name == "limits" else name): _section(name, kind, values.pop(name, {}), origins, str(source))
        for name, kind in SECTIONS.items()
    }
    collections = _collections(values.pop(COLLECTION_TABLES, {}), env.get(COLLECTIONS_VARIABLE), str(source))
    if values:
        unknown = next(iter(values))
        raise ConfigError(f"{source}: unknown section [{unknown}]{_nearest(unknown, [*SECTIONS, COLLECTION_TABLES])}")
    config = Config(source=source, collections=collections, **sections)
    _check_together(config, origins)
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
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number too long, lists too deep
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _keys(values: Mapping[str, Any]) -> list[str]:
    return [f"{section}.{name}" for section, rows in values.items() if isinstance(rows, dict) for name in rows]


def _overrides(env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return section.key -> (variable, text) of the variables that name a key. Raises ConfigError for a misspelt one.

    A variable that is like no key is somebody else's: Kubernetes puts MORGAN_SERVICE_PORT there for a service "morgan".
    """
    found = {}
    for section, kind in SECTIONS.items():
        prefix = f"{PREFIX}{section}_".upper()
        for variable in (name for name in env if name.startswith(prefix)):
            key = variable.removeprefix(prefix).lower()
            if key in kind.__struct_fields__:
                found[f"{section}.{key}"] = variable, env[variable]
            elif close := _close(key, kind.__struct_fields__):
                meant = f"{prefix}{close[0]}".upper()
                raise ConfigError(f"{variable}: no such key; did you mean {meant} (that is {section}.{close[0]})?")
    for variable, key in (("MORGAN_STATE_DIR", "service.state_dir"), ("MORGAN_RUNTIME_DIR", "service.runtime_dir")):
        if text := env.get(variable):
            found.setdefault(key, (variable, text))
    return found


def _section(
    name: str, kind: type[Section], given: Any, origins: Mapping[str, str], source: str, *, ranges: str = ""
) -> Section:
    """Return a section. `ranges`: the name under which RANGES has its keys, if not its own."""
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: [{name}] must be a section, not {given!r}")
    hints = get_type_hints(kind)
    accepted: dict[str, Any] = {}
    for key, value in given.items():
        full = f"{name}.{key}"
        where = f"{origins.get(full, source)}: {full}"
        if key not in hints:
            raise ConfigError(f"{where}: unknown key{_nearest(key, hints)}")
        is_text = origins.get(full, "").startswith(PREFIX)
        accepted[key] = _value(where, f"{ranges or name}.{key}", value, hints[key], is_text=is_text)
    return kind(**accepted)


def _collections(given: Any, text: str | None, source: str) -> dict[str, Collection]:
    """Return the settings of single collections: the default ones, those of the file, those of the variable."""
    found: dict[str, Collection] = dict(COLLECTIONS)
    tables: list[tuple[Any, str]] = [(given, source)]
    if text:
        try:
            tables.append((msgspec.json.decode(text), COLLECTIONS_VARIABLE))
        except msgspec.DecodeError as error:
            raise ConfigError(f"{COLLECTIONS_VARIABLE}: not valid JSON: {error}") from error
    for table, where in tables:
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: [{COLLECTION_TABLES}] holds a section for each collection, not {table!r}")
        for name, rows in table.items():
            full = f"{COLLECTION_TABLES}.{name}"
            one = _section(full, Collection, rows, {}, where, ranges=f"{COLLECTION_TABLES}.NAME")
            assert isinstance(one, Collection)
            if one.recency_half_life_days and not one.time_field:
                raise ConfigError(
                    f"{where}: {full}.recency_half_life_days: set time_field as well: what age is told by"
                )
            found[name] = one
    return found


def _value(where: str, full: str, value: Any, hint: Any, *, is_text: bool) -> Any:
    """Return `value` as the key's type, in its range. Raises ConfigError naming both."""
    if get_origin(hint) is tuple:
        items = [part.strip() for part in value.split(",") if part.strip()] if is_text else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise ConfigError(f"{where}: {value!r} must be a list of texts")
        for item in items if full in _CHECKS else ():
            _CHECKS[full](where, item)
        return tuple(items)
    try:
        converted = msgspec.convert(value, hint, strict=not is_text)
    except msgspec.ValidationError:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{where}: {value!r} must be {words[hint]}{_range_words(full)}") from None
    if full in RANGES and not RANGES[full][0] <= converted <= RANGES[full][1]:
        raise ConfigError(f"{where}: {value!r} must be{_range_words(full)}")
    if full in _CHECKS and converted:
        _CHECKS[full](where, converted)
    return os.path.expanduser(converted) if full in FOLDERS_AND_FILES else converted


def _range_words(full: str) -> str:
    return " from {:g} to {:g}".format(*RANGES[full]) if full in RANGES else ""


def _check_level(where: str, name: str) -> None:
    if name not in LOG_LEVELS:
        raise ConfigError(f"{where}: {name!r} must be one of {', '.join(LOG_LEVELS)}")


def _check_loader(where: str, name: str) -> None:
    if name not in LOADERS:
        raise ConfigError(f"{where}: {name!r} must be one of {', '.join(LOADERS)}")


def _check_precision(where: str, name: str) -> None:
    if name not in PRECISIONS:
        raise ConfigError(f"{where}: {name!r} must be one of {', '.join(PRECISIONS)}")


def _check_fusion(where: str, name: str) -> None:
    if name not in FUSIONS:
        raise ConfigError(f"{where}: {name!r} must be one of {', '.join(FUSIONS)}")


def _check_zone(where: str, name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(f"{where}: {name!r} must be a zone of the IANA database, such as Europe/Berlin") from None


def _check_user(where: str, name: str) -> None:
    try:
        uid_named(name)
    except KeyError:
        raise ConfigError(f"{where}: {name!r} must be a user of this machine, or a uid") from None


def _check_url(where: str, url: str) -> None:
    parts = urlsplit(url)
    if "@" in parts.netloc:  # not shown: it may hold a password
        raise ConfigError(f"{where}: no user or password in a url: give the key by store.api_key_file or api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where}: {url!r} must be a url that begins with http:// or https://")


_CHECKS = {
    "service.log_level": _check_level,
    "service.timezone": _check_zone,
    "service.allowed_users": _check_user,
    "store.url": _check_url,
    "model.loader": _check_loader,
    "model.precision": _check_precision,
    "reranker.fusion": _check_fusion,
}


def _check_together(config: Config, origins: Mapping[str, str]) -> None:
    """Raise ConfigError for values that are each right and do not go together."""

    def where(*keys: str) -> str:
        sources = sorted({origins[key] for key in keys if key in origins})
        return f"{', '.join(sources) or 'defaults'}: {', '.join(keys)}"

    limits = config.limits_
    names = ("active_start", "active_end", "quiet_start", "quiet_end")
    hours = tuple(getattr(limits, name) for name in names)
    turns = [(hour - limits.active_start) % 24 for hour in hours]
    turns[3] = turns[3] or 24  # the quiet hours may end as the active ones begin, a day later
    if turns != sorted(turns) or limits.active_start == limits.active_end or limits.quiet_start == limits.quiet_end:
        raise ConfigError(
            f"{where(*(f'limits.{name}' for name in names))}: {hours} must follow each other around the clock,"
            " as 9, 18, 22, 6 do"
        )
    if config.store.api_key_file and config.store.api_key_env:
        raise ConfigError(f"{where('store.api_key_file', 'store.api_key_env')}: set one of them")
    if config.reranker.top_k > config.reranker.candidates:
        raise ConfigError(
            f"{where('reranker.top_k', 'reranker.candidates')}: {config.reranker.top_k} results cannot be kept of"
            f" {config.reranker.candidates} candidates"
        )


def _api_key(store: Store, env: Mapping[str, str], origins: Mapping[str, str]) -> Secret:
    """Return the API key from its file, its variable, or systemd's credential qdrant_api_key. Never in a message."""
    if store.api_key_env:
        if not env.get(store.api_key_env):
            where = origins.get("store.api_key_env", "configuration")
            raise ConfigError(f"{where}: store.api_key_env: the variable {store.api_key_env!r} is not set")
        return Secret(env[store.api_key_env])
    credentials = env.get("CREDENTIALS_DIRECTORY")
    path = store.api_key_file or (f"{credentials}/qdrant_api_key" if credentials else "")
    if not path or (not store.api_key_file and not Path(path).is_file()):
        return Secret()
    where = origins.get("store.api_key_file", "the credential qdrant_api_key")
    try:
        key = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{where}: store.api_key_file: {path} cannot be read: {why}") from None
    if not key:
        raise ConfigError(f"{where}: store.api_key_file: {path} is empty: write the key into it")
    return Secret(key)


def _close(word: str, known: Iterable[str]) -> list[str]:
    import difflib  # late: for an error alone

    return difflib.get_close_matches(word, list(known), n=1)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = _close(word, known)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def as_environment(config: Config) -> dict[str, str]:
    """Return the variables that give another process this configuration, whatever file it finds; without the API key."""
    found = {}
    for name, kind in SECTIONS.items():
        section, defaults = getattr(config, "limits_" if name == "limits" else name), kind()
        for key in kind.__struct_fields__:
            value = getattr(section, key)
            if value != getattr(defaults, key):
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                found[f"{PREFIX}{name}_{key}".upper()] = text.lower() if isinstance(value, bool) else text
    if config.collections != COLLECTIONS:
        found[COLLECTIONS_VARIABLE] = msgspec.json.encode(config.collections).decode()
    return found


def default_toml() -> str:
    """Return a file with every section and key at its default, to begin with."""
    lines = []
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        defaults = kind()
        lines += [f"{key} = {_toml(getattr(defaults, key))}" for key in kind.__struct_fields__]
        lines.append("")
    for name, one in COLLECTIONS.items():
        lines.append(f"[{COLLECTION_TABLES}.{name}]")
        lines += [f"{key} = {_toml(getattr(one, key))}" for key in one.__struct_fields__]
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
