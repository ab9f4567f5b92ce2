"""Owns how each store is started, written and read: ours, and what a user would pick instead of it.

Peers are given every advantage that costs no freshness: files on tmpfs, Unix sockets, no fsync, our lazy record format
without its checksum, raw keys without normalisation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.managers import DictProxy, SyncManager
from pathlib import Path
from typing import Any, Protocol

import xxhash

from morgan.background.ipc.reader import LOCAL_COPIES, ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore

from .payload import COLLECTION, ENTRIES, Columns, Ready, pack, ready, results

START_S = 10.0  # a server that is not up by then will not be
HOUR_S = 3600.0

Put = Callable[[ComputedResult], None]


@dataclass(frozen=True, slots=True)
class Lookup:
    """`get(*arguments(text))` returns the entry of a query, decoded as far as it is touched."""

    get: Callable[..., Any]
    arguments: Callable[[str], tuple[Any, ...]]


class Store(Protocol):
    """A Peer that is written by one process and read by others. `folder` lies on tmpfs."""

    name: str
    folder: Path

    def available(self) -> str | None: ...
    def version(self) -> str: ...
    def serving(self) -> AbstractContextManager[None]: ...
    def writer(self) -> Put: ...
    def reader(self, *, is_keeping: bool) -> Lookup: ...


def needs(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"not installed: pip install '.[bench]' brings {module}"


def needs_program(program: str, package: str) -> str | None:
    return None if shutil.which(program) else f"no {program} on PATH: the system package {package} brings it"


def raw_key(text: str) -> bytes:
    return f"{COLLECTION}\0{text}".encode()


@dataclass
class Ours:
    folder: Path
    name: str = "morgan result store"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return importlib.metadata.version("morgan-background")

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def writer(self) -> Put:
        store = ResultStore(self.folder / "ours", capacity=ENTRIES)
        return lambda result: store.put(result, expires_at=time.time() + HOUR_S)

    def reader(self, *, is_keeping: bool) -> Lookup:
        # one copy is none: the next query replaces it
        reader = ResultReader(self.folder / "ours", local_copies=LOCAL_COPIES if is_keeping else 1)
        return Lookup(reader.get, lambda text: (text, COLLECTION))


@dataclass
class Dict:
    """The floor: ready objects in the reader's own memory, which no other process can update."""

    folder: Path
    name: str = "dict, in process"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return sys.version.split()[0]

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def writer(self) -> Put:
        return lambda _: None

    def reader(self, *, is_keeping: bool) -> Lookup:
        held = {(result.query_text, COLLECTION): ready(result) for result in results()}
        return Lookup(held.get, lambda text: ((text, COLLECTION),))


@dataclass
class Lmdb:
    folder: Path
    name: str = "LMDB"
    encode: Callable[[ComputedResult], bytes] = pack
    decode: Callable[[bytes], Any] = Columns

    def available(self) -> str | None:
        return needs("lmdb")

    def version(self) -> str:
        import lmdb

        return f"{importlib.metadata.version('lmdb')} (liblmdb {'.'.join(map(str, lmdb.version()))})"

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _path(self) -> str:
        return str(self.folder / self.name.replace(" ", "-"))

    def writer(self) -> Put:
        import lmdb

        environment = lmdb.open(self._path(), map_size=256 << 20, writemap=True, sync=False, metasync=False)

        def put(result: ComputedResult) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(raw_key(result.query_text), self.encode(result))

        return put

    def reader(self, *, is_keeping: bool) -> Lookup:
        begin, decode = open_lmdb(self._path()).begin, self.decode

        def get(key: bytes) -> Any:
            with begin() as transaction:  # sees the last commit; py-lmdb keeps spare ones and renews them
                raw = transaction.get(key)
            return decode(raw)

        return Lookup(get, lambda text: (raw_key(text),))


@functools.cache  # py-lmdb refuses to open an environment that this process has open already
def open_lmdb(path: str) -> Any:
    import lmdb

    return lmdb.open(path, readonly=True, map_size=256 << 20)


def to_pickle(result: ComputedResult) -> bytes:
    return pickle.dumps(ready(result), pickle.HIGHEST_PROTOCOL)


def from_pickle(raw: bytes) -> Any:
    return pickle.loads(raw)  # noqa: S301 - what users do; the bytes are this benchmark's own


def lmdb_with_pickle(folder: Path) -> Lmdb:
    return Lmdb(folder, "LMDB + pickle", to_pickle, from_pickle)


@dataclass
class Sqlite:
    folder: Path
    name: str = "sqlite (WAL)"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return sqlite3.sqlite_version

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def writer(self) -> Put:
        database = sqlite3.connect(self.folder / "results.sqlite3", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, record BLOB) WITHOUT ROWID")
        statement = "INSERT OR REPLACE INTO results VALUES (?, ?)"
        return lambda result: database.execute(statement, (raw_key(result.query_text), pack(result))) and None

    def reader(self, *, is_keeping: bool) -> Lookup:
        database = sqlite3.connect(self.folder / "results.sqlite3", isolation_level=None, timeout=30)
        execute = database.execute

        def get(key: bytes) -> Columns:
            return Columns(execute("SELECT record FROM results WHERE key = ?", (key,)).fetchone()[0])

        return Lookup(get, lambda text: (raw_key(text),))


@dataclass
class DiskCache:
    folder: Path
    name: str = "diskcache"

    def available(self) -> str | None:
        return needs("diskcache")

    def version(self) -> str:
        return importlib.metadata.version("diskcache")

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _open(self) -> Any:
        import diskcache

        return diskcache.Cache(str(self.folder / "diskcache"), timeout=30)

    def writer(self) -> Put:
        cache = self._open()
        return lambda result: cache.set(raw_key(result.query_text), pack(result)) and None

    def reader(self, *, is_keeping: bool) -> Lookup:
        cache = self._open()
        return Lookup(lambda key: Columns(cache.get(key)), lambda text: (raw_key(text),))


@contextmanager
def server(command: list[str], socket: Path) -> Iterator[None]:
    """Run a server until the end of the block. Raises TimeoutError if its socket does not appear."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end_at = time.monotonic() + START_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end_at:
                raise TimeoutError(f"{command[0]} did not open {socket}: run `{' '.join(command)}` to see why")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass
class Redis:
    folder: Path
    name: str = "Redis, Unix socket"

    def available(self) -> str | None:
        return needs("redis") or needs("hiredis") or needs_program("redis-server", "redis-server")

    def version(self) -> str:
        told = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        number = told.partition("v=")[2].split(" ")[0]
        return f"{number} (redis-py {importlib.metadata.version('redis')}, hiredis {importlib.metadata.version('hiredis')})"

    def serving(self) -> AbstractContextManager[None]:
        socket = self.folder / "redis.sock"
        options = {"port": "0", "unixsocket": str(socket), "save": "", "appendonly": "no", "dir": str(self.folder)}
        return server(
            ["redis-server", *(part for key, value in options.items() for part in (f"--{key}", value))], socket
        )

    def _connect(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=str(self.folder / "redis.sock"))

    def writer(self) -> Put:
        client = self._connect()
        return lambda result: client.set(raw_key(result.query_text), pack(result)) and None

    def reader(self, *, is_keeping: bool) -> Lookup:
        client = self._connect()
        return Lookup(lambda key: Columns(client.get(key)), lambda text: (raw_key(text),))


@dataclass
class Memcached:
    folder: Path
    name: str = "memcached, Unix socket"

    def available(self) -> str | None:
        return needs("pymemcache") or needs_program("memcached", "memcached")

    def version(self) -> str:
        told = subprocess.run(["memcached", "-V"], capture_output=True, text=True, check=True).stdout
        return f"{told.split()[-1]} (pymemcache {importlib.metadata.version('pymemcache')})"

    def serving(self) -> AbstractContextManager[None]:
        socket = self.folder / "memcached.sock"
        as_root = ["-u", "root"] if os.getuid() == 0 else []
        return server(["memcached", "-s", str(socket), "-m", "64", *as_root], socket)

    def _connect(self) -> Any:
        from pymemcache.client.base import Client

        return Client(f"unix:{self.folder / 'memcached.sock'}", no_delay=False)

    @staticmethod
    def _key(text: str) -> str:
        return xxhash.xxh3_128_hexdigest(raw_key(text))  # its keys hold no spaces and at most 250 bytes

    def writer(self) -> Put:
        client = self._connect()
        return lambda result: client.set(self._key(result.query_text), pack(result), noreply=False) and None

    def reader(self, *, is_keeping: bool) -> Lookup:
        client = self._connect()
        return Lookup(lambda key: Columns(client.get(key)), lambda text: (self._key(text),))


_managed: dict[bytes, Ready] = {}


def _entries() -> dict[bytes, Ready]:
    return _managed


class _Manager(SyncManager):
    pass


_Manager.register("entries", callable=_entries, proxytype=DictProxy)


@dataclass
class ManagerDict:
    folder: Path
    name: str = "Manager().dict"
    key: bytes = field(default_factory=lambda: os.urandom(16))  # keeps others out of the manager's socket

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return sys.version.split()[0]

    @contextmanager
    def serving(self) -> Iterator[None]:
        manager = _Manager(address=self._address(), authkey=self.key)
        manager.start()
        try:
            yield
        finally:
            manager.shutdown()

    def _address(self) -> str:
        return str(self.folder / "manager.sock")

    def _connect(self) -> Any:
        manager = _Manager(address=self._address(), authkey=self.key)
        manager.connect()
        return manager.entries()  # type: ignore[attr-defined]

    def writer(self) -> Put:
        entries = self._connect()
        return lambda result: entries.update({raw_key(result.query_text): ready(result)})

    def reader(self, *, is_keeping: bool) -> Lookup:
        entries = self._connect()
        return Lookup(entries.get, lambda text: (raw_key(text),))


OURS, FLOOR, LMDB, REDIS = Ours.name, Dict.name, Lmdb.name, Redis.name


def all_stores(folder: Path) -> list[Store]:
    makers: list[Callable[[Path], Store]] = [
        Ours,
        Dict,
        Lmdb,
        lmdb_with_pickle,
        Sqlite,
        DiskCache,
        Memcached,
        Redis,
        ManagerDict,
    ]
    return [make(folder) for make in makers]
