"""When the owner opens its store: the embedded one at once, a server's client when somebody asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from morgan.background.ipc import launch
from morgan.background.ipc.errors import StoreLocked, StoreUnavailable
from morgan.background.ipc.settings import StoreSettings
from morgan.background.workers.open_store import open_late

NOBODY = StoreSettings(url="http://127.0.0.1:9", timeout_s=1.0)  # discard: nothing listens there

LOOK = """
import json, sys
from morgan.background.ipc.errors import StoreUnavailable
from morgan.background.ipc.settings import StoreSettings
from morgan.background.workers.open_store import open_late

store = open_late(StoreSettings(url="http://127.0.0.1:9", timeout_s=1.0))
store.close()
before = "qdrant_client" in sys.modules
try:
    store.collections()
except StoreUnavailable as error:
    print(json.dumps([before, "qdrant_client" in sys.modules, str(error)]))
"""


def test_the_client_of_a_server_is_imported_by_the_first_call_and_not_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=launch.environment({}), capture_output=True, text=True, timeout=60, check=True
    )
    before, after, error = json.loads(done.stdout)
    assert (before, after) == (False, True)
    assert "http://127.0.0.1:9 does not answer" in error


def test_each_call_of_a_server_that_does_not_answer_says_so() -> None:
    store = open_late(NOBODY)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.info("docs")
    store.close()


def test_the_embedded_store_is_open_and_locked_at_once(tmp_path: Path) -> None:
    settings = StoreSettings(path=str(tmp_path / "vectors"))
    store = open_late(settings)
    with pytest.raises(StoreLocked):
        open_late(settings)
    assert store.collections() == []
    store.close()
