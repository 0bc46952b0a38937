"""How old a sample is, on a machine whose clock may step."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

_TOLERANCE_S = 300.0


def uptime() -> float:
    """Seconds since the machine started, time asleep included where the system counts it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class AgeClock:
    """Counts the seconds that an outbox has lived through.

    While it runs, a difference of more than five minutes between the wall clock and the uptime is a step, and the
    uptime counts. Over a restart only the wall clock is known; if it went back, no time has passed. So a device that
    boots in 1970 and then hears of the true time does not take all it holds for outdated.

    Args:
        now: The wall clock.
        uptime: Seconds that pass whatever the wall clock does.
    """

    def __init__(self, now: Callable[[], datetime], uptime: Callable[[], float]) -> None:
        self._now = now
        self._uptime = uptime
        self.age = 0.0
        self.wall = 0.0
        self._up = 0.0

    def resume(self, age: float, wall: float) -> None:
        """Go on from what the last run left behind."""
        self.wall, self._up = self._now().timestamp(), self._uptime()
        self.age = age + (max(0.0, self.wall - wall) if wall else 0.0)

    def read(self) -> float:
        """Seconds lived through up to now; never less than before."""
        wall, up = self._now().timestamp(), self._uptime()
        passed = up - self._up
        if abs((wall - self.wall) - passed) < _TOLERANCE_S:
            passed = wall - self.wall
        self.age += max(0.0, passed)
        self.wall, self._up = wall, up
        return self.age
