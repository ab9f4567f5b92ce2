"""Owns how a set clock and a suspend are noticed: a timer of the wall clock, and the difference of two others.

    set        the timerfd's read fails with ECANCELED, at once, also while the loop waits
    suspended  CLOCK_BOOTTIME went on, CLOCK_MONOTONIC did not

What is done about either is the core's: `Core.time_moved`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

# linux/timerfd.h, uapi; os.timerfd_create is there from Python 3.13 on
_ABSTIME, _CANCEL_ON_SET = 1, 2
_FAR_S = 365 * 86400.0  # an armed timer is what notices a set clock, so one is armed also where nothing is due

_BOOT = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)

MOVED_S = 1.0  # less than that is a correction, which no schedule, back-off or deadline here can feel


@dataclass(frozen=True, slots=True)
class Moved:
    """How time went on without this process: by how much the wall clock was set (negative: back), seconds suspended."""

    set_s: float
    suspended_s: float


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class WallTimer:
    """A timer that becomes readable at a time of the wall clock, or when that clock is set. Register `fd`."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._armed_at: float | None = math.nan  # equal to nothing: the next `arm` sets the timer
        self._was_set = False

    def arm(self, at: float | None) -> None:
        """Set the timer to a Unix time; None: to none that comes soon. A time that is past makes it readable once."""
        if at == self._armed_at:
            return
        self._armed_at = at
        wanted = time.time() + _FAR_S if at is None else max(at, 1e-9)  # 0 would disarm it
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(int(wanted), int(wanted % 1 * 1e9)))
        if self._libc.timerfd_settime(self.fd, _ABSTIME | _CANCEL_ON_SET, ctypes.byref(spec), None) < 0:
            # ECANCELED: the clock was set before this call. The timer is armed all the same.
            if (code := ctypes.get_errno()) != errno.ECANCELED:
                raise OSError(code, "timerfd_settime")
            self._was_set = True

    def was_set(self) -> bool:
        """Take what made the timer readable: True where the clock was set since the last call."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass  # neither expired nor cancelled
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
            self._was_set = True
        found, self._was_set = self._was_set, False
        if found or self._armed_at is None:
            self._armed_at = math.nan
        return found

    def close(self) -> None:
        os.close(self.fd)


class ClockWatch:
    """Compares the wall clock, the boot clock and the monotonic clock from call to call. Clocks are arguments: tests."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], float] = _BOOT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._boot, self._monotonic = wall, boot, monotonic
        now = self._boot()
        self._offset_s, self._slept_s = self._wall() - now, now - self._monotonic()

    def moved(self) -> Moved | None:
        """Return what happened since the last call; None for less than MOVED_S of both."""
        boot = self._boot()
        offset_s, slept_s = self._wall() - boot, boot - self._monotonic()
        set_s, suspended_s = offset_s - self._offset_s, slept_s - self._slept_s
        if -MOVED_S < set_s < MOVED_S and suspended_s < MOVED_S:
            # the base stays: a clock that is slewed moves by less than this from call to call, and adds up
            return None
        self._offset_s, self._slept_s = offset_s, slept_s
        return Moved(set_s, suspended_s)
