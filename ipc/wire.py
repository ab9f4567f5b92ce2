"""Owns the bytes of a message: encode, decode, and what is refused. Never raises anything but ProtocolError on input."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from enum import Enum
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from .calls import Answer, Call
from .commands import Command, Event
from .errors import ProtocolError
from .messages import PROTOCOL_VERSION, Message, Reply, Request

MAX_CLIENT_BYTES = 64 * 1024
"""Per frame of a client's request, and requests are one frame: the whole request."""

MAX_DEPTH = 64
"""Of maps and lists inside one another. Msgspec reads about 980 and then fails to write what it has read."""

T = TypeVar("T")
U = TypeVar("U")

_encoder = msgspec.msgpack.Encoder()


class _Envelope(msgspec.Struct):
    """The part of any message that can be read before its type is known."""

    v: int = 0
    rid: int = 0
    type: str = ""


_envelope = msgspec.msgpack.Decoder(_Envelope)


class Codec(Generic[T]):
    """Decodes one union of messages, strictly typed. `is_bounded`: refuses what is nested deeper than MAX_DEPTH."""

    def __init__(self, union: object, *, is_bounded: bool = False) -> None:
        self._is_bounded = is_bounded
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)
        self._batches: msgspec.msgpack.Decoder[list[T]] = msgspec.msgpack.Decoder(list[union])  # type: ignore[valid-type]

    def decode(self, frame: bytes) -> T:
        """Return the message in `frame`. Raises ProtocolError that says what is wrong with it."""
        found = _read(self._decoder, frame)
        _check_version(found)
        # a level takes at least one byte that opens a map or list: most requests have too few to be looked through
        if self._is_bounded and len(frame.translate(None, _NO_OPENING)) > MAX_DEPTH and _is_deep(found):
            raise ProtocolError(f"maps and lists inside one another are more than {MAX_DEPTH} deep")
        return found

    def decode_all(self, frame: bytes) -> list[T]:
        """Return the messages of a frame made by `encode_all`. For our own processes: it bounds no depth."""
        found = _read(self._batches, frame)
        for one in found:
            _check_version(one)
        return found


def _read(decoder: msgspec.msgpack.Decoder[U], frame: bytes) -> U:
    try:
        return decoder.decode(frame)
    # msgspec lets these two through on hostile input: invalid UTF-8 in a key, deep nesting
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message: {error}; docs/protocol.md lists types and fields") from error


def _check_version(message: object) -> None:
    version = getattr(message, "v", None)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {version}, this side speaks {PROTOCOL_VERSION}: update the older one")


_OPENING = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])  # of MessagePack: fixmap, fixarray, array, map
_NO_OPENING = bytes(set(range(256)) - set(_OPENING))


def _is_deep(message: object) -> bool:
    """Say whether containers are nested more than MAX_DEPTH deep. Iterative: recursion is what it guards against."""
    level = [message]
    for _ in range(MAX_DEPTH + 1):
        level = [part for one in level for part in _parts(one) if isinstance(part, _CONTAINERS)]
        if not level:
            return False
    return True


_CONTAINERS = (dict, list, tuple, msgspec.Struct)


def _parts(one: Any) -> Iterable[Any]:
    match one:
        case dict():
            return (*one, *one.values())
        case msgspec.Struct():
            return [getattr(one, name) for name in _holding(type(one))]
        case _:
            return tuple(one)


@functools.cache
def _holding(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the fields that may hold a container: a batch of a thousand orders is looked through for one in each."""
    return tuple(one.name for one in msgspec.structs.fields(kind) if not _is_flat(one.type))


def _is_flat(of: Any) -> bool:
    if get_origin(of) in (Union, UnionType):
        return all(_is_flat(one) for one in get_args(of))
    return of in (str, int, float, bool, bytes, type(None)) or (isinstance(of, type) and issubclass(of, Enum))


requests: Codec[Request] = Codec(Request, is_bounded=True)
replies: Codec[Reply] = Codec(Reply)
commands: Codec[Command] = Codec(Command)
events: Codec[Event] = Codec(Event)
calls: Codec[Call] = Codec(Call, is_bounded=True)
answers: Codec[Answer] = Codec(Answer)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def encode_all(messages: Sequence[Message]) -> bytes:
    """Return one frame with several messages: what supervisor and workers have for each other at one time."""
    return _encoder.encode(messages)


def size_of(part: msgspec.Struct) -> int:
    """Return how many bytes a part of a message takes in it."""
    return len(_encoder.encode(part))


def rid_of(frame: bytes) -> int:
    """Return the request id of a message that may be otherwise unreadable, 0 if even that cannot be read."""
    try:
        return _envelope.decode(frame).rid
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
