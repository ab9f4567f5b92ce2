"""The bytes of messages: all of ours come back as they were, all else is a ProtocolError and nothing worse."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc import calls, commands, messages, wire
from morgan.background.ipc.errors import ProtocolError
from morgan.background.ipc.messages import PROTOCOL_VERSION, Message
from morgan.background.ipc.records import Order

UNIONS: tuple[tuple[wire.Codec[Any], Any], ...] = (
    (wire.requests, messages.Request),
    (wire.replies, messages.Reply),
    (wire.commands, commands.Command),
    (wire.events, commands.Event),
    (wire.calls, calls.Call),
    (wire.answers, calls.Answer),
)
CODECS = [codec for codec, _ in UNIONS]
KINDS = [(codec, kind) for codec, union in UNIONS for kind in typing.get_args(union)]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
ANY = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    str: TEXTS,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    type(None): st.none(),
    Any: ANY,
    object: ANY,
}


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return values of an annotation used in a message: every field is drawn, none left at its default."""
    if kind in SCALARS:
        return SCALARS[kind]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, parts))
    if origin is tuple:
        is_fixed = parts[-1] is not Ellipsis
        return st.tuples(*map(values, parts)) if is_fixed else st.lists(values(parts[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=3)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    assert issubclass(kind, msgspec.Struct), kind
    hints = typing.get_type_hints(kind)
    fields = {one.name: values(hints[one.name]) for one in msgspec.structs.fields(kind)}
    return st.fixed_dictionaries(fields).map(lambda drawn: kind(**drawn))


def instances(kind: type[Message]) -> st.SearchStrategy[Message]:
    return values(kind).map(lambda one: msgspec.structs.replace(one, v=PROTOCOL_VERSION))


ANY_MESSAGE = st.sampled_from(KINDS).flatmap(lambda pair: st.tuples(st.just(pair[0]), instances(pair[1])))


def subclasses(root: type[Message]) -> Iterator[type[Message]]:
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_message_belongs_to_a_union_and_no_two_of_one_union_share_a_type() -> None:
    assert {kind for _, kind in KINDS} == set(subclasses(Message))
    for _, union in UNIONS:
        tags = [kind.__struct_config__.tag for kind in typing.get_args(union)]
        assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=lambda one: getattr(one, "__name__", ""))
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(codec: wire.Codec[Any], kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(instances(kind))
    frame = wire.encode(message)
    assert codec.decode(frame) == message
    assert wire.rid_of(frame) == message.rid
    plain = msgpack.unpackb(frame, strict_map_key=False)  # another implementation reads the same map
    assert (plain["v"], plain["type"], plain["rid"]) == (PROTOCOL_VERSION, kind.__struct_config__.tag, message.rid)


def decoded(codec: wire.Codec[Any], frame: bytes) -> Message | None:
    """Return the message in `frame`, None where it is refused. Any exception but ProtocolError leaves the test."""
    try:
        found = codec.decode(frame)
    except ProtocolError:
        return None
    assert isinstance(found, Message)
    assert found.v == PROTOCOL_VERSION
    return found


@settings(deadline=None, max_examples=50)
@given(data=st.data(), codec=st.sampled_from(CODECS))
def test_several_messages_in_one_frame_come_back_in_order(data: st.DataObject, codec: wire.Codec[Any]) -> None:
    kinds = st.sampled_from([kind for one, kind in KINDS if one is codec])
    sent = [data.draw(instances(kind)) for kind in data.draw(st.lists(kinds, max_size=4))]
    frame = wire.encode_all(sent)
    assert codec.decode_all(frame) == sent
    assert sum(wire.size_of(one) for one in sent) == len(frame) - 1
    if sent:
        other = [*sent[:-1], msgspec.structs.replace(sent[-1], v=PROTOCOL_VERSION + 1)]
        with pytest.raises(ProtocolError, match="protocol version"):
            codec.decode_all(wire.encode_all(other))
    with pytest.raises(ProtocolError):
        codec.decode_all(frame + b"\xc1")


def test_an_order_among_many_that_is_nested_too_deep_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(wire.MAX_DEPTH):
        deep = {"a": deep}
    flat = [Order(task_type="ping", collection="c", params={"token": str(n)}) for n in range(100)]
    assert len(wire.requests.decode(wire.encode(messages.SubmitMany(orders=tuple(flat)))).orders) == 100
    with pytest.raises(ProtocolError, match="deep"):
        wire.requests.decode(
            wire.encode(messages.SubmitMany(orders=(*flat, Order(task_type="ping", collection="c", params=deep))))
        )


@settings(deadline=None, max_examples=500)
@given(codec=st.sampled_from(CODECS), frame=st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_protocol_error(codec: wire.Codec[Any], frame: bytes) -> None:
    decoded(codec, frame)
    assert isinstance(wire.rid_of(frame), int)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[wire.Codec[Any], bytes]:
    """Return a valid message with some bytes changed, put in or taken out, or its end cut off."""
    codec, message = draw(ANY_MESSAGE)
    frame = bytearray(wire.encode(message))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change" if at < len(frame):
                frame[at] = draw(st.integers(0, 255))
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "remove":
                del frame[at : at + draw(st.integers(1, 4))]
            case _:
                del frame[at:]
    return codec, bytes(frame)


@settings(deadline=None, max_examples=1000)
@given(damaged())
def test_a_damaged_message_is_refused_or_still_a_message(pair: tuple[wire.Codec[Any], bytes]) -> None:
    codec, frame = pair
    found = decoded(codec, frame)
    assert isinstance(wire.rid_of(frame), int)
    if found is not None:
        assert type(found) in [kind for one, kind in KINDS if one is codec]


@settings(deadline=None, max_examples=300)
@given(pair=ANY_MESSAGE, data=st.data())
def test_a_field_of_another_type_is_refused_or_fits(pair: tuple[wire.Codec[Any], Message], data: st.DataObject) -> None:
    codec, message = pair
    plain = msgpack.unpackb(wire.encode(message), strict_map_key=False)
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(ANY)
    decoded(codec, msgpack.packb(plain))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",  # the one byte msgpack never uses
        b"\x90",
        msgpack.packb({"type": "nothing", "v": 1}),
        msgpack.packb({"type": 1, "v": 1}),
        msgpack.packb({"v": 1, "rid": 1}),
        msgpack.packb({"type": "status", "v": "1"}),
        msgpack.packb({"type": "submit", "v": 1}),
        msgpack.packb({"type": "submit", "v": 1, "task_type": b"warm", "collection": "docs"}),
        msgpack.packb({"type": "status", "v": 1, "rid": 2**64 - 1}) + b"\x00",
        b"\x81\xa4type\xdb\xff\xff\xff\xff",  # a text of 4 GiB announced
        b"\x82\xa4type\xa6upsert\xa6points\xdd\xff\xff\xff\xff",  # so many points announced
        b"\x82\xa4type\xa5tasks\xa5tasks\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa6report\xa6report\x81\xa1a" + b"\x91" * 60_000,  # deeper than the stack
        b"\x82\xa4type\xa6report\xa6report\x81\xa1a\x81\x80\x01",  # a map as a key
        b"\x82\xa4type\xa6report\xa6report\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,  # a time that is none
        b"\x81\xa4typ\xff\xa6status",  # a key that is not UTF-8
    ],
)
def test_hostile_frames_are_refused_by_every_codec(frame: bytes) -> None:
    assert [decoded(codec, frame) for codec in CODECS] == [None] * len(CODECS)
    assert isinstance(wire.rid_of(frame), int)


@settings(deadline=None)
@given(pair=ANY_MESSAGE, version=INTEGERS)
def test_another_version_is_refused_and_both_are_named(pair: tuple[wire.Codec[Any], Message], version: int) -> None:
    codec, message = pair
    frame = wire.encode(msgspec.structs.replace(message, v=version))
    if version == PROTOCOL_VERSION:
        assert codec.decode(frame) == message
    else:
        with pytest.raises(ProtocolError, match=rf"protocol version {version}, this side speaks {PROTOCOL_VERSION}"):
            codec.decode(frame)
    assert wire.rid_of(frame) == message.rid


@settings(deadline=None)
@given(rid=INTEGERS, rest=st.dictionaries(TEXTS, ANY, max_size=3))
def test_the_request_id_is_read_from_a_message_of_unknown_type(rid: int, rest: dict[str, Any]) -> None:
    message = {"later": 1} | rest | {"v": 9, "type": "of the future", "rid": rid}
    frame = msgpack.packb(message)
    assert wire.rid_of(frame) == rid
    assert [decoded(codec, frame) for codec in CODECS] == [None] * len(CODECS)


def test_a_field_that_a_newer_side_added_is_left_out() -> None:
    frame = msgpack.packb({"type": "get_task", "v": 1, "rid": 5, "task_id": "t", "colour": "red"})
    assert wire.requests.decode(frame) == messages.GetTask(rid=5, task_id="t")
