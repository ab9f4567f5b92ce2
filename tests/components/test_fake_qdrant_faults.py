"""The faults of the fake Qdrant server strike as they are asked for. What it does without them: test_fake_qdrant.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from bench.fake_qdrant.faults import ALWAYS, Fault, Kind, fault_of, take
from bench.fake_qdrant.forwarder import Forwarder
from bench.fake_qdrant.front import Call
from bench.fake_qdrant.running import FakeQdrant, running

from .qdrant_servers import MISSING, SIZE, client_at, held, point, refused


@pytest.fixture
def struck(client: QdrantClient, fake: FakeQdrant) -> Iterator[Callable[..., QdrantClient]]:
    """Return a function that asks for a fault of the next upsert, of a collection "f"."""
    fake.clear()
    client.create_collection("f", models.VectorParams(size=SIZE, distance=models.Distance.DOT))

    def ask(kind: Kind, **fields: Any) -> QdrantClient:
        fake.strike(Fault(kind, method="PUT", path="/collections/f/points", **fields))
        return client

    yield ask
    fake.clear()
    client.delete_collection("f")


@pytest.mark.parametrize(
    ("kind", "error", "is_done"),
    [
        (Kind.STATUS, UnexpectedResponse, False),
        (Kind.FAILED, UnexpectedResponse, True),
        (Kind.CUT, ResponseHandlingException, False),
        (Kind.LOST, ResponseHandlingException, True),
        (Kind.TORN, ResponseHandlingException, True),
    ],
)
def test_a_call_that_is_struck_fails_and_has_taken_effect_or_not(
    struck: Callable[..., QdrantClient], kind: Kind, error: type[Exception], is_done: bool
) -> None:
    client = struck(kind)
    with pytest.raises(error):
        client.upsert("f", [point(1, "one")], wait=True)
    assert held(client, "f") == ({1: ("one", 1.0)} if is_done else {})
    client.upsert("f", [point(2, "two")], wait=True)
    assert 2 in held(client, "f")


@pytest.mark.parametrize(("kind", "is_done"), [(Kind.LATE, False), (Kind.SLOW, True)])
def test_a_call_that_is_held_takes_effect_though_its_client_has_left(
    struck: Callable[..., QdrantClient], fake: FakeQdrant, kind: Kind, is_done: bool
) -> None:
    client = struck(kind)
    hasty = client_at(fake.url, timeout_s=0.2)
    with pytest.raises(ResponseHandlingException, match="timed out"):
        hasty.upsert("f", [point(1, "one")], wait=True)
    assert (held(client, "f") != {}) == is_done
    fake.release()
    assert held(client, "f") == {1: ("one", 1.0)}


def test_a_status_is_the_one_that_was_asked_for(struck: Callable[..., QdrantClient]) -> None:
    for status in (429, 500, 503):
        client = struck(Kind.STATUS, status=status)
        assert refused(lambda c=client: c.upsert("f", [point(1, "one")])) == status


def test_faults_come_where_and_as_often_as_they_were_asked_for() -> None:
    outage = Fault(Kind.CUT, count=ALWAYS)
    faults = [Fault(Kind.LOST, "PUT", "/collections/*/points", skip=1, then=outage), Fault(Kind.STATUS, body="only")]

    def strike(method: str, path: str, body: str = "") -> Kind | None:
        nonlocal faults
        found, faults = take(faults, method, path, body)
        return None if found is None else found.kind

    assert strike("PUT", "/collections/c/points") is None
    assert strike("GET", "/collections/c/points") is None
    assert strike("GET", "/collections", '{"update_mode": "insert_only"}') is Kind.STATUS
    assert strike("PUT", "/collections/c/points") is Kind.LOST
    assert [strike("GET", "/") for _ in range(3)] == [Kind.CUT] * 3
    assert fault_of(Fault(Kind.LOST, then=outage).plain()) == Fault(Kind.LOST, then=outage)


def test_an_outage_ends_when_it_is_cleared_and_the_calls_are_told(client: QdrantClient, fake: FakeQdrant) -> None:
    fake.clear()
    fake.strike(Fault(Kind.CUT, count=ALWAYS))
    for _ in range(2):
        with pytest.raises(ResponseHandlingException):
            client.get_collections()
    assert fake.struck() == ["GET /collections"] * 2
    assert client_at(fake.plain_url).get_collections() is not None
    fake.clear()
    client.get_collections()
    assert fake.calls() == [{"method": "GET", "path": "/collections", "fault": None}]


def test_what_is_no_fault_is_refused_in_words(fake: FakeQdrant) -> None:
    for body in (b"[{}]", b'[{"kind": "sudden"}]', b'[{"kind": "cut", "when": 1}]', b"x"):
        answer = httpx.post(f"{fake.url}/faults", content=body)
        assert (answer.status_code, answer.text.startswith("no faults")) == (400, True)
    assert httpx.get(f"{fake.url}/faults/x").status_code == 404


def test_faults_stand_before_another_server_as_well(client: QdrantClient, fake: FakeQdrant) -> None:
    fake.clear()
    client.create_collection("beyond", models.VectorParams(size=SIZE, distance=models.Distance.DOT))
    with running("--forward", fake.plain_url) as before:
        forwarded = client_at(before.url)
        before.strike(Fault(Kind.LOST, method="PUT"))
        with pytest.raises(ResponseHandlingException):
            forwarded.upsert("beyond", [point(1, "one")], wait=True)
        assert held(forwarded, "beyond") == held(client, "beyond") == {1: ("one", 1.0)}
        assert refused(lambda: forwarded.get_collection(MISSING)) == 404
    assert fake.calls()[1:] == [{"method": "POST", "path": "/collections/beyond/points/scroll", "fault": None}]
    client.delete_collection("beyond")
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Forwarder("127.0.0.1:6333")
    nobody = Forwarder(before.url).answer(Call("GET", "/collections", "/collections", {}, b""))
    assert (nobody.status, b"does not answer" in nobody.body) == (502, True)


@pytest.mark.parametrize("is_told", [False, True], ids=["its stdin is closed", "SIGTERM"])
def test_nothing_is_left_of_a_server_that_ends_while_a_call_is_held(is_told: bool) -> None:
    with running() as server:
        hasty = client_at(server.url, timeout_s=0.2)
        server.strike(Fault(Kind.LATE))
        with pytest.raises(ResponseHandlingException, match="timed out"):
            hasty.create_collection("late", models.VectorParams(size=SIZE, distance=models.Distance.DOT))
        assert server.folders()
        if is_told:
            server.end()
    assert server.folders() == []
