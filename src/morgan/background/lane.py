"""Owns the two ways a component reaches the service: through the daemon, or inline in the calling process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .ipc import calls, messages
from .ipc.client import Client, expect
from .ipc.reader import ResultReader
from .ipc.records import ComputedResult, PointId, TaskRecord

if TYPE_CHECKING:
    from .supervisor.config import Config

LONG_POLL_S = 30.0


class Lane(Protocol):
    """What the public components talk to. `name` is "daemon" or "inline"."""

    name: str

    def request(self, message: messages.Request, timeout_s: float | None = None) -> messages.Reply: ...

    @property
    def reader(self) -> ResultReader: ...

    def compute(self, text: str, collection: str, limit: int) -> ComputedResult | None:
        """Search and rerank now, publish what was found and return it."""
        ...

    def post(self, message: messages.Track | messages.Publish) -> None:
        """Tell the supervisor something and wait for nothing."""
        ...

    def report_change(self, collection: str, ids: tuple[PointId, ...]) -> None:
        """Drop the results that points written or deleted by the application can alter."""
        ...

    def wait(self, task_id: str, *, until_attempted: bool = False) -> TaskRecord:
        """Return the task when it has ended; with `until_attempted` also when it waits for a second attempt."""
        ...

    def start(self) -> None:
        """Run schedules and queued tasks from now on, also while nobody waits for one."""
        ...

    def stop(self) -> None:
        """Let running tasks leave at their next step."""
        ...

    def close(self) -> None: ...


class DaemonLane:
    """The components of this process talk to a running supervisor."""

    name = "daemon"

    def __init__(self, client: Client) -> None:
        self._client = client

    def request(self, message: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        return self._client.request(message, timeout_s)

    @property
    def reader(self) -> ResultReader:
        return self._client.reader

    def compute(self, text: str, collection: str, limit: int) -> ComputedResult | None:
        call = calls.SearchText(collection=collection, text=text, limit=limit, is_reranked=True)
        computed = expect(calls.Computed, self._client.call(call)).result
        # The owner reported the result before it answered, so that a request after that finds it published.
        self.request(messages.CacheStats())
        return computed

    def post(self, message: messages.Track | messages.Publish) -> None:
        self._client.post(message)

    def report_change(self, collection: str, ids: tuple[PointId, ...]) -> None:
        self._client.report_change(collection, ids)

    def wait(self, task_id: str, *, until_attempted: bool = False) -> TaskRecord:
        seen = -1
        while True:
            ask = messages.GetTask(task_id=task_id, seen=seen, wait_s=LONG_POLL_S)
            record = expect(messages.TaskReply, self.request(ask, LONG_POLL_S + 10)).task
            if is_over(record, until_attempted=until_attempted):
                return record
            seen = record.version

    def start(self) -> None:
        """Nothing to do: the daemon runs already."""

    def stop(self) -> None:
        """Nothing to do: other applications may use the daemon; `morgan-background stop` ends it."""

    def close(self) -> None:
        self._client.close()


def is_over(record: TaskRecord, *, until_attempted: bool) -> bool:
    """Say whether nothing more is to be waited for: the task ended, or (`until_attempted`) its first attempt failed."""
    return record.status.is_final or (
        until_attempted and record.attempt > 0 and record.worker is None and bool(record.error_message)
    )


def choose_lane(
    vector_db_client: Any = None,
    reranking_service: Any = None,
    *,
    config: Config | None = None,
    client: Client | None = None,
) -> Lane:
    """Return the lane for what a component was given.

    A `client` is used as it is. A live vector client or reranking service cannot cross a process boundary: inline.
    With neither, the daemon of the configured state directory if one answers, else inline on the configured store.
    """
    if client is not None:
        return DaemonLane(client)
    if vector_db_client is None and reranking_service is None:
        from .supervisor.config import load

        config = config or load()
        found = Client(runtime_dir=config.runtime_dir(), state_dir=config.state_dir())
        if found.is_running():
            return DaemonLane(found)
        found.close()
    from .inline import InlineLane

    return InlineLane(vector_db_client, reranking_service, config=config)
