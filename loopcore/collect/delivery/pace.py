"""How much may be sent, and in which part of the day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime

from loopcore.options import Rate, Window

_LOOK_AGAIN_S = 600.0  # the wall clock may step, and summer time begins and ends


def local_now() -> datetime:
    """The wall clock of this place."""
    return datetime.now().astimezone()


class Pace:
    """The limits that an operator set for a sink.

    Args:
        max_rate: Bytes a second, retries included. What is sent is paid for afterwards, by waiting.
        between: The part of the day in which sending may begin.
        now: The local time.
    """

    def __init__(self, max_rate: Rate | None, between: Window | None, now: Callable[[], datetime]) -> None:
        self._max_rate = max_rate
        self._between = between
        self._now = now
        self._paid = 0.0

    def spend(self, now: float, count: int) -> None:
        """So many bytes are on their way."""
        if self._max_rate is not None:
            self._paid = max(self._paid, now) + count / self._max_rate

    def paid_at(self) -> float:
        """When all that was sent has been waited for, in the event loop's time."""
        return self._paid

    def closed_s(self) -> float:
        """For how long the window is shut; 0 if it is open, and at most ten minutes: then ask again."""
        moment = self._now()
        if self._between is None or self._between.contains(moment.time()):
            return 0.0
        opens = datetime.combine(date.min, self._between.start)
        seconds = (opens - datetime.combine(date.min, moment.time())).total_seconds() % 86400
        return min(max(seconds, 0.001), _LOOK_AGAIN_S)
