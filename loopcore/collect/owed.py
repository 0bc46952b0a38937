"""Frames that were to be kept and could not be: whoever brings one again gets it kept.

The selectors would not want it a second time. They have seen it, and find nothing new in it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from loopcore.types import SampleInfo

_MOST = 1000
_FOR_S = 600.0


class Owed:
    """The reasons of such frames, by sample id: of the last 1,000 of them, for ten minutes.

    Changed in the event loop's thread alone; `reasons` may be asked from any.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._frames: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, sample: SampleInfo) -> None:
        """It could not be stored."""
        self._frames.pop(sample.id, None)
        self._frames[sample.id] = (self._clock() + _FOR_S, sample.reasons)
        if len(self._frames) > _MOST:
            self._frames.popitem(last=False)

    def settle(self, id: str) -> None:  # noqa: A002 - the field's term
        """It is stored now."""
        self._frames.pop(id, None)

    def forget_old(self) -> None:
        """Nobody has come back with these."""
        while self._frames and next(iter(self._frames.values()))[0] < self._clock():
            self._frames.popitem(last=False)

    def reasons(self, id: str) -> tuple[str, ...] | None:  # noqa: A002 - the field's term
        """Why it was to be kept; `None` if nothing is owed."""
        owed = self._frames.get(id)
        return owed[1] if owed else None
