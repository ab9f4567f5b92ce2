"""Owns how points, vectors and filters in JSON become the engine's, and back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import qdrant_edge as edge

from .refusal import known, unknown, wrong

MODES = {
    "upsert": edge.UpdateMode.Upsert,
    "insert_only": edge.UpdateMode.InsertOnly,
    "update_only": edge.UpdateMode.UpdateOnly,
}


def id_of(given: Any) -> Any:
    """Return a point's id as the engine takes it. Raises Refusal for what is no number and no UUID."""
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**64:
        return given
    try:
        return uuid.UUID(given)
    except (AttributeError, TypeError, ValueError):
        raise wrong(f"{given!r} is not a valid point ID") from None


def plain_id(native: Any) -> int | str:
    return native if isinstance(native, int) else str(native)


def vector_of(given: Any) -> Any:
    """Return the vectors of a point: a list for the unnamed one, else name -> list, or indices and values."""
    if isinstance(given, Mapping):
        return {name: _one_vector(one) for name, one in given.items()}
    return _one_vector(given)


def _one_vector(given: Any) -> Any:
    if isinstance(given, Mapping):
        known(given, "indices", "values")
        return edge.SparseVector(given["indices"], given["values"])
    return given


def plain_vector(native: Any) -> Any:
    if isinstance(native, Mapping):
        return {name: plain_vector(one) for name, one in native.items()}
    if isinstance(native, edge.SparseVector):
        return {"indices": native.indices, "values": native.values}
    return native


def point_of(given: Mapping[str, Any]) -> Any:
    known(given, "id", "vector", "payload")
    return edge.Point(id_of(given["id"]), vector_of(given.get("vector", {})), given.get("payload") or {})


def plain_record(native: Any) -> dict[str, Any]:
    """Return a record, or a found point with its score. What was not asked for is not in it."""
    record: dict[str, Any] = {"id": plain_id(native.id)}
    if native.payload is not None:
        record["payload"] = native.payload
    if native.vector is not None:
        record["vector"] = plain_vector(native.vector)
    if (score := getattr(native, "score", None)) is not None:
        record |= {"score": score, "version": native.version}
    return record


def filter_of(given: Mapping[str, Any] | None) -> Any:
    """Return a filter as the engine takes it, None for None."""
    if given is None:
        return None
    known(given, "must", "should", "must_not")
    return edge.Filter(**{part: [_condition(one) for one in _several(given[part])] for part in given if given[part]})


def fields_of(given: Mapping[str, Any] | None) -> set[str]:
    """Return the payload fields that a filter looks at."""
    found: set[str] = set()
    for part in ("must", "should", "must_not"):
        for one in _several((given or {}).get(part) or []):
            found |= {one["key"]} if one.get("key") is not None else fields_of(one)
    return found


def _several(conditions: Any) -> list[Any]:
    return conditions if isinstance(conditions, list) else [conditions]


def _condition(given: Mapping[str, Any]) -> Any:
    if given.get("has_id") is not None:
        known(given, "has_id")
        return edge.HasIdCondition({id_of(one) for one in given["has_id"]})
    if given.get("is_empty") is not None:
        return edge.IsEmptyCondition(given["is_empty"]["key"])
    if given.get("key") is not None:
        known(given, "key", "match")
        return edge.FieldCondition(given["key"], match=_match(given["match"]))
    return filter_of(given)


def _match(given: Mapping[str, Any]) -> Any:
    if given.get("any") is not None:
        return edge.MatchAny(known(given, "any")["any"])
    value = known(given, "value").get("value")
    if not isinstance(value, str | int):
        raise unknown(f"the match {given!r}")
    # the engine takes a Python bool for a whole number; one of numpy's it takes as it is
    return edge.MatchValue(np.bool_(value) if isinstance(value, bool) else value)


def query_of(given: Mapping[str, Any]) -> Any:
    """Return a search of the nearest points."""
    known(
        given, "query", "using", "filter", "limit", "offset", "with_payload", "with_vector", "params", "score_threshold"
    )
    wanted = given.get("query")
    if isinstance(wanted, Mapping) and "nearest" in wanted:
        wanted = known(wanted, "nearest")["nearest"]
    if not isinstance(wanted, list):
        raise unknown(f"a query that is a {type(wanted).__name__}")
    params = known(given.get("params") or {}, "exact", "hnsw_ef")
    return edge.QueryRequest(
        query=edge.Query.Nearest(wanted, using=given.get("using")),
        filter=filter_of(given.get("filter")),
        limit=given.get("limit") or 10,
        offset=given.get("offset") or 0,
        with_payload=given.get("with_payload") or False,
        with_vector=given.get("with_vector") or False,
        score_threshold=given.get("score_threshold"),
        params=edge.SearchParams(exact=bool(params.get("exact")), hnsw_ef=params.get("hnsw_ef")),
    )
