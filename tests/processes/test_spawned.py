"""A service that an application starts for itself: what it says of itself once it is stopped."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psutil
import pytest

from morgan.background import BackgroundProcessingService, Client
from morgan.background.spawned import SpawnedLane
from tests.processes.daemons import NO_MODEL


@pytest.fixture
def no_model(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in NO_MODEL.items():
        monkeypatch.setenv(name, value)
    return own_state


def test_a_stopped_service_says_that_it_is_stopped_and_is_not_started_by_the_question(no_model: Path) -> None:
    with closing(BackgroundProcessingService(enable_auto_scheduling=False)) as service, Client() as client:
        assert isinstance(service._lane, SpawnedLane)
        service.start()
        service.schedule_reindexing("docs")
        service.track_search_query("how long is a token valid?", "docs")
        before = service.get_service_status()
        assert before["service_running"] is True
        processes = [psutil.Process(before["pid"]), *psutil.Process(before["pid"]).children()]
        assert len(processes) > 1
        service.stop()
        for _ in range(2):  # the second answer is as good as the first
            after = service.get_service_status()
            assert (after["service_running"], after["workers"], after["running"]) == (False, [], [])
            assert after["scheduled_tasks"] == before["scheduled_tasks"] == 1
            assert after["last_check"] == before["last_check"]
            (popular,) = service.get_recent_activity()["popular_queries"]
            assert (popular["query"], popular["access_count"]) == ("how long is a token valid?", 1)
            assert service.get_recent_activity(limit=0)["popular_queries"] == []
        assert not client.is_running()
        assert not [one for one in processes if one.is_running()]

        assert service.start()
        again = service.get_service_status()
        assert (again["service_running"], again["scheduled_tasks"]) == (True, 1)
        assert again["pid"] != before["pid"]
