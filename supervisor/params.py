"""Owns which parameters a task takes, and which queries it is given. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..ipc.checks import DISTANCES
from ..ipc.errors import InvalidArgument
from ..ipc.query import query_hash
from ..ipc.records import QueryJob, QueryRecord, TaskType

SCOPES = ("popular", "all")

GATE_QUERIES = 200  # popular ones that a rebuilt index is measured with, beside the judged ones
ALL_QUERIES = 1000  # what "all" is bounded by: the size of the result store
MAX_TOKEN = 64  # characters: a UUID and more
MAX_HOLD_S = 3600.0  # what a ping may hold a worker for


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) and text.strip() for text in value)


def _is_scope(value: Any) -> bool:
    return value in SCOPES


def _is_distance(value: Any) -> bool:
    return value in DISTANCES


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TOKEN


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_HOLD_S


_Check = tuple[Callable[[Any], bool], str]

_FLAG: _Check = (_is_flag, "true or false")
_COUNT: _Check = (_is_count, "a whole number above 0")
_TEXTS: _Check = (_is_texts, "a list of non-empty texts")
_SCOPE: _Check = (_is_scope, " or ".join(SCOPES))
_TEXT: _Check = (_is_text, f"a text of at most {MAX_TOKEN} characters")
_SECONDS: _Check = (_is_seconds, f"a number of seconds above 0, at most {MAX_HOLD_S:g}")

_DISTANCE: _Check = (_is_distance, " or ".join(DISTANCES))

ACCEPTED: Mapping[TaskType, Mapping[str, _Check]] = {
    TaskType.REINDEX: {
        "force_rebuild": _FLAG,
        "dry_run": _FLAG,
        "distance": _DISTANCE,
        "without_gate": _FLAG,
        "allow_mixed": _FLAG,
        "only_new": _FLAG,
    },
    TaskType.RERANK: {"max_queries": _COUNT, "queries": _TEXTS, "scope": _SCOPE, "dry_run": _FLAG},
    TaskType.WARM: {"max_queries": _COUNT, "queries": _TEXTS, "force_refresh": _FLAG, "dry_run": _FLAG},
    TaskType.TUNE: {"apply": _FLAG, "fields": _TEXTS},
    TaskType.LEARN: {"undo": _FLAG},
    TaskType.PING: {"token": _TEXT, "hold_s": _SECONDS},
}


def check_params(task_type: TaskType, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return `params` if `task_type` takes them. Raises InvalidArgument that names the key and what it accepts."""
    accepted = ACCEPTED[task_type]
    for key, value in params.items():
        if key not in accepted:
            raise InvalidArgument(f"a {task_type.value} task has no parameter {key!r}: it takes {', '.join(accepted)}")
        is_valid, wanted = accepted[key]
        if not is_valid(value):
            raise InvalidArgument(f"parameter {key!r} of a {task_type.value} task must be {wanted}, not {value!r}")
    return dict(params)


def params_of_schedule(task_type: TaskType, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a schedule's metadata that is parameters of its task; the rest is the user's own."""
    return {key: metadata[key] for key, (is_valid, _) in ACCEPTED[task_type].items() if is_valid(metadata.get(key))}


def bounds(params: Mapping[str, Any], max_queries: int, min_frequency: int) -> tuple[int, int]:
    """Return how many popular queries a task works on at most, and how often one must have been asked."""
    is_all = params.get("scope") == "all"
    return params.get("max_queries") or (ALL_QUERIES if is_all else max_queries), 1 if is_all else min_frequency


def jobs_for(
    task_type: TaskType,
    collection: str,
    params: Mapping[str, Any],
    popular: Callable[[int, int], Iterable[QueryRecord]],
    judgments: Mapping[str, tuple[str, Mapping[str, float]]],
    *,
    max_queries: int,
    min_frequency: int,
    is_cached: Callable[[str], bool],
    is_worth: Callable[[str], bool],
    stale: Iterable[str] = (),
) -> tuple[QueryJob, ...]:
    """Return the queries a task works on, each with its judgments.

    `popular(limit, min_frequency)` lists queries of the collection, in the order in which they are to be worked on (most
    popular first, or as planned); `judgments` maps a query's hash to its text and grades. A ping gets none. A re-index and
    a tune get the judged and the popular queries, to measure with; a learn task the judged ones. Of popular queries those
    are left out whose results a full store would not keep: they are not `is_worth` it. A warm task leaves out what
    `is_cached`, and gets the `stale` ones as well: those whose result is served and to be computed again.
    """

    def job(text: str, weight: float = 1.0) -> QueryJob:
        _, grades = judgments.get(query_hash(text, collection), ("", {}))
        return QueryJob(text=text, weight=weight, judgments=dict(grades))

    if task_type is TaskType.PING:
        return ()
    judged = [text for text, _ in judgments.values()]
    if task_type is TaskType.LEARN:
        return tuple(job(text) for text in dict.fromkeys(judged))
    if task_type in (TaskType.REINDEX, TaskType.TUNE):
        asked = [q.query_text for q in popular(GATE_QUERIES, 1) if not q.scope]
        return tuple(job(text) for text in dict.fromkeys([*judged, *asked]))
    if (texts := params.get("queries")) is not None:
        found = [job(text) for text in texts]
    else:
        limit, least = bounds(params, max_queries, min_frequency)
        # those of a filter or a tenant cannot be computed here: the filter is the application's
        found = [
            job(q.query_text, q.popularity) for q in popular(limit, least) if not q.scope and is_worth(q.query_text)
        ]
        if task_type is TaskType.WARM:
            texts_found = {one.text for one in found}
            found += [job(text) for text in stale if text not in texts_found]
    if task_type is TaskType.WARM and not params.get("force_refresh"):
        found = [one for one in found if not is_cached(one.text)]
    return tuple(found)
