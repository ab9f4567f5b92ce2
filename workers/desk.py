"""Owns the store owner's desk: calls come in on its socket, some wait for their turn, answers to writes for the supervisor."""

from __future__ import annotations

import logging
import time

import zmq

from ..ipc import calls, wire
from ..ipc.errors import ProtocolError, StoreUnavailable
from ..ipc.messages import Failure
from .owner import OwnerService
from .turns import Turns

log = logging.getLogger(__name__)

HELD_CALLS = 1000  # writes that wait at once; one more is refused: who sent it tries again
CALLS_PER_TURN = 16  # then the supervisor's commands are looked at again


class Desk:
    """Answers calls on a ROUTER. Answers to writes are held until the supervisor has seen the change.

    Writes to a collection that is being swapped wait until it is, or take turns before; those that came first go first.
    """

    def __init__(self, socket: zmq.Socket[bytes], service: OwnerService) -> None:
        self._socket, self._service = socket, service
        self._held: dict[int, list[bytes]] = {}  # number of the change -> the answer's frames
        self._waiting: Turns[tuple[bytes, calls.Call]] = Turns(HELD_CALLS)  # who asked, and what

    def seen(self, seq: int) -> None:
        """Send what was held for the change `seq`, or for one before it."""
        for held in [held for held in self._held if held <= seq]:
            _send(self._socket, self._held.pop(held))

    def serve_ready(self) -> None:
        """Answer the calls that wait, at most CALLS_PER_TURN: then the supervisor's commands are looked at again."""
        self._let_go()
        for _ in range(CALLS_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._serve(frames)
            self._let_go()

    @property
    def next_deadline(self) -> float | None:
        """When calls that wait are to be looked at again (monotonic seconds)."""
        if not self._waiting:
            return None
        held = self._service.held(time.monotonic())
        times = (self._waiting.next_due_at(held), self._service.next_release)
        return min((one for one in times if one is not None), default=None)

    def _serve(self, frames: list[bytes]) -> None:
        sender, frame = frames[0], frames[-1]
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a call is one frame, not {len(frames) - 1}; docs/protocol.md")
            call = wire.calls.decode(frame)
        except ProtocolError as error:
            failure = Failure(rid=wire.rid_of(frame), code=error.code, message=str(error))
            _send(self._socket, [sender, wire.encode(failure)])
            return
        self._take(sender, call)

    def _take(self, sender: bytes, call: calls.Call) -> None:
        """Answer a call, or let it wait."""
        service, now = self._service, time.monotonic()
        held, slowed = service.held(now), service.slowed(now)
        name = service.written_to(call) if held or slowed else None
        due_at = now if name is None else service.due_at(name, call, now)
        if name is None or not (due_at > now or name in held or self._waiting.is_behind(name)):
            self._answer(sender, call)
        elif not self._waiting.is_full:
            self._waiting.add(name, due_at, (sender, call))
        else:
            failure = Failure(rid=call.rid, code=StoreUnavailable.code, message="too many writes wait: try again")
            _send(self._socket, [sender, wire.encode(failure)])

    def _let_go(self) -> None:
        if self._waiting:
            now = time.monotonic()
            for sender, call in self._waiting.ready(now, self._service.held(now), self._service.slowed(now)):
                self._answer(sender, call)

    def _answer(self, sender: bytes, call: calls.Call) -> None:
        reply = [sender, wire.encode(self._service.answer(call))]
        if (awaited := self._service.awaited) is None:
            _send(self._socket, reply)
        else:
            self._held[awaited] = reply


def _send(socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            raise
        log.info("an answer was dropped: who asked has left or does not read")
