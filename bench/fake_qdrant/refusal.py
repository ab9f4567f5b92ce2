"""Owns how the fake refuses a call: with a status of HTTP and words, as Qdrant does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """The call was not obeyed: `status` says what kind of mistake it was, the message which."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def not_found(message: str) -> Refusal:
    return Refusal(404, f"Not found: {message}")


def wrong(message: str) -> Refusal:
    return Refusal(400, f"Wrong input: {message}")


def unknown(what: str) -> Refusal:
    """Return the refusal of something that a server may know, and the fake does not."""
    return Refusal(501, f"the fake does not know {what}")


def known(body: Mapping[str, Any], *fields: str) -> Mapping[str, Any]:
    """Return `body` as it is. Raises Refusal where it says something that would be passed over; null says nothing."""
    if strange := [field for field, value in body.items() if value is not None and field not in fields]:
        raise unknown(f"the field {strange[0]!r}")
    return body
