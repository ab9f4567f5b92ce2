"""Owns the store owner's loop: answers calls on its socket until the supervisor says to leave."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import zmq

from ..ipc.admittance import Admittance, raise_file_limit, shut_at
from ..ipc.calls import MAX_CALL_BYTES
from ..ipc.commands import ChangeSeen, Configure, Drain, Published, Started
from ..ipc.errors import ModelUnavailable, MorganError
from ..ipc.records import ComputedResult
from ..ipc.sockets import CLIENT_UNREAD, HIGH_WATER, bind_router
from .desk import Desk
from .link import Link
from .open_store import open_late
from .owner import OwnerService
from .task import Embedder, Reranker

log = logging.getLogger(__name__)

EXPIRY_PERIOD_S = 600.0  # between looks for versions whose retention has passed: those are kept for hours


def run_owner(
    link: Link, command: Configure, embedder: Embedder, reranker: Reranker, *, is_model_refused: bool
) -> None:
    """Open the store, load the model unless that was tried in vain, serve.

    A missing model leaves everything but embedding in service.
    """
    settings = command.settings
    store = open_late(settings.store)
    if not is_model_refused:
        try:
            log.info("model %s ready, %d dimensions", embedder.name, embedder.size)
        except ModelUnavailable as error:
            log.error("%s", error)

    def publish(results: tuple[ComputedResult, ...]) -> None:
        link.send(Published(results=results))

    service = OwnerService(store, embedder, reranker, settings, publish, report=link.send)
    path = Path(command.owner_socket)
    admittance = Admittance(link.context, command.allowed_uids)
    socket = bind_router(
        link.context, path, max_bytes=MAX_CALL_BYTES, high_water=HIGH_WATER, domain="owner", unread=CLIENT_UNREAD
    )
    admittance.guard("owner's socket", socket, path, shut_at(raise_file_limit()))
    admittance.start()
    link.poller.register(socket, zmq.POLLIN)
    link.poller.register(admittance.wake_fd, zmq.POLLIN)
    link.send(Started())
    desk = Desk(socket, service)
    expire_at = time.monotonic()
    try:
        while not isinstance(
            order := link.wait(_wait_s(admittance.next_deadline(), desk.next_deadline, expire_at)), Drain
        ):
            if isinstance(order, ChangeSeen):
                desk.seen(order.seq)
            desk.serve_ready()
            admittance.turn(time.monotonic())  # it logs what is wrong: that concerns callers alone
            if time.monotonic() >= expire_at:
                expire_at = time.monotonic() + EXPIRY_PERIOD_S
                _drop_expired(service)
    finally:
        admittance.close()
    store.close()


def _drop_expired(service: OwnerService) -> None:
    try:
        service.drop_expired(time.time())
    except MorganError as error:  # a server that does not answer now
        log.warning("versions whose retention has passed are looked for again later: %s", error)


def _wait_s(*deadlines: float | None) -> float | None:
    """Return the seconds until the earliest of some times (monotonic seconds); None where there is none."""
    look_at = min((one for one in deadlines if one is not None), default=None)
    return None if look_at is None else max(look_at - time.monotonic(), 0.0)
