"""Sinks of a higher priority are served first: while one of them gets on, the lower ones begin no calls."""

from __future__ import annotations

from collections.abc import Callable

CLAIM_S = 2.0
"""How long a sink that has begun or been accepted counts as getting on; so a hung one holds nobody up for longer."""


class Lanes:
    """What the deliveries of a node know of each other."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []

    def lane(self, priority: int, wake: Callable[[], None]) -> Lane:
        """A sink's own lane. `wake` is called when a higher one gives way."""
        lane = Lane(self._lanes, priority, wake)
        self._lanes.append(lane)
        return lane


class Lane:
    """One sink among the others. Times are those of the event loop."""

    def __init__(self, lanes: list[Lane], priority: int, wake: Callable[[], None]) -> None:
        self._lanes = lanes
        self._priority = priority
        self._wake = wake
        self._until = 0.0

    def claim(self, now: float) -> None:
        """This sink gets on: lower ones wait for a while."""
        self._until = now + CLAIM_S

    def give_way(self) -> None:
        """This sink has nothing to send, or cannot."""
        if self._until:
            self._until = 0.0
            for lane in self._lanes:
                if lane._priority < self._priority:
                    lane._wake()

    def behind_s(self, now: float) -> float:
        """For how long a higher sink has a claim; not more than 0: none has."""
        return max((lane._until - now for lane in self._lanes if lane._priority > self._priority), default=0.0)
