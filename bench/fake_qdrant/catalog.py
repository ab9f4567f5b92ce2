"""Owns which collections and aliases there are, and how each collection is configured: a JSON file beside the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .refusal import Refusal, not_found, unknown, wrong

GRAPH = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": False}
OPTIMIZERS = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "indexing_threshold": 10000,
    "flush_interval_sec": 5,
}
WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}
PARAMS = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}
DIFFS = ("hnsw_config", "optimizers_config", "quantization_config", "strict_mode_config")
IN_ANSWER = {"optimizers_config": "optimizer_config"}  # a configuration's name where it is set, and where it is shown


@dataclass
class Collection:
    """How one is configured. `config`: as a server's answer has it; `schema`: params of the payload indexes, by field."""

    folder: str
    config: dict[str, Any]
    schema: dict[str, Any] = field(default_factory=dict)


class Catalog:
    """Reads and writes `path`. Raises Refusal as the server would."""

    def __init__(self, path: Path) -> None:
        self._path = path
        held = json.loads(path.read_text()) if path.exists() else {"collections": {}, "aliases": {}}
        self.collections = {name: Collection(**one) for name, one in held["collections"].items()}
        self.aliases: dict[str, str] = held["aliases"]

    def save(self) -> None:
        collections = {name: asdict(one) for name, one in self.collections.items()}
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"collections": collections, "aliases": self.aliases}))
        fresh.replace(self._path)

    def resolve(self, name: str) -> str:
        """Return the own name of a collection that is given by name or alias."""
        real = self.aliases.get(name, name)
        if real not in self.collections:
            raise not_found(f"Collection `{name}` doesn't exist!")
        return real

    def add(self, name: str, folder: str, body: Mapping[str, Any]) -> Collection:
        """Take a new collection down."""
        if name in self.collections:
            raise Refusal(409, f"Collection `{name}` already exists!")
        if name in self.aliases:
            raise wrong(f"Can't create collection with name {name}. Alias with the same name already exists")
        params = {key: body[key] for key in ("vectors", "sparse_vectors", *PARAMS) if body.get(key) is not None}
        config = {
            "params": PARAMS | params,
            "hnsw_config": GRAPH | _said(body.get("hnsw_config")),
            "optimizer_config": OPTIMIZERS | _said(body.get("optimizers_config")),
            "wal_config": WAL,
        }
        for part in ("quantization_config", "strict_mode_config"):
            if body.get(part) is not None:
                config[part] = body[part]
        self.collections[name] = Collection(folder, config)
        self.save()
        return self.collections[name]

    def change(self, name: str, body: Mapping[str, Any]) -> None:
        """Change what `body` names of a collection's configuration."""
        if strange := [key for key, value in body.items() if value is not None and key not in DIFFS]:
            raise unknown(f"a change of {strange[0]!r}")
        config = self.collections[self.resolve(name)].config
        for part in DIFFS:
            if said := _said(body.get(part)):
                shown = IN_ANSWER.get(part, part)
                config[shown] = config.get(shown, {}) | said
        self.save()

    def remove(self, name: str) -> Collection | None:
        """Forget a collection and its aliases; return it, None where there is none of that name. An alias is no name of it."""
        gone = self.collections.pop(name, None)
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}
        self.save()
        return gone

    def change_aliases(self, actions: list[Mapping[str, Any]]) -> None:
        """Obey one after the other. As with the server, those before one that is refused stay obeyed.

        One that is there already is pointed elsewhere; to forget one that is not there is no mistake.
        """
        try:
            for action in actions:
                ((kind, given),) = action.items()
                match kind:
                    case "create_alias":
                        if given["collection_name"] not in self.collections:
                            raise not_found(f"Collection `{given['collection_name']}` doesn't exist!")
                        if given["alias_name"] in self.collections:
                            raise Refusal(409, f"Collection `{given['alias_name']}` already exists!")
                        self.aliases[given["alias_name"]] = given["collection_name"]
                    case "delete_alias":
                        self.aliases.pop(given["alias_name"], None)
                    case "rename_alias":
                        if given["old_alias_name"] not in self.aliases:
                            raise not_found(f"Alias {given['old_alias_name']} does not exists!")
                        self.aliases[given["new_alias_name"]] = self.aliases.pop(given["old_alias_name"])
                    case _:
                        raise unknown(f"the alias operation {kind!r}")
        finally:
            self.save()


def _said(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (given or {}).items() if value is not None}
