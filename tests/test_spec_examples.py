"""The examples of the specification, run word for word: on an in-memory client, and with no client at all.

They come from tests/data/spec_examples.md, which is the specification's own text; docs/usage.md has to show the same.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from morgan.background import BackgroundProcessingService, Client, TaskFrequency, TaskStatus
from morgan.background.data import queries
from morgan.background.inline import InlineLane
from morgan.background.ipc import launch
from morgan.background.ipc.records import Point
from morgan.background.lane import DaemonLane
from morgan.background.spawned import SpawnedLane
from morgan.background.supervisor.config import load
from morgan.background.workers.open_store import open_store
from tests.conftest import DOCUMENTS, SIZE, Fill, Shelf, WordOverlap

ROOT = Path(__file__).parents[1]
PART = re.compile(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(path: Path) -> dict[str, str]:
    """Return the first Python block below each heading, by heading."""
    found: dict[str, str] = {}
    heading = ""
    for title, language, code in PART.findall(path.read_text(encoding="utf-8")):
        heading = title or heading
        if language == "python":
            found.setdefault(heading, code)
    return found


SPEC = blocks_of(ROOT / "tests" / "data" / "spec_examples.md")
USAGE = blocks_of(ROOT / "docs" / "usage.md")
README = blocks_of(ROOT / "README.md")
EXAMPLES = (
    "Basic Task Scheduling",
    "Resource Monitoring",
    "Task Execution",
    "Precomputed Caching",
    "Integrated Service",
)
COLLECTIONS = ("collection_name", "docs_collection", "morgan_memories")


def run(code: str | ast.Module, name: str, **given: Any) -> dict[str, Any]:
    """Run an example in a namespace of its own that holds `given`; return the namespace."""
    names = dict(given)
    exec(compile(code, name, "exec", dont_inherit=True), names)
    return names


def test_the_documentation_shows_the_examples_of_the_specification() -> None:
    assert set(EXAMPLES) < set(SPEC)
    for name in EXAMPLES:  # equal but for how they are broken into lines
        assert ast.dump(ast.parse(USAGE[name])) == ast.dump(ast.parse(SPEC[name]))
        comments = [re.findall("#.*", code) for code in (USAGE[name], SPEC[name])]
        assert comments[0] == comments[1]


# --- what needs no store ----------------------------------------------------------------------------------------------


def test_basic_task_scheduling(own_state: Path) -> None:
    names = run(SPEC["Basic Task Scheduling"], "Basic Task Scheduling")
    tasks = names["scheduler"].scheduled_tasks
    assert [(t.task_type, t.collection_name, t.frequency) for t in tasks.values()] == [
        ("reindex", "morgan_knowledge", TaskFrequency.DAILY),
        ("rerank", "morgan_memories", TaskFrequency.HOURLY),
    ]
    assert list(tasks)[-1] == names["task_id"]
    assert names["pending"] == []


def test_resource_monitoring(own_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(SPEC["Resource Monitoring"], "Resource Monitoring")
    printed = capsys.readouterr().out
    assert re.fullmatch(r"CPU: \d+\.\d%, Memory: \d+\.\d%\nCan run task: (True|False)\n", printed)


def test_the_limits_of_the_text_are_the_defaults(own_state: Path) -> None:
    limits, config = run(SPEC["Resource Limits"], "Resource Limits"), load()
    assert limits["active_hours_cpu_limit"] == config.limits_.active_hours_cpu_limit
    assert limits["quiet_hours_cpu_limit"] == config.limits_.quiet_hours_cpu_limit
    assert limits["memory_limit"] == config.limits_.memory_limit
    assert limits["cache_ttl_hours"] == config.cache.ttl_hours
    assert limits["max_cached_queries"] == config.cache.max_cached_queries


# --- on an in-memory client, in this process --------------------------------------------------------------------------


def test_task_execution_on_a_live_client(own_state: Path, fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"your_db_client": fill(*COLLECTIONS), "your_reranking_service": WordOverlap()}
    names = run(SPEC["Task Execution"], "Task Execution", **given)
    with closing(names["executor"]):
        check_execution(names, capsys.readouterr().out)
        assert isinstance(names["executor"]._lane, InlineLane)


def check_execution(names: dict[str, Any], printed: str) -> None:
    execution = names["execution"]
    assert (execution.status, execution.error_message) == (TaskStatus.COMPLETED, None)
    assert execution.result["documents_processed"] == DOCUMENTS
    assert (names["stats"]["total_executions"], names["stats"]["success_rate"]) == (1, 1.0)
    assert printed == "Status: completed\nSuccess rate: 100.0%\n"


def test_precomputed_caching_on_a_live_client(own_state: Path, fill: Fill) -> None:
    """The example names no client, so that it is given one here."""
    code = SPEC["Precomputed Caching"].replace("SearchCache()", "SearchCache(your_db_client, your_reranking_service)")
    names = run(code, "Precomputed Caching", your_db_client=fill(*COLLECTIONS), your_reranking_service=WordOverlap())
    with closing(names["cache"]):
        check_cache(names)


def check_cache(names: dict[str, Any]) -> None:
    found = names["cache"].query_analytics[names["query_hash"]]
    assert (found.query_text, found.access_count) == ("how to implement auth", 1)
    assert found.average_response_time == pytest.approx(0.15)
    assert names["popular"] == []  # seen once
    assert len(names["result"].results) == len(names["result"].rerank_scores) == 10
    assert names["cache"].get_cached_results("popular query", "collection_name") is not None
    assert names["precomputed_count"] == 0  # no query of that collection was searched three times


def test_integrated_service_on_a_live_client(own_state: Path, fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"your_db_client": fill(*COLLECTIONS), "your_reranking_service": WordOverlap()}
    names = run(SPEC["Integrated Service"], "Integrated Service", **given)
    with closing(names["service"]) as service:
        check_service(names, capsys.readouterr().out)
        assert names["status"]["lane"] == "inline"
        assert service.running is False


def check_service(names: dict[str, Any], printed: str) -> None:
    assert "reindex_morgan_knowledge" in names["reindex_task"]
    assert "rerank_morgan_memories" in names["rerank_task"]
    assert (names["status"]["service_running"], names["status"]["problems"]) == (True, [])
    assert names["status"]["cache"]["total_tracked_queries"] == 1
    assert re.fullmatch(r"Running: True\nCPU: \d+\.\d%\n", printed)


def shape_of(comment: str) -> Any:
    """Return the shape that an example's comment draws, with types in the place of values."""
    drawn = "\n".join(line.lstrip("# ") for line in comment.splitlines() if line.startswith("#"))
    drawn = drawn.partition("Returns:")[2].replace(", ...", "")
    types = {"bool": bool, "int": int, "float": float, "str": str, "datetime": datetime}
    return eval(drawn, types)


def has_shape(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return all(key in value and has_shape(value[key], inner) for key, inner in shape.items())
    if isinstance(shape, list):
        return len(value) > 0 and all(has_shape(one, shape[0]) for one in value)
    return isinstance(value, shape)


def test_a_wrong_shape_is_told_from_a_right_one() -> None:
    shape = shape_of('x = 1\n# Returns:\n# {"a": [{"b": float, ...}],\n#  "c": int}')
    assert shape == {"a": [{"b": float}], "c": int}
    assert has_shape({"a": [{"b": 1.0}], "c": 2, "d": ""}, shape)
    assert not has_shape({"a": [{"b": 1}], "c": 2}, shape)
    assert not has_shape({"a": [], "c": 2}, shape)
    assert not has_shape({"a": [{"b": 1.0}]}, shape)


def test_status_and_activity_have_the_shapes_the_text_draws(own_state: Path, fill: Fill, shelf: Shelf) -> None:
    client = fill("collection_name", shift=1)
    with BackgroundProcessingService(client, WordOverlap(), enable_auto_scheduling=False) as service:
        text = "user query"
        service.track_search_query(text, "collection_name", response_time=0.12)
        service.record_feedback(text, "collection_name", shelf.documents[0]["id"], 1.0)
        service.executor.execute_task_now("reindex", "collection_name", force=True)
        for name, result in (("Service Status", "status"), ("Recent Activity", "activity")):
            found = run(SPEC[name], name, service=service)[result]
            assert has_shape(found, shape_of(SPEC[name])), found


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_ends_well_and_prints_what_it_measured(own_state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/background_processing_demo.py"],
        cwd=ROOT,
        env=launch.environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = done.stdout.partition("Summary\n")[2]
    for task in ("reindex", "rerank"):
        figures = re.search(rf"{task}: nDCG@10 (\S+) -> (\S+) \((\S+)\)", summary)
        assert figures is not None, done.stdout
        before, after, change = map(float, figures.groups())
        assert 0.0 < before <= 1.0
        assert 0.0 < after <= 1.0
        assert change == pytest.approx(after - before, abs=0.0015)  # each is rounded to three places
    embedded = re.search(r"completed: (\d+) documents embedded in", done.stdout)
    assert embedded is not None
    assert embedded[1] == "100"
    assert "2 completed, 0 failed, in lane 'inline'" in summary
    counts = re.search(r"(\d+) hits in (\d+) lookups", summary)
    assert counts is not None
    assert int(counts[1]) == int(counts[2]) - len(queries())  # each query missed once, before there were answers
    times = re.search(r"an answer: (\S+) ms computed, (\S+) us from the cache", summary)
    assert times is not None
    assert all(float(one) > 0 for one in times.groups())


# --- with no client: the embedded store, and a daemon -----------------------------------------------------------------


@pytest.fixture
def embedded(own_state: Path, shelf: Shelf) -> Path:
    """A state directory whose embedded store holds the collections that the examples read."""
    store = open_store(load().worker_settings().store, None)
    for name in COLLECTIONS:
        store.create(name, SIZE)
        store.upsert(
            name,
            [
                Point(id=one["id"], payload={**one}, vector=np.asarray(vector, dtype="<f4").tobytes())
                for one, vector in zip(shelf.documents, shelf.vectors, strict=True)
            ],
        )
    store.close()
    return own_state


@pytest.mark.timeout(600)  # the daemon's worker runs on spare capacity alone: on a busy machine that takes minutes
def test_the_examples_run_one_after_the_other_with_no_client(
    embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"your_db_client": None, "your_reranking_service": None}
    with ExitStack() as open_until_the_end:
        executed = run(SPEC["Task Execution"], "Task Execution", **nothing)
        open_until_the_end.enter_context(closing(executed["executor"]))
        check_execution(executed, capsys.readouterr().out)
        assert isinstance(executed["executor"]._lane, InlineLane)
        cached = run(SPEC["Precomputed Caching"], "Precomputed Caching", **nothing)  # the executor is still there
        open_until_the_end.enter_context(closing(cached["cache"]))
        check_cache(cached)

        # The service's example up to its last statement, then what others do meanwhile, then that statement.
        example = ast.parse(SPEC["Integrated Service"])
        last = ast.Module([example.body.pop()], [])
        assert ast.unparse(last) == "service.stop()"
        names = run(example, "Integrated Service", **nothing)
        service: BackgroundProcessingService = open_until_the_end.enter_context(closing(names["service"]))
        check_service(names, capsys.readouterr().out)
        assert names["status"]["lane"] == "daemon"
        while_the_daemon_serves(service, capsys)
        status = service.get_service_status()
        processes = [psutil.Process(pid) for pid in (status["pid"], *(row["pid"] for row in status["workers"]))]
        assert len(processes) >= 3  # supervisor, store owner, a task worker
        run(last, "Integrated Service", service=service)
        assert service.running is False
        assert not [one for one in processes if one.is_running()]


def while_the_daemon_serves(service: BackgroundProcessingService, capsys: pytest.CaptureFixture[str]) -> None:
    """The same examples again, now through the daemon; the README's ten lines; and a reader in another process's place."""
    assert isinstance(service._lane, SpawnedLane)
    nothing = {"your_db_client": None, "your_reranking_service": None}
    executed = run(SPEC["Task Execution"], "Task Execution", **nothing)
    with closing(executed["executor"]):
        check_execution(executed, capsys.readouterr().out)
    with closing(run(SPEC["Precomputed Caching"], "Precomputed Caching", **nothing)["cache"]) as cache:
        assert cache.get_cached_results("popular query", "collection_name") is not None
        assert isinstance(cache._lane, DaemonLane)

    run(README["Ten lines"], "Ten lines")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["auth.md", "backup.md"]
    found = run(USAGE["Reading from another process"], "Reading from another process")["found"]
    assert [hit.payload["source"] for hit in found.hits] == ["auth.md", "backup.md"]
    with Client() as client:
        client.search("popular query", "collection_name")
        assert client.search("popular query", "collection_name").is_precomputed
