"""Owns how other processes of this package are started: by a command line, or forked by the fork server on an order.

A new Python process finds the package where this process found it. Orders and reports cross a SOCK_SEQPACKET pair,
one message a packet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .commands import Role
from .settings import ModelSettings, RerankSettings

PACKAGE = __package__.rpartition(".")[0]

MAX_ORDER_BYTES = 64 * 1024
ADOPTER = "morgan-adopter"  # what a process calls itself that makes the graph of a model (workers/adoption.py)


class Order(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what supervisor and fork server say to each other."""


class Preload(Order, tag="preload", frozen=True):
    """Load these models, so that every worker forked from now on has them. Answered by Preloaded.

    `with_client`: the client of a Qdrant server as well, once the models are there.
    """

    model: ModelSettings
    rerank: RerankSettings
    with_client: bool = False


class Fork(Order, tag="fork", frozen=True):
    """Fork the worker of place `index`, to run on `cpus`. Answered by Forked or NotForked."""

    index: int
    role: Role
    cpus: tuple[int, ...]


class Preloaded(Order, tag="preloaded", frozen=True):
    """`problem` says why workers have to load their models themselves; "" where they need not."""

    problem: str = ""


class Forked(Order, tag="forked", frozen=True):
    """The worker of place `index` is process `pid`, and by now a child of the supervisor."""

    index: int
    pid: int


class NotForked(Order, tag="not_forked", frozen=True):
    """The machine refused a process: too many, or no memory."""

    index: int
    message: str


orders = msgspec.msgpack.Decoder(Preload | Fork)
reports = msgspec.msgpack.Decoder(Preloaded | Forked | NotForked)


def encode(order: Order) -> bytes:
    return msgspec.msgpack.encode(order)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` of this package ("" for the package itself)."""
    return [sys.executable, "-m", f"{PACKAGE}.{module}" if module else PACKAGE, *arguments]


def environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `overrides`, and the package on the path, installed or not."""
    root = str(Path(sys.modules[PACKAGE].__path__[0]).absolute().parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, **overrides}
