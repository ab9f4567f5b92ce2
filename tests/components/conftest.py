"""Fixtures of the tests of remote mode: one fake Qdrant server for all of them, and the one that QDRANT_URL names.

Imports are late: qdrant-client's takes a second, for runs that do not need it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from bench.fake_qdrant.faults import Kind
    from bench.fake_qdrant.running import FakeQdrant

    from .remote_site import Site


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeQdrant]:
    from bench.fake_qdrant.running import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def client(fake: FakeQdrant) -> Iterator[QdrantClient]:
    """A client of the fake server, which its faults strike."""
    from .qdrant_servers import client_at

    found = client_at(fake.url)
    yield found
    found.close()


@pytest.fixture(scope="session", params=["fake", *(["server"] if os.environ.get("QDRANT_URL") else [])])
def server(request: pytest.FixtureRequest) -> Iterator[FakeQdrant]:
    """A server whose calls can be struck: the fake one, or a real one behind the fake one's faults."""
    from bench.fake_qdrant.running import running

    if request.param == "fake":
        yield request.getfixturevalue("fake")
    else:
        with running("--forward", os.environ["QDRANT_URL"]) as before:
            yield before


@pytest.fixture(scope="session")
def application(server: FakeQdrant) -> Iterator[QdrantClient]:
    """A client that no fault strikes."""
    from .qdrant_servers import QDRANT_API_KEY, client_at

    found = client_at(server.plain_url, api_key=QDRANT_API_KEY)
    yield found
    found.close()


@pytest.fixture(scope="session")
def struck(server: FakeQdrant) -> Iterator[dict[bool, QdrantClient]]:
    """The service's clients: one that waits, and, for faults in which calls are held, one that does not wait long."""
    from .qdrant_servers import QDRANT_API_KEY, client_at
    from .remote_site import HASTY_S, PATIENT_S

    clients = {
        is_hasty: client_at(server.url, timeout_s=HASTY_S if is_hasty else PATIENT_S, api_key=QDRANT_API_KEY)
        for is_hasty in (False, True)
    }
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def make_site(
    server: FakeQdrant, application: QdrantClient, struck: dict[bool, QdrantClient], tmp_path: Path
) -> Iterator[Callable[..., Site]]:
    from .remote_calls import HELD
    from .remote_site import Site

    made: list[Site] = []

    def make(kind: Kind | None = None) -> Site:
        """Return a site for faults of a kind; None: of none that is held."""
        made.append(Site(server, application, struck[kind in HELD], tmp_path))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
