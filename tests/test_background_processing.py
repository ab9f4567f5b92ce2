"""What the specification promises of the public classes, on an in-memory Qdrant in the inline lane."""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import psutil
import pytest

import morgan.background
from morgan.background import (
    BackgroundProcessingService,
    BackgroundTaskExecutor,
    MorganError,
    PrecomputedSearchCache,
    ReindexingTask,
    RerankingTask,
    ResourceMonitor,
    ScheduledTask,
    SimpleTaskScheduler,
    TaskFrequency,
    TaskStatus,
)
from morgan.background.executor import TaskExecution
from morgan.background.inline import InlineLane
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import CollectionNotFound, InvalidArgument
from morgan.background.ipc.records import ScheduleRecord, TaskRecord
from morgan.background.supervisor.config import Config, load
from tests.conftest import DOCUMENTS, JUDGED_QUERIES, Fill, Shelf, WordOverlap

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

DEADLINE_S = 60.0  # of waits for events: nothing is measured by it
NEEDED = inspect.Parameter.empty
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
QUERY = JUDGED_QUERIES[0]["text"]
DEFAULT_COLLECTIONS = ("morgan_knowledge", "morgan_memories", "morgan_web_content", "morgan_code")


class Broken:
    """A reranking service that is down."""

    def rerank(self, query: str, documents: list[str]) -> list[float]:
        raise ConnectionError("the reranking service is down")


@pytest.fixture
def busy(own_state: Path) -> Config:
    """A configuration that leaves nothing for background work at any hour."""
    return configured(own_state, active_hours_cpu_limit=0, quiet_hours_cpu_limit=0)


@pytest.fixture
def config(own_state: Path) -> Config:
    return configured(own_state)


def configured(state_dir: Path, **limits: float) -> Config:
    """Return a configuration with limits of its own that are the same at any hour of the day."""
    wanted = {"active_hours_cpu_limit": 0.7, "quiet_hours_cpu_limit": 0.7} | limits
    variables = {f"MORGAN_LIMITS_{name.upper()}": str(value) for name, value in wanted.items()}
    return load(env={"HOME": str(state_dir), "MORGAN_STATE_DIR": str(state_dir)} | variables)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does nothing else, whatever this one does: psutil is looked up late so that it may be patched."""
    read_as(monkeypatch, cpu_percent=3.0, memory_percent=30.0)


def read_as(monkeypatch: pytest.MonkeyPatch, *, cpu_percent: float, memory_percent: float) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval=None: cpu_percent)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(percent=memory_percent))


@pytest.fixture
def client(fill: Fill) -> QdrantClient:
    return fill("docs", empty=("empty",))


@pytest.fixture
def lane(client: QdrantClient, config: Config) -> Iterator[InlineLane]:
    with closing(InlineLane(client, WordOverlap(), config=config)) as opened:
        yield opened


@pytest.fixture
def executor(lane: InlineLane) -> BackgroundTaskExecutor:
    return BackgroundTaskExecutor(lane=lane)


@pytest.fixture
def cache(lane: InlineLane) -> PrecomputedSearchCache:
    return PrecomputedSearchCache(lane=lane)


@pytest.fixture
def service(client: QdrantClient, config: Config) -> Iterator[BackgroundProcessingService]:
    with closing(BackgroundProcessingService(client, WordOverlap(), 300, False, config=config)) as made:
        yield made


# --- names, arguments, defaults ---------------------------------------------------------------------------------------

CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (
        SimpleTaskScheduler.schedule_task,
        {"task_type": NEEDED, "collection_name": NEEDED, "frequency": NEEDED, "metadata": None},
    ),
    (SimpleTaskScheduler.list_tasks, {}),
    (SimpleTaskScheduler.get_pending_tasks, {}),
    (SimpleTaskScheduler.mark_task_completed, {"task_id": NEEDED}),
    (SimpleTaskScheduler.cancel_task, {"task_id": NEEDED}),
    (ResourceMonitor.check_resources, {}),
    (ResourceMonitor.can_run_task, {}),
    (ResourceMonitor.get_resource_summary, {}),
    (BackgroundTaskExecutor.__init__, {"vector_db_client": None, "reranking_service": None}),
    (BackgroundTaskExecutor.execute_task_now, {"task_type": NEEDED, "collection_name": NEEDED, "force": False}),
    (BackgroundTaskExecutor.get_execution_stats, {}),
    (BackgroundTaskExecutor.get_execution_history, {"limit": 50}),
    (BackgroundTaskExecutor.get_quality_trends, {"limit": 50}),
    (ReindexingTask.__init__, {"vector_db_client": None}),
    (ReindexingTask.reindex_collection, {"collection_name": NEEDED, "force_rebuild": False}),
    (RerankingTask.__init__, {"vector_db_client": None, "reranking_service": None}),
    (RerankingTask.rerank_popular_queries, {"collection_name": NEEDED, "max_queries": 10}),
    (RerankingTask.precompute_results, {"collection_name": NEEDED, "queries": None}),
    (PrecomputedSearchCache.__init__, {"vector_db_client": None, "reranking_service": None}),
    (PrecomputedSearchCache.track_query, {"query": NEEDED, "collection_name": NEEDED, "response_time": 0.0}),
    (PrecomputedSearchCache.get_popular_queries, {"collection_name": None, "limit": 20, "min_frequency": 3}),
    (
        PrecomputedSearchCache.precompute_query_results,
        {"query": NEEDED, "collection_name": NEEDED, "force_refresh": False},
    ),
    (PrecomputedSearchCache.get_cached_results, {"query": NEEDED, "collection_name": NEEDED}),
    (PrecomputedSearchCache.warm_cache, {"collection_name": NEEDED, "max_queries": 50}),
    (PrecomputedSearchCache.invalidate_cache, {"collection_name": None, "query_pattern": None}),
    (PrecomputedSearchCache.get_cache_stats, {}),
    (
        BackgroundProcessingService.__init__,
        {
            "vector_db_client": None,
            "reranking_service": None,
            "check_interval_seconds": 300,
            "enable_auto_scheduling": True,
        },
    ),
    (BackgroundProcessingService.start, {}),
    (BackgroundProcessingService.stop, {}),
    (BackgroundProcessingService.schedule_reindexing, {"collection_name": NEEDED, "frequency": "weekly"}),
    (BackgroundProcessingService.schedule_reranking, {"collection_name": NEEDED, "frequency": "daily"}),
    (
        BackgroundProcessingService.track_search_query,
        {"query": NEEDED, "collection_name": NEEDED, "response_time": 0.0},
    ),
    (BackgroundProcessingService.get_cached_results, {"query": NEEDED, "collection_name": NEEDED}),
    (BackgroundProcessingService.warm_cache_for_collection, {"collection_name": NEEDED, "max_queries": 50}),
    (BackgroundProcessingService.get_service_status, {}),
    (BackgroundProcessingService.get_recent_activity, {"limit": 20}),
]


@pytest.mark.parametrize(("call", "wanted"), CALLS, ids=[call.__qualname__ for call, _ in CALLS])
def test_a_call_takes_the_promised_arguments_and_needs_no_other(
    call: Callable[..., Any], wanted: dict[str, Any]
) -> None:
    taken = list(inspect.signature(call).parameters.values())[1:]
    assert {one.name: one.default for one in taken[: len(wanted)]} == wanted
    assert all(one.default is not NEEDED for one in taken[len(wanted) :])


def test_every_promised_name_comes_from_the_package() -> None:
    names = {
        "SimpleTaskScheduler",
        "ResourceMonitor",
        "BackgroundTaskExecutor",
        "PrecomputedSearchCache",
        "BackgroundProcessingService",
        "ReindexingTask",
        "RerankingTask",
        "TaskFrequency",
        "TaskStatus",
        "ScheduledTask",
    }
    assert names <= set(morgan.background.__all__)
    assert all(inspect.isclass(getattr(morgan.background, name)) for name in names)


def test_frequencies_and_states_have_the_values_of_the_text() -> None:
    assert [one.value for one in TaskFrequency] == ["hourly", "daily", "weekly"]
    assert {"pending", "running", "completed", "failed", "skipped"} <= {one.value for one in TaskStatus}


# --- SimpleTaskScheduler, ScheduledTask -------------------------------------------------------------------------------


@pytest.fixture(params=["alone", "with a service"])
def scheduler(request: pytest.FixtureRequest, own_state: Path) -> SimpleTaskScheduler:
    if request.param == "alone":
        return SimpleTaskScheduler()
    found: BackgroundProcessingService = request.getfixturevalue("service")
    return found.scheduler


def test_an_id_names_type_and_collection_and_is_unique_within_a_second(scheduler: SimpleTaskScheduler) -> None:
    ids = [scheduler.schedule_task("reindex", "morgan_knowledge", "daily") for _ in range(200)]
    assert len(set(ids)) == len(ids) == len(scheduler.scheduled_tasks)
    assert all("reindex_morgan_knowledge" in one for one in ids)


def test_a_scheduled_task_says_what_it_is(scheduler: SimpleTaskScheduler) -> None:
    task_id = scheduler.schedule_task("rerank", "docs", "hourly", {"max_queries": 5, "why": "release"})
    task = scheduler.scheduled_tasks[task_id]
    assert isinstance(task, ScheduledTask)
    assert (task.task_id, task.task_type, task.collection_name) == (task_id, "rerank", "docs")
    assert task.frequency is TaskFrequency.HOURLY
    assert (task.last_run, task.enabled, task.metadata) == (None, True, {"max_queries": 5, "why": "release"})


@pytest.mark.parametrize("frequency", ["hourly", "daily", "weekly", *TaskFrequency])
def test_the_first_run_is_the_next_of_its_kind(frequency: str | TaskFrequency, own_state: Path) -> None:
    scheduler, before = SimpleTaskScheduler(zone=ZoneInfo("UTC")), datetime.now()
    task = scheduler.scheduled_tasks[scheduler.schedule_task("reindex", "docs", frequency)]
    assert task.next_run > before  # comparable with the clock callers read
    hour, day, period = {
        TaskFrequency.HOURLY: (range(24), WEEKDAYS, timedelta(hours=1)),
        TaskFrequency.DAILY: ([2], WEEKDAYS, timedelta(days=1)),
        TaskFrequency.WEEKLY: ([3], ["Sunday"], timedelta(days=7)),
    }[task.frequency]
    assert task.next_run <= datetime.now() + period
    there = datetime.fromtimestamp(task.next_run.timestamp(), UTC)
    assert (there.minute, there.second, there.microsecond) == (0, 0, 0)
    assert there.hour in hour
    assert there.strftime("%A") in day


def test_unknown_types_and_frequencies_are_refused_with_those_accepted(scheduler: SimpleTaskScheduler) -> None:
    with pytest.raises(ValueError, match=r"'defragment'.*reindex, rerank, warm"):
        scheduler.schedule_task("defragment", "docs", "daily")
    with pytest.raises(ValueError, match=r"'yearly'.*hourly, daily, weekly"):
        scheduler.schedule_task("reindex", "docs", "yearly")
    with pytest.raises(ValueError, match="collection"):
        scheduler.schedule_task("reindex", "", "daily")
    assert scheduler.list_tasks() == []


@pytest.mark.parametrize("past", [datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)], ids=["naive", "aware"])
def test_a_task_whose_time_has_come_is_pending_until_it_is_marked_completed(past: datetime, own_state: Path) -> None:
    scheduler = SimpleTaskScheduler()
    due, later = (scheduler.schedule_task("reindex", name, "daily") for name in ("a", "b"))
    assert scheduler.get_pending_tasks() == []
    scheduler.scheduled_tasks[due].next_run = past
    assert [task.task_id for task in scheduler.list_tasks()] == [due, later]
    assert [task.task_id for task in scheduler.get_pending_tasks()] == [due]
    before = datetime.now()
    assert scheduler.mark_task_completed(due) is True
    assert scheduler.get_pending_tasks() == []
    task = scheduler.scheduled_tasks[due]
    assert task.last_run is not None
    assert before <= task.last_run <= datetime.now() < task.next_run


def test_a_disabled_task_is_never_pending(own_state: Path) -> None:
    scheduler = SimpleTaskScheduler()
    task = scheduler.scheduled_tasks[scheduler.schedule_task("reindex", "docs", "daily")]
    assert [one.task_id for one in scheduler.get_pending_tasks(task.next_run)] == [task.task_id]
    task.enabled = False
    assert scheduler.get_pending_tasks(task.next_run) == []


def test_only_a_known_task_is_marked_or_cancelled(scheduler: SimpleTaskScheduler) -> None:
    task_id = scheduler.schedule_task("reindex", "docs", "daily")
    assert scheduler.mark_task_completed(task_id) is True
    assert scheduler.scheduled_tasks[task_id].last_run is not None
    assert scheduler.cancel_task(task_id) is True
    assert scheduler.cancel_task(task_id) is False
    assert scheduler.mark_task_completed(task_id) is False
    assert scheduler.scheduled_tasks == {}


# --- ResourceMonitor --------------------------------------------------------------------------------------------------


def test_usage_is_a_share_of_this_machine(config: Config) -> None:
    hours = {datetime.now(config.zone()).hour}
    status = ResourceMonitor(config).check_resources()
    hours.add(datetime.now(config.zone()).hour)
    assert 0.0 <= status.cpu_usage <= 1.0
    assert 0.0 < status.memory_usage <= 1.0
    assert status.active_hours in {9 <= hour < 18 for hour in hours}
    assert isinstance(status.can_run_task, bool)


def test_the_limits_decide_whether_a_task_may_run(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = configured(own_state, active_hours_cpu_limit=0.3, quiet_hours_cpu_limit=0.3)
    read_as(monkeypatch, cpu_percent=10.0, memory_percent=95.0)
    full = ResourceMonitor(limited).check_resources()
    assert (full.cpu_usage, full.memory_usage, full.can_run_task) == (0.1, 0.95, False)
    assert "memory" in full.reason
    read_as(monkeypatch, cpu_percent=45.0, memory_percent=30.0)
    assert ResourceMonitor(limited).check_resources().cpu_usage == 0.45
    assert ResourceMonitor(limited).can_run_task() is False
    read_as(monkeypatch, cpu_percent=10.0, memory_percent=30.0)
    assert ResourceMonitor(limited).can_run_task() is True


def fails(*args: Any, **kwargs: Any) -> float:
    raise OSError("no such file")


@pytest.mark.parametrize("reading", ["cpu_percent", "virtual_memory"])
@pytest.mark.parametrize("answer", [fails, lambda interval=None: 250.0], ids=["raises", "nonsense"])
def test_a_reading_that_fails_is_taken_as_a_busy_machine(
    reading: str, answer: Callable[..., float], config: Config, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = ResourceMonitor(config)
    monkeypatch.setattr(psutil, reading, answer)
    status = monitor.check_resources()
    assert (status.cpu_usage, status.memory_usage, status.can_run_task) == (1.0, 1.0, False)
    assert monitor.can_run_task() is False
    summary = monitor.get_resource_summary()
    assert (summary["cpu"], summary["memory"]) == (1.0, 1.0)


def test_the_summary_has_cpu_and_memory_as_numbers(config: Config) -> None:
    summary = ResourceMonitor(config).get_resource_summary()
    assert {"cpu", "memory", "can_run_task", "active_hours"} <= summary.keys()
    assert all(isinstance(summary[key], float) for key in ("cpu", "memory"))


# --- BackgroundTaskExecutor -------------------------------------------------------------------------------------------


def test_a_task_executed_now_completes_and_says_what_it_did(executor: BackgroundTaskExecutor) -> None:
    before = datetime.now()
    done = executor.execute_task_now("reindex", "docs", force=True)
    assert done.task_id.startswith("reindex_docs")
    assert (done.task_type, done.collection_name, done.error_message) == ("reindex", "docs", None)
    assert done.status is TaskStatus.COMPLETED
    assert done.status.value == "completed"
    assert done.started_at is not None
    assert done.completed_at is not None
    assert before <= done.started_at <= done.completed_at <= datetime.now()
    assert done.result is not None
    assert done.result["documents_processed"] == DOCUMENTS


def test_without_force_a_task_runs_where_there_is_capacity(calm: None, client: QdrantClient, config: Config) -> None:
    with closing(BackgroundTaskExecutor(client, WordOverlap(), config=config)) as executor:
        assert executor.execute_task_now("reindex", "docs").status is TaskStatus.COMPLETED


def test_without_capacity_a_task_is_skipped_with_the_reason_unless_forced(client: QdrantClient, busy: Config) -> None:
    with closing(BackgroundTaskExecutor(client, WordOverlap(), config=busy)) as executor:
        skipped = executor.execute_task_now("reindex", "docs")
        assert (skipped.status, skipped.result) == (TaskStatus.SKIPPED, None)
        assert "0 % of the machine" in (skipped.error_message or "")
        assert executor.execute_task_now("reindex", "docs", force=True).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("task_type", ["reindex", "rerank", "warm"])
def test_a_missing_collection_fails_by_name_and_lists_those_there_are(
    task_type: str, executor: BackgroundTaskExecutor
) -> None:
    failed = executor.execute_task_now(task_type, "nowhere", force=True)
    assert failed.status is TaskStatus.FAILED
    assert re.search(r"'nowhere'.*docs, empty", failed.error_message or "")


def test_an_unknown_task_type_is_refused_with_those_accepted(executor: BackgroundTaskExecutor) -> None:
    with pytest.raises(ValueError, match=r"'defragment'.*reindex, rerank, warm"):
        executor.execute_task_now("defragment", "docs")
    assert executor.get_execution_history() == []


def test_the_statistics_and_the_history_are_of_what_ran(client: QdrantClient, busy: Config) -> None:
    with closing(BackgroundTaskExecutor(client, WordOverlap(), config=busy)) as executor:
        nothing = executor.get_execution_stats()
        assert (nothing["total_executions"], nothing["success_rate"]) == (0, 0.0)
        ran = [
            executor.execute_task_now("reindex", "docs", force=True),
            executor.execute_task_now("reindex", "docs", force=True),
            executor.execute_task_now("reindex", "nowhere", force=True),
            executor.execute_task_now("rerank", "docs"),
        ]
        stats = executor.get_execution_stats()
        assert {key: stats[key] for key in ("total_executions", "completed", "failed", "skipped")} == {
            "total_executions": 4,
            "completed": 2,
            "failed": 1,
            "skipped": 1,
        }
        assert stats["success_rate"] == pytest.approx(2 / 3)
        assert stats["average_improvement"] == 0.0
        history = executor.get_execution_history(limit=3)
        assert all(isinstance(one, TaskExecution) for one in history)
        assert [one.task_id for one in history] == [one.task_id for one in ran[:0:-1]]
        assert [one.status for one in history] == [TaskStatus.SKIPPED, TaskStatus.FAILED, TaskStatus.COMPLETED]


def test_a_reindex_is_measured_before_and_after_from_judgments(fill: Fill, config: Config) -> None:
    with closing(InlineLane(fill("docs", shift=1), WordOverlap(), config=config)) as lane:
        executor, cache = BackgroundTaskExecutor(lane=lane), PrecomputedSearchCache(lane=lane)
        assert executor.execute_task_now("rerank", "docs", force=True).status is TaskStatus.SKIPPED
        assert executor.get_quality_trends() == []
        for query in JUDGED_QUERIES:
            for document_id, grade in query["judgments"].items():
                cache.record_feedback(query["text"], "docs", document_id, grade)
        done = executor.execute_task_now("reindex", "docs", force=True)
        assert done.result is not None
        assert done.result["quality_metric"] == "nDCG@10"
        assert done.result["quality_before"] < 0.5 < done.result["quality_after"] <= 1.0
        (trend,) = executor.get_quality_trends(limit=5)
        assert (trend.task_id, trend.collection_name, trend.metric) == (done.task_id, "docs", "nDCG@10")
        assert (trend.before_score, trend.after_score) == (done.result["quality_before"], done.result["quality_after"])
        assert trend.improvement == pytest.approx(trend.after_score - trend.before_score)
        assert trend.measurement_time == done.completed_at
        assert executor.get_execution_stats()["average_improvement"] == pytest.approx(trend.improvement)


def test_a_database_that_does_not_answer_leaves_the_task_queued(config: Config) -> None:
    from qdrant_client import QdrantClient

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        client = QdrantClient(url=f"http://127.0.0.1:{taken.getsockname()[1]}", check_compatibility=False)
        with closing(InlineLane(client, config=config)) as lane:
            failed = BackgroundTaskExecutor(lane=lane).execute_task_now("reindex", "docs", force=True)
            assert failed.status is TaskStatus.FAILED
            assert re.search("does not answer.*tried again later", failed.error_message or "")
            assert [task.status for task in tasks_of(lane)] == [TaskStatus.PENDING]
        client.close()


def test_where_a_reranking_service_fails_results_keep_the_vector_searchs_order_and_all_reports_say_so(
    client: QdrantClient, config: Config
) -> None:
    with closing(InlineLane(client, Broken(), config=config)) as lane:
        executor, cache = BackgroundTaskExecutor(lane=lane), PrecomputedSearchCache(lane=lane)
        executor.execute_task_now("warm", "docs", force=True, params={"queries": [QUERY]})
        (task,) = tasks_of(lane)
        assert task.status is TaskStatus.COMPLETED
        assert task.result is not None
        assert (task.result["success"], task.result["reranked_count"], task.result["queries_not_reranked"]) == (
            *(False, 0, 1),
        )
        assert "the reranking service is down" in task.result["error_message"]
        held = lane.reader.get(QUERY, "docs")
        assert held is not None
        assert len(held.rerank_scores) == 0
        assert executor.execute_task_now("reindex", "docs", force=True).status is TaskStatus.COMPLETED
        result = cache.precompute_query_results(QUERY, "docs")
        assert result is not None
        assert result.rerank_scores == []
        scores = [row.score for row in result.results]
        assert scores == sorted(scores, reverse=True)  # the vector search's order
        status = expect(messages.Report, lane.request(messages.Status())).report
        assert any("the reranking service is down" in problem for problem in status["problems"])


def tasks_of(lane: InlineLane) -> tuple[TaskRecord, ...]:
    return expect(messages.TaskList, lane.request(messages.ListTasks())).tasks


# --- ReindexingTask, RerankingTask ------------------------------------------------------------------------------------

REINDEX_KEYS = {"success", "collection_name", "documents_processed", "processing_time_seconds", "error_message"}
RERANK_KEYS = {
    "success",
    "collection_name",
    "queries_processed",
    "processing_time_seconds",
    "quality_improvement",
    "error_message",
}


def test_a_reindex_says_how_many_documents_it_saw_and_which_it_embedded(lane: InlineLane) -> None:
    task = ReindexingTask(lane=lane)
    first = task.reindex_collection("docs")
    assert first.keys() >= REINDEX_KEYS
    assert (first["success"], first["collection_name"], first["error_message"]) == (True, "docs", None)
    assert (first["documents_processed"], first["documents_embedded"]) == (DOCUMENTS, 0)
    assert first["documents_adopted"] == DOCUMENTS  # their vectors are those of the model: nothing says so yet
    assert first["processing_time_seconds"] > 0
    assert task.reindex_collection("docs")["documents_embedded"] == 0
    assert task.reindex_collection("docs", force_rebuild=True)["documents_embedded"] == DOCUMENTS


def test_an_empty_collection_is_a_success_with_a_reason(lane: InlineLane) -> None:
    found = ReindexingTask(lane=lane).reindex_collection("empty")
    assert (found["success"], found["documents_processed"], found["error_message"]) == (True, 0, None)
    assert found["reason"] == "empty"
    reranked = RerankingTask(lane=lane).rerank_popular_queries("docs")
    assert (reranked["success"], reranked["queries_processed"], reranked["error_message"]) == (True, 0, None)
    assert "no popular queries" in reranked["reason"]


def test_a_task_on_a_missing_collection_is_an_error_result(lane: InlineLane) -> None:
    for keys, found in (
        (REINDEX_KEYS, ReindexingTask(lane=lane).reindex_collection("nowhere")),
        (RERANK_KEYS, RerankingTask(lane=lane).rerank_popular_queries("nowhere")),
        (RERANK_KEYS, RerankingTask(lane=lane).precompute_results("nowhere")),
        (RERANK_KEYS, RerankingTask(lane=lane).precompute_results("nowhere", [QUERY])),
    ):
        assert found.keys() >= keys
        assert (found["success"], found["collection_name"]) == (False, "nowhere")
        assert re.search(r"'nowhere'.*docs, empty", found["error_message"])


def test_the_popular_queries_are_reranked_and_what_that_changed_is_measured(
    lane: InlineLane, cache: PrecomputedSearchCache
) -> None:
    for query in JUDGED_QUERIES[:3]:
        for _ in range(3):
            cache.track_query(query["text"], "docs")
        for document_id, grade in query["judgments"].items():
            cache.record_feedback(query["text"], "docs", document_id, grade)
    found = RerankingTask(lane=lane).rerank_popular_queries("docs", max_queries=2)
    assert found.keys() >= RERANK_KEYS
    assert (found["success"], found["queries_processed"], found["judged_queries"]) == (True, 2, 2)
    assert found["quality_improvement"] == pytest.approx(found["quality_after"] - found["quality_before"])
    cached = [q["text"] for q in JUDGED_QUERIES if cache.get_cached_results(q["text"], "docs") is not None]
    assert len(cached) == 2


def test_named_queries_are_precomputed_and_without_judgments_no_quality_is_claimed(
    lane: InlineLane, cache: PrecomputedSearchCache
) -> None:
    texts = [query["text"] for query in JUDGED_QUERIES[:2]]
    found = RerankingTask(lane=lane).precompute_results("docs", texts)
    assert (found["success"], found["queries_processed"], found["quality_improvement"]) == (True, 2, None)
    assert all(cache.get_cached_results(text, "docs") is not None for text in texts)


# --- PrecomputedSearchCache -------------------------------------------------------------------------------------------


def test_tracking_a_query_counts_it_under_a_hash_of_32_characters(cache: PrecomputedSearchCache) -> None:
    before = datetime.now()
    key = cache.track_query("How to implement auth", "docs", 0.15)
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert cache.track_query("how to  implement auth", "docs", 0.25) == key
    assert cache.track_query("how to implement auth", "docs") == key  # its time is not known: not a search of 0 s
    other = cache.track_query("how to implement auth", "more")
    assert other != key
    found = cache.query_analytics[key]
    assert (found.query_text, found.access_count) == ("How to implement auth", 3)
    assert found.collections == {"docs", "more"}
    assert found.average_response_time == pytest.approx(0.2)
    assert before <= found.first_accessed < found.last_accessed <= datetime.now()
    assert cache.query_analytics.keys() == {key, other}


def test_popular_queries_are_those_seen_often_most_popular_first(cache: PrecomputedSearchCache) -> None:
    for text, times in (("seldom", 2), ("often", 3), ("most", 5)):
        for _ in range(times):
            cache.track_query(text, "docs")
    for _ in range(4):
        cache.track_query("elsewhere", "more")
    assert [one.query_text for one in cache.get_popular_queries()] == ["most", "elsewhere", "often"]
    assert [one.query_text for one in cache.get_popular_queries("docs")] == ["most", "often"]
    assert [one.query_text for one in cache.get_popular_queries(min_frequency=1, limit=2)] == ["most", "elsewhere"]
    assert len(cache.get_popular_queries("docs", min_frequency=1)) == 3
    (first, *_) = cache.get_popular_queries()
    assert first.access_count == 5
    assert first.popularity > 0


def test_a_precomputed_result_has_its_rows_best_first(cache: PrecomputedSearchCache, shelf: Shelf) -> None:
    before = datetime.now()
    found = cache.precompute_query_results(QUERY, "docs")
    assert found is not None
    assert (found.query_text, found.collection_name) == (QUERY, "docs")
    assert found.query_hash == cache.track_query(QUERY, "docs")
    assert before <= found.computed_at <= datetime.now()
    assert len(found.results) == len(found.rerank_scores) == 10
    assert found.rerank_scores == sorted(found.rerank_scores, reverse=True)
    assert found.quality_score is not None
    assert 0.0 <= found.quality_score <= 1.0
    assert found.quality_basis == "similarity"
    known = {one["source"]: one for one in shelf.documents}
    for row in found.results:
        document = known[row["source"]]
        assert row["content"] == row.content == document["text"]
        assert row["metadata"] == {"title": document["title"]}
        assert 0.0 < row["score"] <= 1.0
    assert isinstance(found.access_count, int)
    assert hasattr(found, "last_accessed")
    assert isinstance(found.language, str)


def test_where_nothing_is_found_there_is_no_result(cache: PrecomputedSearchCache) -> None:
    assert cache.precompute_query_results(QUERY, "empty") is None
    assert cache.get_cached_results(QUERY, "empty") is None
    with pytest.raises(CollectionNotFound, match=r"'nowhere'.*docs, empty"):
        cache.precompute_query_results(QUERY, "nowhere")
    with pytest.raises(InvalidArgument, match="empty"):
        cache.precompute_query_results(" ", "docs")


def test_a_cached_result_is_handed_out_until_a_refresh_is_forced(cache: PrecomputedSearchCache) -> None:
    assert cache.get_cached_results(QUERY, "docs") is None
    first = cache.precompute_query_results(QUERY, "docs")
    held = cache.get_cached_results(QUERY.upper(), "docs")
    assert first is not None
    assert held is not None
    assert (held.results, held.rerank_scores, held.computed_at) == (
        first.results,
        first.rerank_scores,
        first.computed_at,
    )
    again = cache.precompute_query_results(QUERY, "docs")
    assert again is not None
    assert again.computed_at == first.computed_at
    fresh = cache.precompute_query_results(QUERY, "docs", force_refresh=True)
    assert fresh is not None
    assert fresh.computed_at > first.computed_at
    held = cache.get_cached_results(QUERY, "docs")
    assert held is not None
    assert held.computed_at == fresh.computed_at


def test_warming_computes_the_popular_queries_that_are_not_cached(cache: PrecomputedSearchCache) -> None:
    assert cache.warm_cache("docs") == 0
    for query in JUDGED_QUERIES[:4]:
        for _ in range(3):
            cache.track_query(query["text"], "docs")
    assert cache.warm_cache("docs", max_queries=3) == 3
    assert cache.warm_cache("docs", max_queries=20) == 1
    assert cache.warm_cache("docs") == 0
    assert cache.get_cache_stats()["total_cached_queries"] == 4
    with pytest.raises(MorganError, match=r"'nowhere'.*docs, empty"):
        cache.warm_cache("nowhere")


def test_invalidating_drops_by_collection_and_by_pattern_and_says_how_many(fill: Fill, config: Config) -> None:
    with closing(PrecomputedSearchCache(fill("docs", "more"), WordOverlap(), config=config)) as cache:
        assert cache.invalidate_cache() == 0
        for name in ("docs", "more"):
            for text in ("zinc in the gut", "iron and zinc", "copper"):
                assert cache.precompute_query_results(text, name) is not None
        assert cache.invalidate_cache("docs", "ZINC") == 2
        assert cache.get_cached_results("iron and zinc", "docs") is None
        assert cache.get_cached_results("copper", "docs") is not None
        assert cache.invalidate_cache("docs") == 1
        assert cache.invalidate_cache(query_pattern="copper") == 1
        assert cache.get_cached_results("iron and zinc", "more") is not None
        assert cache.invalidate_cache() == 2
        assert cache.get_cache_stats()["total_cached_queries"] == 0


def test_the_hit_rate_is_hits_among_lookups(cache: PrecomputedSearchCache) -> None:
    empty = cache.get_cache_stats()
    assert empty.keys() >= {
        "total_cached_queries",
        "valid_entries",
        "expired_entries",
        "total_tracked_queries",
        "cache_hit_rate",
        "total_access_count",
        "cache_size_mb",
    }
    assert (empty["total_cached_queries"], empty["cache_hit_rate"]) == (0, 0.0)
    cache.track_query(QUERY, "docs")
    cache.precompute_query_results(QUERY, "docs")  # the first lookup, a miss
    assert cache.get_cache_stats()["cache_hit_rate"] == 0.0
    for text in (QUERY, QUERY, "never seen"):
        cache.get_cached_results(text, "docs")
    stats = cache.get_cache_stats()
    assert stats["cache_hit_rate"] == pytest.approx(2 / 4)
    assert (stats["total_cached_queries"], stats["valid_entries"], stats["expired_entries"]) == (1, 1, 0)
    assert stats["total_tracked_queries"] == 1
    assert stats["total_access_count"] == 3  # one search that was tracked, two that the cache answered
    assert stats["cache_size_mb"] > 0


# --- BackgroundProcessingService --------------------------------------------------------------------------------------


def test_a_service_starts_once_and_stops_once(service: BackgroundProcessingService) -> None:
    assert service.running is False
    assert service.stop() is False
    assert service.start() is True
    assert service.start() is False
    assert (service.running, service.get_service_status()["service_running"]) == (True, True)
    assert service.stop() is True
    assert service.stop() is False
    assert (service.running, service.get_service_status()["service_running"]) == (False, False)
    assert service.start() is True


def test_a_service_runs_inside_a_with_block(client: QdrantClient, config: Config) -> None:
    with BackgroundProcessingService(client, config=config) as service:
        assert service.running is True
    assert service.running is False
    service.close()  # once more does no harm
    assert client.collection_exists("docs")  # the caller's client stays open


def test_a_service_is_made_of_the_other_components(service: BackgroundProcessingService) -> None:
    assert isinstance(service.scheduler, SimpleTaskScheduler)
    assert isinstance(service.monitor, ResourceMonitor)
    assert isinstance(service.executor, BackgroundTaskExecutor)
    assert isinstance(service.cache, PrecomputedSearchCache)


def test_scheduling_through_the_service_uses_the_frequencies_of_the_text(
    service: BackgroundProcessingService,
) -> None:
    reindex, rerank = service.schedule_reindexing("docs"), service.schedule_reranking("docs")
    found = service.scheduler.scheduled_tasks
    assert (found[reindex].task_type, found[reindex].frequency) == ("reindex", TaskFrequency.WEEKLY)
    assert (found[rerank].task_type, found[rerank].frequency) == ("rerank", TaskFrequency.DAILY)
    assert service.get_service_status()["scheduled_tasks"] == 2


def test_the_status_has_the_keys_of_the_text(service: BackgroundProcessingService) -> None:
    before = datetime.now()
    service.executor.execute_task_now("reindex", "docs", force=True)
    status = service.get_service_status()
    assert isinstance(status["service_running"], bool)
    assert before <= status["last_check"] <= datetime.now()
    assert 0.0 <= status["resources"]["cpu_usage"] <= 1.0
    assert 0.0 <= status["resources"]["memory_usage"] <= 1.0
    assert (status["execution"]["total_executions"], status["execution"]["success_rate"]) == (1, 1.0)
    assert status["cache"].keys() >= {"total_cached_queries", "cache_hit_rate"}
    assert status["scheduled_tasks"] == 0
    assert status["lane"] == "inline"
    assert status["problems"] == []


def test_the_recent_activity_has_the_keys_of_the_text(fill: Fill, config: Config) -> None:
    with BackgroundProcessingService(fill("docs", shift=1), WordOverlap(), 300, False, config=config) as service:
        activity = service.get_recent_activity()
        assert activity.pop("quality")["collections"] == []
        assert activity == {"executions": [], "quality_trends": [], "popular_queries": []}
        for query in JUDGED_QUERIES:
            service.track_search_query(query["text"], "docs", response_time=0.12)
            for document_id, grade in query["judgments"].items():
                service.record_feedback(query["text"], "docs", document_id, grade)
        done = [service.executor.execute_task_now("reindex", "docs", force=True) for _ in range(2)]
        activity = service.get_recent_activity(limit=20)
        assert [one["task_id"] for one in activity["executions"]] == [one.task_id for one in reversed(done)]
        assert [one["status"] for one in activity["executions"]] == ["completed", "completed"]
        assert [one["improvement"] > 0 for one in activity["quality_trends"]] == [False, True]
        assert len(activity["popular_queries"]) == len(JUDGED_QUERIES)
        assert {one["query"] for one in activity["popular_queries"]} == {one["text"] for one in JUDGED_QUERIES}
        assert all(one["access_count"] == 1 for one in activity["popular_queries"])
        assert [one["collection_name"] for one in activity["quality"]["collections"]] == ["docs"]
        short = service.get_recent_activity(limit=1)
        del short["quality"]
        assert [len(rows) for rows in short.values()] == [1, 1, 1]


def test_what_the_service_tracks_it_can_warm_and_hand_out(service: BackgroundProcessingService) -> None:
    for _ in range(3):
        key = service.track_search_query(QUERY, "docs", response_time=0.12)
    assert service.cache.query_analytics[key].average_response_time == pytest.approx(0.12)
    assert service.get_cached_results(QUERY, "docs") is None
    assert service.warm_cache_for_collection("docs", max_queries=50) == 1
    held = service.get_cached_results(QUERY, "docs")
    assert held is not None
    assert held.query_hash == key


def test_judgments_through_the_service_are_what_quality_is_measured_by(fill: Fill, config: Config) -> None:
    with BackgroundProcessingService(fill("docs", shift=1), WordOverlap(), 300, False, config=config) as service:
        before = service.executor.execute_task_now("reindex", "docs", force=True).result
        assert before is not None
        assert before["quality_before"] is before["quality_after"] is None
        service.record_feedback(QUERY, "docs", *next(iter(JUDGED_QUERIES[0]["judgments"].items())))
        after = service.executor.execute_task_now("reindex", "docs", force=True).result
        assert after is not None
        assert 0.0 < after["quality_before"] == after["quality_after"] <= 1.0  # nothing had changed
        with pytest.raises(ValueError, match="relevance"):
            service.record_feedback(QUERY, "docs", 1, -1.0)


def inline(service: BackgroundProcessingService) -> InlineLane:
    lane = service._lane
    assert isinstance(lane, InlineLane)
    return lane


def make_due(service: BackgroundProcessingService) -> list[ScheduleRecord]:
    """Bring the next run of every schedule forward to a second ago."""
    lane = inline(service)
    with lane._lock:
        due = [
            msgspec.structs.replace(one, next_run_at=datetime.now().timestamp() - 1)
            for one in lane._core.schedules.values()
        ]
        for schedule in due:
            lane._core.save_schedule(schedule)
        lane._turn()
    return due


def wait_for_executions(service: BackgroundProcessingService, count: int) -> list[TaskExecution]:
    """Wait until `count` tasks have ended in the service's own thread."""
    lane = inline(service)
    with lane._changed:
        assert lane._changed.wait_for(lambda: len(lane._core.journal.executions(100)) >= count, DEADLINE_S)
    return service.executor.get_execution_history(100)


def test_a_due_schedule_runs_in_the_background_and_moves_on(calm: None, service: BackgroundProcessingService) -> None:
    schedule_id = service.schedule_reindexing("docs", "daily", {"force_rebuild": True})
    service.start()
    make_due(service)
    (done,) = wait_for_executions(service, 1)
    assert (done.status, done.task_type, done.collection_name) == (TaskStatus.COMPLETED, "reindex", "docs")
    assert done.result is not None
    assert done.result["documents_embedded"] == DOCUMENTS
    task = service.scheduler.scheduled_tasks[schedule_id]
    assert task.last_run is not None
    assert task.last_run <= datetime.now() < task.next_run


def test_default_schedules_cover_the_four_collections_and_skip_those_that_do_not_exist(
    calm: None, fill: Fill, config: Config
) -> None:
    with BackgroundProcessingService(fill("morgan_knowledge"), WordOverlap(), config=config) as service:
        tasks = service.scheduler.list_tasks()
        assert {task.collection_name for task in tasks} == set(DEFAULT_COLLECTIONS)
        assert sorted((t.task_type, t.frequency.value) for t in tasks if t.collection_name == "morgan_code") == [
            ("reindex", "weekly"),
            ("rerank", "daily"),
            ("rerank", "hourly"),
            ("warm", "hourly"),
        ]
        assert len(make_due(service)) == len(tasks)
        done = wait_for_executions(service, len(tasks))
        assert {(one.collection_name, one.status) for one in done if one.task_type == "reindex"} == {
            ("morgan_knowledge", TaskStatus.COMPLETED),
            *((name, TaskStatus.SKIPPED) for name in DEFAULT_COLLECTIONS[1:]),
        }
        absent = [one for one in done if one.collection_name != "morgan_knowledge"]
        assert all(f"{one.collection_name!r}" in (one.error_message or "") for one in absent)
        assert all("there are: morgan_knowledge" in (one.error_message or "") for one in absent)
        assert service.get_service_status()["execution"]["failed"] == 0


def test_without_auto_scheduling_nothing_is_scheduled(service: BackgroundProcessingService) -> None:
    assert service.scheduler.list_tasks() == []


def test_a_schedule_of_ones_own_on_a_missing_collection_fails_and_says_so(
    calm: None, service: BackgroundProcessingService
) -> None:
    service.schedule_reindexing("nowhere", "hourly")
    service.start()
    make_due(service)
    (done,) = wait_for_executions(service, 1)
    assert done.status is TaskStatus.FAILED
    assert re.search(r"'nowhere'.*docs, empty", done.error_message or "")
