"""Owns `cache.wrap`: a search function of the application's, answered from shared memory where it can be.

call ─▶ key = query, collection, and every other argument ─▶ held? return it
                                                          └▶ call through ─▶ post the result and the time it took

A result is what the function returned, stored as it is: plain values (dict, list, str, int, float, bool, None). With
`decode`, the service's own reranked results answer as well, made into what the function returns.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from .ipc.errors import InvalidArgument
from .ipc.messages import Publish, Track
from .ipc.records import ComputedResult
from .ipc.result import CachedResult
from .lane import Lane

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

EMPTY_TTL_S = 60.0  # of a result with nothing in it: what is missing today may be there in a minute
COLLECTION_NAMES = ("collection", "collection_name")
VALUE = "value"


@dataclass(frozen=True, slots=True)
class Terms:
    """`collection`: its name where the function takes none. `tenant`: the parameter that says whose results they are."""

    collection: str | None = None
    tenant: str | None = None
    ttl_s: float | None = None
    decode: Callable[[CachedResult], Any] | None = None


@dataclass(frozen=True, slots=True)
class Key:
    query: str
    collection: str
    scope: str  # every other argument; "" where there is none but the query and the collection


class Signature:
    """Which parameter of a search function is what. Raises InvalidArgument where that cannot be told."""

    def __init__(self, search: Callable[..., Any], terms: Terms) -> None:
        self._signature = inspect.signature(search)
        names = [name for name in self._signature.parameters if name not in ("self", "cls")]
        self.name = getattr(search, "__qualname__", repr(search))
        self._terms = terms
        if not names:
            raise InvalidArgument(f"{self.name} takes no query: its first parameter is the query's text")
        self._query = names[0]
        self._collection = next((name for name in names if name in COLLECTION_NAMES), None)
        if terms.collection is None and self._collection is None:
            raise InvalidArgument(
                f"{self.name} takes no collection: say which it searches, wrap(search, collection=...)"
            )
        if terms.tenant is not None and terms.tenant not in names:
            raise InvalidArgument(f"{self.name} has no parameter {terms.tenant!r}: it takes {', '.join(names)}")

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Key | None:
        """Return what a call is kept under; None where it must not be: no tenant, or arguments that cannot be named."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        rest = {name: value for name, value in bound.arguments.items() if name not in ("self", "cls")}
        query = rest.pop(self._query)
        collection = rest.pop(self._collection) if self._collection else self._terms.collection
        tenant = rest.pop(self._terms.tenant) if self._terms.tenant else ""
        if not isinstance(query, str) or not isinstance(collection, str) or not query.strip():
            return None
        if self._terms.tenant and not tenant:
            return None  # whose results these would be is not known: never a guess
        rest = {name: value for name, value in rest.items() if value not in (None, (), {})}
        if not tenant and not rest and self._terms.decode:
            return Key(query, collection, "")  # the same question as the service's own precomputed one
        if not is_plain([tenant, rest]):
            return None
        scope = json.dumps([self.name, tenant, rest], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return Key(query, collection, scope)


def is_plain(value: Any) -> bool:
    """Say whether a value comes back from msgpack and JSON as it was."""
    match value:
        case None | bool() | str():
            return True
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case list():
            return all(is_plain(one) for one in value)
        case dict():
            return all(isinstance(name, str) and is_plain(one) for name, one in value.items())
    return False


class Answers:
    """Looks calls up and keeps their results."""

    def __init__(self, lane: Callable[[], Lane], signature: Signature, terms: Terms) -> None:
        self._lane, self._signature, self._terms = lane, signature, terms
        self._has_complained = False

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Key | None:
        return self._signature.key(args, kwargs)

    def held(self, key: Key, began: float) -> tuple[bool, Any]:
        """Return whether there is a result, and the result: a fresh copy, the caller's to change."""
        reader = self._lane().reader
        found = reader.get(key.query, key.collection, key.scope)
        if found is None:
            return False, None
        decode = self._terms.decode
        value = decode(found) if decode and not key.scope else found.fresh_metadata()[0][VALUE]
        reader.timed(time.perf_counter() - began)
        return True, value

    def keep(self, key: Key, value: Any, began: float) -> None:
        """Post what was computed, and how long that took. Never raises for want of a service."""
        self._track(key, began)
        if not key.scope and self._terms.decode:
            return  # the service precomputes this one itself, in its own form
        if value is None:
            return
        if not is_plain(value):
            if not self._has_complained:
                self._has_complained = True
                log.warning(
                    "results of %s are not kept: only dicts, lists, texts, numbers, true, false and None are."
                    " Return those, or give wrap a decode= to be served the service's own results",
                    self._signature.name,
                )
            return
        ttl_s = self._terms.ttl_s
        if not value and isinstance(value, list | dict | str):
            ttl_s = min(EMPTY_TTL_S, EMPTY_TTL_S if ttl_s is None else ttl_s)
        rows = [{"id": 0, "metadata": {VALUE: value}}]
        self._lane().post(Publish(result=rows_result(key.query, key.collection, rows, key.scope), ttl_s=ttl_s))

    def _track(self, key: Key, began: float) -> None:
        response_s = time.perf_counter() - began
        # counted as a search of the collection, whatever else it was asked with: that is what can be precomputed
        track = Track(query=key.query, collection=key.collection, response_s=response_s, was_looked_up=True)
        self._lane().post(track)


def wrapped(lane: Callable[[], Lane], search: Callable[P, T], terms: Terms) -> Callable[P, T]:
    """Return `search`, sync or async, answered from the store where it can be. Errors of `search` are its own."""
    answers = Answers(lane, Signature(search, terms), terms)
    if inspect.iscoroutinefunction(search):
        search_async = cast("Callable[P, Awaitable[Any]]", search)

        @functools.wraps(search)
        async def ask_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            began, key = time.perf_counter(), answers.key(args, kwargs)
            if key is None:
                return await search_async(*args, **kwargs)
            is_held, value = answers.held(key, began)
            if not is_held:
                value = await search_async(*args, **kwargs)
                answers.keep(key, value, began)
            return value

        return cast("Callable[P, T]", ask_async)

    @functools.wraps(search)
    def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        began, key = time.perf_counter(), answers.key(args, kwargs)
        if key is None:
            return search(*args, **kwargs)
        is_held, value = answers.held(key, began)
        if not is_held:
            value = search(*args, **kwargs)
            answers.keep(key, value, began)
        return cast("T", value)

    return ask


def rows_result(query: str, collection: str, rows: Iterable[Mapping[str, Any]], scope: str) -> ComputedResult:
    """Return rows an application computed as a result; see `PrecomputedSearchCache.put`. Raises InvalidArgument."""
    given = list(rows)
    for row in given:
        if "id" not in row:
            raise InvalidArgument(f"a row needs an 'id'; this one has {', '.join(row) or 'nothing'}")
    reranked = [row["rerank_score"] for row in given if row.get("rerank_score") is not None]
    if len(reranked) not in (0, len(given)):
        raise InvalidArgument(f"{len(reranked)} of {len(given)} rows have a rerank_score: give it to all or none")
    return ComputedResult(
        query_text=query,
        collection=collection,
        scope=scope,
        ids=tuple(row["id"] for row in given),
        scores=np.array([row.get("score", 0.0) for row in given], dtype="<f4").tobytes(),
        rerank_scores=np.array(reranked, dtype="<f4").tobytes(),
        contents=tuple(str(row.get("content", "")) for row in given),
        sources=tuple(str(row.get("source", "")) for row in given),
        metadata=tuple(dict(row.get("metadata", {})) for row in given),
        computed_at=time.time(),
    )
