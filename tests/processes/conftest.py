from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping

import pytest
import zmq

from morgan.background.data import Document, documents
from tests.processes.daemons import NO_MODEL, Context, Daemon

LOG_TAIL = 20_000  # characters: the last minutes of a daemon under test

_open: list[Daemon] = []


@pytest.fixture(scope="package")
def daemon() -> Iterator[Daemon]:
    """One daemon with the default model for all tests of this folder: each process that loads it needs ten seconds."""
    yield from _served({})


@pytest.fixture(scope="package")
def bare() -> Iterator[Daemon]:
    """One daemon without a model and with two task workers: for what needs no embedding."""
    yield from _served({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "2"})


@pytest.fixture
def make_daemon() -> Iterator[Callable[[Mapping[str, str]], Daemon]]:
    """Make daemons of a test's own; they are not started."""
    made: list[Daemon] = []

    def make(env: Mapping[str, str]) -> Daemon:
        made.append(Daemon(env))
        _open.append(made[-1])
        return made[-1]

    yield make
    for one in made:
        _open.remove(one)
        one.close()


def _served(env: Mapping[str, str]) -> Iterator[Daemon]:
    one = Daemon(env)
    _open.append(one)
    try:
        yield one.start()
    finally:
        _open.remove(one)
        one.close()


@pytest.fixture
def context() -> Iterator[Context]:
    """For sockets of a test's own: what no client of ours would send."""
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def docs(daemon: Daemon, request: pytest.FixtureRequest) -> str:
    """A collection of this test's own with the first 24 documents of the corpus, embedded by the owner."""
    name = f"docs_{abs(hash(request.node.nodeid)) % 10**8}"
    daemon.client.create_collection(name)
    daemon.client.upsert(name, some_documents())
    return name


def some_documents(count: int = 24) -> list[Document]:
    return documents()[:count]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the daemons logged to the report of a test that failed."""
    report = yield
    if report.failed:
        for one in _open:
            if one.log.exists():
                report.sections.append((f"log of the daemon in {one.root.name}", one.log.read_text()[-LOG_TAIL:]))
    return report
