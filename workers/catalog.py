"""Owns the map of the embedded store's collections and aliases: one JSON file, replaced by one rename."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..ipc.errors import ConfigError
from ..ipc.records import IndexSettings
from .names import taken
from .versions import is_ours


class Entry(msgspec.Struct, frozen=True):
    folder: str  # inside the store's `shards`
    vector_size: int
    distance: str
    vector_name: str = ""
    index: IndexSettings = IndexSettings()


class Contents(msgspec.Struct, frozen=True):
    version: int = 1
    collections: dict[str, Entry] = {}
    aliases: dict[str, str] = {}


class Catalog:
    """Reads the file once, and replaces it whole with every change: an alias swap is one rename.

    Writes an empty one where there is none, so that a file that was lost can be told from one that never was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.contents = Contents()
        if not path.exists():
            self._replace()
        else:
            try:
                self.contents = msgspec.json.decode(path.read_bytes(), type=Contents)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{path} cannot be read ({error}): restore it from a backup; the vectors beside it are untouched"
                ) from error

    def names(self) -> list[str]:
        return [*self.contents.collections, *self.contents.aliases]

    def resolve(self, name: str) -> str | None:
        """Return the collection behind a name or alias; None if there is none."""
        name = self.contents.aliases.get(name, name)
        return name if name in self.contents.collections else None

    def aliases_of(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, target in self.contents.aliases.items() if target == name))

    def add(self, name: str, entry: Entry) -> None:
        """Raises InvalidArgument if the name is taken."""
        if name in self.names():
            raise taken(name)
        self._replace(collections=self.contents.collections | {name: entry})

    def configure(self, name: str, index: IndexSettings) -> None:
        """Keep how the collection `name` is indexed and searched."""
        entry = msgspec.structs.replace(self.contents.collections[name], index=index)
        self._replace(collections=self.contents.collections | {name: entry})

    def remove(self, name: str) -> None:
        """Forget a collection and the aliases that point at it."""
        kept = {key: entry for key, entry in self.contents.collections.items() if key != name}
        aliases = {alias: target for alias, target in self.contents.aliases.items() if target != name}
        self._replace(collections=kept, aliases=aliases)

    def point(self, alias: str, name: str) -> None:
        """Let `alias` mean the collection `name`. Raises InvalidArgument if a collection has the alias's name."""
        if alias in self.contents.collections:
            raise taken(alias)
        self._replace(aliases=self.contents.aliases | {alias: name})

    def forget(self, alias: str) -> None:
        if alias in self.contents.aliases:
            self._replace(aliases={key: name for key, name in self.contents.aliases.items() if key != alias})

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        """Serve `new` in place of `old`; see VectorStore.swap. One rename of the file does all of it."""
        collections, aliases = dict(self.contents.collections), dict(self.contents.aliases)
        served = [alias for alias in self.aliases_of(old) if not is_ours(alias)]
        if not served:
            collections, aliases = self._renamed(old, rename_to)
            served, old = [old], rename_to
        aliases = {alias: name for alias, name in aliases.items() if not (name == new and is_ours(alias))}
        aliases |= dict.fromkeys(served, new) | {kept_as: old}
        self._replace(collections=collections, aliases=aliases)

    def make_alias(self, name: str, rename_to: str) -> None:
        """Rename a collection, and let its name mean it as an alias. Raises InvalidArgument for a name that is taken."""
        collections, aliases = self._renamed(name, rename_to)
        self._replace(collections=collections, aliases=aliases | {name: rename_to})

    def _renamed(self, name: str, to: str) -> tuple[dict[str, Entry], dict[str, str]]:
        """Return collections and aliases with another name for a collection."""
        if to in self.names():
            raise taken(to)
        collections = {to if key == name else key: entry for key, entry in self.contents.collections.items()}
        aliases = {alias: to if target == name else target for alias, target in self.contents.aliases.items()}
        return collections, aliases

    def _replace(self, **fields: object) -> None:
        contents = msgspec.structs.replace(self.contents, **fields)
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(contents), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
        self.contents = contents
