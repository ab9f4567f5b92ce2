"""Owns which entries of the result store are aliases, and of which entry each: both ways, by key. In the writer alone."""

from __future__ import annotations


class Leaning:
    """An alias shares the record of one entry, that entry is no alias itself."""

    def __init__(self) -> None:
        self._entry: dict[bytes, bytes] = {}  # alias -> the entry it shares the texts of
        self._aliases: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, key: object) -> bool:
        """Say whether `key` is an alias."""
        return key in self._entry

    def add(self, alias: bytes, entry: bytes) -> None:
        """Raises ValueError where that would make an alias of an alias, or of itself."""
        if alias == entry or entry in self._entry or alias in self._aliases:
            raise ValueError("an alias of an alias: the one shares a record that the other has not got")
        self.discard(alias)
        self._entry[alias] = entry
        self._aliases.setdefault(entry, set()).add(alias)

    def discard(self, alias: bytes) -> None:
        entry = self._entry.pop(alias, None)
        if entry is not None:
            self._aliases[entry].discard(alias)
            if not self._aliases[entry]:
                del self._aliases[entry]

    def entry_of(self, alias: bytes) -> bytes | None:
        return self._entry.get(alias)

    def of(self, entry: bytes) -> list[bytes]:
        return list(self._aliases.get(entry, ()))

    def copy(self) -> Leaning:
        found = Leaning()
        found._entry = dict(self._entry)
        found._aliases = {entry: set(aliases) for entry, aliases in self._aliases.items()}
        return found
