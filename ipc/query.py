"""Owns the identity of a query: the normal form of its text and the hash that names it in one collection and scope."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import xxhash


def normalise(text: str) -> str:
    """Return `text` in NFC, case-folded, with runs of white space collapsed: what two equal queries have in common."""
    if text.isascii():  # NFC and casefold are plain lower() here: 5x faster, and most queries are ASCII
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def scope_of(query_filter: Mapping[str, Any] | None, tenant: str = "") -> str:
    """Return the canonical text of a filter and tenant; "" for neither. Results of one scope are never another's."""
    if not query_filter and not tenant:
        return ""
    return json.dumps([tenant, dict(query_filter or {})], sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def key_bytes(text: str, collection: str, scope: str = "") -> bytes:
    """Return what is hashed and compared: collection, scope and normal form, with lengths so that none can run over."""
    return f"{len(collection)} {len(scope)} {collection}{scope}{normalise(text)}".encode("utf-8", "surrogatepass")


def query_hash(text: str, collection: str, scope: str = "") -> str:
    """Return the 32-character hex name of a query (xxh3-128 of `key_bytes`)."""
    return xxhash.xxh3_128_hexdigest(key_bytes(text, collection, scope))


def key64(key: bytes) -> int:
    """Return the 64-bit index key of `key_bytes` (xxh3-64), never 0: a zero word is an empty slot."""
    return xxhash.xxh3_64_intdigest(key) or 1
