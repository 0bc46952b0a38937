"""Samples that trouble a sink, and the evidence against them: that the sink accepts others in the meantime."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from loopcore.collect.outbox import Lease
from loopcore.types import SampleInfo

_ALONE = 3
"""After so many failures in a row a sample steps aside, so that another can show whether it is to blame."""
_ROUNDS = 3
"""A sample that failed so often, with others accepted in between, is deferred."""
_MAX_ASIDE = 64


class Verdict(Enum):
    """What to do with a sample whose sending failed."""

    AGAIN = "again"
    ASIDE = "aside"
    DEFER = "defer"


class _Record(Struct):
    """How often a sample failed: in all rounds, in a row, and at which turn the last time."""

    rounds: int = 0
    row: int = 0
    turn: int = -1


class Refusal(Struct, frozen=True):
    """A sample that was refused alone: the peer's answer, and the turn at which it came."""

    lease: Lease
    info: SampleInfo
    why: str
    turn: int


class Suspects:
    """Who is suspected, of what, and what an accepted sample means for them.

    Turns number the beginnings and ends of calls; a sample accepted by a call that began after another sample's
    failure is evidence against that one. What is held here stays leased.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._aside: dict[str, tuple[Lease, int]] = {}
        self._refused: dict[str, Refusal] = {}
        self._last_accept = -1

    @property
    def refused(self) -> int:
        """How many were refused and wait for evidence."""
        return len(self._refused)

    @property
    def aside(self) -> int:
        """How many failed and let others go first."""
        return len(self._aside)

    def held(self) -> set[str]:
        """The ids of those that stay leased."""
        return self._aside.keys() | self._refused.keys()

    def is_suspect(self, lease: Lease) -> bool:
        """Whether it is to be sent alone."""
        return lease.deferrals > 0 or lease.id in self._records

    def refuse(self, refusal: Refusal) -> None:
        """A sample was refused alone, or by a receipt of its own."""
        self._records.pop(refusal.lease.id, None)
        self._refused[refusal.lease.id] = refusal

    def fail(self, lease: Lease, turn: int) -> tuple[Verdict, bool]:
        """It failed alone.

        Returns:
            What to do with it, and whether others were accepted since its last failure: then the sink is not to blame.
        """
        record = self._records.setdefault(lease.id, _Record())
        others = 0 <= record.turn < self._last_accept
        record.row = 1 if others else record.row + 1
        record.rounds += 1 if others or not record.rounds else 0
        record.turn = turn
        if record.rounds >= _ROUNDS:
            del self._records[lease.id]
            return Verdict.DEFER, others
        if record.rounds == 1 and record.row < _ALONE:
            return Verdict.AGAIN, others
        self._aside[lease.id] = (lease, turn)
        return Verdict.ASIDE, others

    def accept(self, ids: list[str], begun: int) -> tuple[list[Refusal], list[Lease]]:
        """These were accepted by a call that began at this turn.

        Returns:
            The refusals that are now final, and the leases to try again.
        """
        self._last_accept = max(self._last_accept, begun)
        for accepted in ids:
            self._records.pop(accepted, None)
        final = [refusal for refusal in self._refused.values() if refusal.turn < begun]
        again = [lease for lease, turn in self._aside.values() if turn < begun]
        for refusal in final:
            del self._refused[refusal.lease.id]
        for lease in again:
            del self._aside[lease.id]
        return final, again

    def forget(self, lease: Lease) -> None:
        """It is not there any more."""
        self._records.pop(lease.id, None)

    def recall_aside(self, *, if_many: bool = False) -> list[Lease]:
        """Those who let others go first, when there are no others, or too many stand aside: then it is an outage."""
        if if_many and len(self._aside) < _MAX_ASIDE:
            return []
        leases = [lease for lease, _ in self._aside.values()]
        self._aside.clear()
        if if_many:
            self._records.clear()
        return leases

    def recall_refused(self) -> list[Lease]:
        """The refused against whom there is no evidence, to be tried again one day."""
        leases = [refusal.lease for refusal in self._refused.values()]
        self._refused.clear()
        return leases
