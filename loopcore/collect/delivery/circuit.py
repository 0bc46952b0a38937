"""When a sink that fails may be tried again, and how hard."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from math import inf
from random import Random

from msgspec import Struct

from loopcore.collect.outbox import Lease

_MAX_ASKED_S = 3600.0


class Backoff(Struct, frozen=True, kw_only=True):
    """How long to wait after failures in a row: a random part of a limit that doubles up to a ceiling (full jitter).

    Attributes:
        first_s: The limit after the first failure.
        ceiling_s: The highest limit.
        open_after: After so many the circuit is open: nothing is tried but one sample at a time.
    """

    first_s: float = 1.0
    ceiling_s: float = 300.0
    open_after: int = 5

    def wait_s(self, failures: int, random: Random) -> float:
        """How long to wait after the last of `failures` in a row, 1 or more."""
        return random.uniform(0, min(self.ceiling_s, self.first_s * 2 ** min(failures - 1, 60)))


class Circuit:
    """The state of one sink, judged by what came of trying. Times are those of the event loop.

    Attributes:
        failures: In a row; those of calls that ran at the same time count once.
        until: Nothing is to be tried before.
    """

    def __init__(self, backoff: Backoff, random: Random) -> None:
        self._backoff = backoff
        self._random = random
        self._asked = 0.0
        self._last = -1
        self.failures = 0
        self.until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether only one sample at a time may be tried."""
        return self.failures >= self._backoff.open_after

    def failed(self, now: float, *, begun: int, turn: int) -> None:
        """A call failed: it began at turn `begun`, and now it is turn `turn`."""
        if begun < self._last:
            return
        self._last = turn
        self.failures += 1
        self.until = max(self.until, now + self._backoff.wait_s(self.failures, self._random))

    def asked(self, now: float, seconds: float) -> None:
        """The peer asks for patience; a success of another call does not end it."""
        self._asked = max(self._asked, now + min(seconds, _MAX_ASKED_S))
        self.until = max(self.until, self._asked)

    def succeeded(self) -> None:
        self.failures = 0
        self.until = self._asked

    def reset(self) -> None:
        """A person says: try now."""
        self.failures = 0
        self.until = self._asked = 0.0


class Rest:
    """Where deferred samples that failed again wait for their next time, so that no others wait for them.

    Attributes:
        until: When they are to be tried again; infinite while there are none.
    """

    def __init__(self, backoff: Backoff, random: Random) -> None:
        self._backoff = backoff
        self._random = random
        self._leases: dict[str, Lease] = {}
        self._failures = 0
        self.until = inf

    @property
    def ids(self) -> AbstractSet[str]:
        return self._leases.keys()

    def lay_down(self, lease: Lease, now: float) -> None:
        self._leases[lease.id] = lease
        if self.until == inf:
            self._failures += 1
            self.until = now + self._backoff.wait_s(self._failures, self._random)

    def end(self) -> list[Lease]:
        rested, self._leases, self.until = list(self._leases.values()), {}, inf
        return rested

    def succeeded(self) -> list[Lease]:
        """One of them was accepted: the others need not wait any longer."""
        self._failures = 0
        return self.end()
