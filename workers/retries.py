"""Owns that a change of a server is known to be made: asked for again, as it is, until it is answered.

For changes that may be made twice. A request whose answer was lost may have been obeyed, or be obeyed later; when the
same one is answered, both leave the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ..ipc.errors import StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FOR_S = 10.0  # a server that is restarted is back by then, mostly; the store owner answers nobody meanwhile
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0


def until_answered(change: Callable[[], T]) -> T:
    """Return what `change` returns; call it again where it raises StoreUnavailable, for FOR_S seconds, then let it."""
    end_at, wait_s = time.monotonic() + FOR_S, FIRST_WAIT_S
    while True:
        try:
            return change()
        except StoreUnavailable as error:
            if time.monotonic() + wait_s > end_at:
                raise
            log.info("asked again in %.2f s: %s", wait_s, error)
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)
