"""What no honest client sends gets a typed error or a closed connection, and costs nobody else anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from morgan.background.ipc import wire
from morgan.background.ipc.calls import MAX_CALL_BYTES
from morgan.background.ipc.sockets import connect_dealer
from tests.processes.daemons import Context, Daemon, received

pack = msgspec.msgpack.encode
NAN, INFINITY = float("nan"), float("inf")
HELLO = pack({"type": "hello", "v": 1, "rid": 3})
COLLECTIONS = pack({"type": "collections", "v": 1, "rid": 3})


def send(context: Context, path: Path, *frames: bytes) -> dict[str, Any]:
    """Send raw frames; return the reply's map."""
    with connect_dealer(context, path) as socket:
        socket.send_multipart(frames)
        return received(socket)


def nested(depth: int) -> bytes:
    """Return msgpack of `depth` lists inside one another, around nil."""
    return b"\x91" * depth + b"\xc0"


def with_nested(message: dict[str, Any], depth: int) -> bytes:
    """Return `message` packed, with the text "NESTED" in it replaced."""
    return pack(message).replace(pack("NESTED"), nested(depth))


UNREADABLE = {
    "garbage": (b"\xc1 no msgpack begins so", 0),
    "an empty frame": (b"", 0),
    "a list": (pack([1, 2, 3]), 0),
    "half a message": (HELLO[:-2], 0),
    "a key that is no UTF-8": (b"\x81\xa1\xff\x01", 0),
    "no type": (pack({"v": 1, "rid": 7}), 7),
    "an unknown type": (pack({"type": "nonsense", "v": 1, "rid": 8}), 8),
    "a rid that is no number": (pack({"type": "hello", "v": 1, "rid": "x"}), 0),
    "deeper than the stack": (nested(20_000), 0),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("socket", ["clients", "owner"])
def test_what_cannot_be_read_gets_a_typed_failure(name: str, socket: str, bare: Daemon, context: Context) -> None:
    frame, rid = UNREADABLE[name]
    reply = send(context, bare.runtime / f"{socket}.sock", frame)
    assert (reply["type"], reply["code"], reply["rid"], reply["v"]) == ("failure", "protocol", rid, 1)
    assert reply["message"]


@pytest.mark.parametrize(("socket", "honest"), [("clients", HELLO), ("owner", COLLECTIONS)], ids=("clients", "owner"))
def test_another_version_and_another_number_of_frames_are_named(
    socket: str, honest: bytes, bare: Daemon, context: Context
) -> None:
    path = bare.runtime / f"{socket}.sock"
    other = send(context, path, pack(msgspec.msgpack.decode(honest) | {"v": 99}))
    assert (other["type"], other["code"], other["rid"]) == ("failure", "protocol", 3)
    assert "version 99, this side speaks 1" in other["message"]
    two = send(context, path, honest, honest)
    assert (two["type"], two["code"], two["rid"]) == ("failure", "protocol", 3)
    assert "one frame, not 2" in two["message"]
    many = send(context, path, *[b""] * 50, honest)
    assert "one frame, not 51" in many["message"]
    assert send(context, path, honest)["type"] != "failure"


RESULT = {
    "query_text": "q",
    "collection": "c",
    "ids": [1, 2],
    "scores": bytes(8),
    "contents": ["a", "b"],
    "sources": ["", ""],
    "metadata": [{}, {}],
    "computed_at": 1.0,
}
SCHEDULE = {"type": "add_schedule", "task_type": "rerank", "collection": "c", "frequency": "daily"}
SUBMIT = {"type": "submit", "task_type": "rerank", "collection": "c"}
SIMILAR = {"type": "find_similar", "query": "q", "collection": "c"}
FEEDBACK = {"type": "feedback", "query": "q", "collection": "c", "document_id": "1"}

REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "a missing field": ({"type": "submit"}, "task_type"),
    "a field of another type": ({"type": "get_task", "task_id": 5}, r"\$\.task_id"),
    "a wait that is no number": ({"type": "get_task", "task_id": "KNOWN", "seen": 9**9, "wait_s": NAN}, "wait_s"),
    "a negative limit": ({"type": "list_tasks", "limit": -1}, "limit"),
    "a response time that is no number": (
        {"type": "track", "query": "q", "collection": "c", "response_s": NAN},
        "response_s",
    ),
    "a grade that is no number": (FEEDBACK | {"relevance": NAN}, "relevance"),
    "an infinite grade": (FEEDBACK | {"relevance": INFINITY}, "relevance"),
    "a negative grade": (FEEDBACK | {"relevance": -1.0}, "relevance"),
    "scores for other rows": ({"type": "publish", "result": RESULT | {"scores": bytes(7)}}, "scores"),
    "a text too few": ({"type": "publish", "result": RESULT | {"contents": ["a"]}}, "1 contents"),
    "half a vector": ({"type": "publish", "result": RESULT | {"embedding": bytes(5)}}, "float32"),
    "a quality of 2": ({"type": "publish", "result": RESULT | {"quality": 2.0}}, "quality"),
    "a lifetime that is no number": ({"type": "publish", "result": RESULT, "ttl_s": NAN}, "ttl_s"),
    "a vector of half a number": (SIMILAR | {"vector": bytes(5)}, "float32"),
    "no vector": (SIMILAR | {"vector": b""}, "float32"),
    "a vector that is no number": (SIMILAR | {"vector": b"\xff" * 8}, "finite"),
    "a path for a name": ({"type": "pause", "collection": "../c"}, "collection's name"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
def test_a_request_of_a_wrong_shape_or_value_is_refused_and_says_what_is_wrong(
    name: str, bare: Daemon, context: Context
) -> None:
    request, words = REFUSED_REQUESTS[name]
    if request.get("task_id") == "KNOWN":
        request = request | {"task_id": bare.submit("warm", "c")}
    reply = send(context, bare.runtime / "clients.sock", pack(request | {"v": 1, "rid": 11}))
    assert (reply["type"], reply["rid"]) == ("failure", 11)
    assert reply["code"] in ("protocol", "invalid_argument")
    assert re.search(words, reply["message"]), reply["message"]
    assert bare.is_served()


POINT = {"id": 1, "payload": {"text": "a"}, "vector": bytes(16)}
UPSERT, SCROLL = {"type": "upsert", "collection": "small"}, {"type": "scroll", "collection": "small"}
SEARCH = {"type": "search_vectors", "collection": "small", "vectors": bytes(16), "count": 1}
CREATE = {"type": "create", "collection": "new", "vector_size": 4}

REFUSED_CALLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a request of the other socket": ({"type": "hello"}, "protocol", "hello"),
    "an id that is no UUID": (UPSERT | {"points": [POINT | {"id": "x"}]}, "invalid_argument", "UUID"),
    "a negative id": (UPSERT | {"points": [POINT | {"id": -1}]}, "invalid_argument", "-1"),
    "half a vector": (UPSERT | {"points": [POINT | {"vector": bytes(15)}]}, "invalid_argument", "float32"),
    "a vector of other numbers": (
        UPSERT | {"points": [POINT | {"vector": b"\xff" * 16}]},
        "invalid_argument",
        "finite",
    ),
    "a vector too short": (UPSERT | {"points": [POINT | {"vector": bytes(12)}]}, "vector_size", "4 dimensions"),
    "a query too short": (SEARCH | {"vectors": bytes(12)}, "vector_size", "4 dimensions"),
    "no query": (SEARCH | {"vectors": b"", "count": 0}, "invalid_argument", "0 vectors"),
    "no rows wanted": (SEARCH | {"limit": 0}, "invalid_argument", "limit"),
    "fewer rows than none": (SCROLL | {"limit": -1}, "invalid_argument", "limit"),
    "a page after no id": (SCROLL | {"after": "x"}, "invalid_argument", "UUID"),
    "a filter of a map": (SEARCH | {"query_filter": {"a": {"b": 1}}}, "invalid_argument", "filter"),
    "a path for a name": (CREATE | {"collection": "../a"}, "invalid_argument", "collection's name"),
    "no name": (CREATE | {"collection": ""}, "invalid_argument", "collection's name"),
    "a name of 256 characters": (CREATE | {"collection": "a" * 256}, "invalid_argument", "collection's name"),
    "a name with a zero": (CREATE | {"collection": "a\0b"}, "invalid_argument", "collection's name"),
    "an alias without a name": ({"type": "set_alias", "alias": "", "collection": "small"}, "invalid_argument", "name"),
    "vectors of 2^40 dimensions": (CREATE | {"vector_size": 2**40}, "invalid_argument", "65536"),
    "an unknown distance": (CREATE | {"distance": "far"}, "invalid_argument", "cosine, dot"),
    "a collection that is not there": (SCROLL | {"collection": "none"}, "collection_not_found", "small"),
    "a text without a model": (UPSERT | {"points": [{"id": 4, "payload": {"text": "a"}}]}, "model", "no model folder"),
}


@pytest.fixture
def small(bare: Daemon) -> Daemon:
    """The bare daemon with a collection "small" of one point."""
    if "small" not in {one.name for one in bare.client.collections()}:
        bare.client.create_collection("small", 4)
        bare.client.upsert("small", [{"id": 1, "vector": [1, 0, 0, 0], "text": "a"}])
    return bare


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_a_call_that_cannot_be_answered_is_refused_by_an_owner_that_lives_on(
    name: str, small: Daemon, context: Context
) -> None:
    call, code, words = REFUSED_CALLS[name]
    children, before = {child.pid for child in small.children()}, small.points("small")
    reply = send(context, small.runtime / "owner.sock", pack(call | {"v": 1, "rid": 12}))
    assert (reply["type"], reply["rid"], reply["code"]) == ("failure", 12, code)
    assert words in reply["message"]
    assert small.points("small") == before
    assert {child.pid for child in small.children()} == children


@pytest.mark.parametrize("depth", [100, *range(975, 995)])  # msgspec reads some of the latter and cannot write them
def test_what_is_nested_too_deep_is_refused_before_it_is_stored(depth: int, small: Daemon, context: Context) -> None:
    envelope = {"v": 1, "rid": 13}
    for message in (
        SCHEDULE | {"metadata": {"x": "NESTED"}},
        SUBMIT | {"params": {"queries": "NESTED"}},
        {"type": "publish", "result": RESULT | {"metadata": [{"x": "NESTED"}, {}]}},
    ):
        reply = send(context, small.runtime / "clients.sock", with_nested(message | envelope, depth))
        assert (reply["type"], reply["code"]) == ("failure", "protocol")
    call = with_nested(UPSERT | envelope | {"points": [POINT | {"payload": {"x": "NESTED"}}]}, depth)
    reply = send(context, small.runtime / "owner.sock", call)
    assert (reply["type"], reply["code"]) == ("failure", "protocol")
    assert small.is_served()
    assert small.points("small").keys() == {1}


def test_a_payload_of_ordinary_depth_is_stored_as_it_is(small: Daemon) -> None:
    payload: dict[str, Any] = {"leaf": [1, "two", None, 2.5]}
    for _ in range(20):
        payload = {"inner": payload}
    small.client.create_collection("nested", 4)
    small.client.upsert("nested", [{"id": 1, "vector": [1, 0, 0, 0], "payload": payload}])
    assert small.points("nested")[1][0] == payload


@pytest.mark.parametrize(
    ("socket", "limit", "honest"),
    [("clients", wire.MAX_CLIENT_BYTES, HELLO), ("owner", MAX_CALL_BYTES, COLLECTIONS)],
    ids=("clients", "owner"),
)
def test_a_frame_over_the_limit_closes_its_connection_and_nobody_else_notices(
    socket: str, limit: int, honest: bytes, bare: Daemon, context: Context
) -> None:
    path, children = bare.runtime / f"{socket}.sock", {child.pid for child in bare.children()}
    with connect_dealer(context, path) as dealer, dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        dealer.send(honest)
        assert received(dealer)["type"] != "failure"
        dealer.send(bytes(limit + 1))
        assert monitor.poll(30_000), "the connection stays open"
        dealer.disable_monitor()
    assert send(context, path, honest)["type"] != "failure"
    assert {child.pid for child in bare.children()} == children
    assert psutil.Process(bare.pid).memory_info().rss < 200 * 2**20


def test_a_request_up_to_the_limit_is_served(bare: Daemon, context: Context) -> None:
    empty = pack(SUBMIT | {"v": 1, "rid": 14, "collection": "c", "params": {"queries": [""]}})
    text = "x" * (wire.MAX_CLIENT_BYTES - len(empty) - 2)  # two bytes more for the length of a long text
    frame = pack(SUBMIT | {"v": 1, "rid": 14, "collection": "c", "params": {"queries": [text]}})
    assert len(frame) == wire.MAX_CLIENT_BYTES
    assert send(context, bare.runtime / "clients.sock", frame)["type"] == "submitted"


def test_a_request_without_a_rid_is_obeyed_and_not_answered(bare: Daemon, context: Context) -> None:
    track = {"type": "track", "v": 1, "query": "no reply wanted", "collection": "c"}
    with connect_dealer(context, bare.runtime / "clients.sock") as dealer:
        dealer.send(pack(track))
        dealer.send(pack(track | {"rid": 2**64 - 1}))
        assert received(dealer)["rid"] == 2**64 - 1
        dealer.send(pack({"type": "list_queries", "v": 1, "rid": 1, "collection": "c", "min_frequency": 2}))
        (query,) = received(dealer)["queries"]
    assert (query["query_text"], query["access_count"]) == ("no reply wanted", 2)
