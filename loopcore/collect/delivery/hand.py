"""The leases that delivery holds for one sink."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from loopcore.collect.outbox import Lease, Outbox


class Hand:
    """Each lease is given back once, or ended once by the outbox, whatever order calls come back in.

    Args:
        outbox: Whose leases.
        sink: The sink's name.
    """

    def __init__(self, outbox: Outbox, sink: str) -> None:
        self._outbox = outbox
        self._sink = sink
        self._leases: dict[str, Lease] = {}

    def take(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._leases[lease.id] = lease

    def drop(self, lease: Lease) -> None:
        """The outbox ends it, or has ended it."""
        if self._leases.get(lease.id) is lease:
            del self._leases[lease.id]

    def give_back(self, leases: Sequence[Lease], *, except_for: AbstractSet[str] = frozenset()) -> None:
        """Release those that are still in hand."""
        ended = [lease for lease in leases if lease.id not in except_for and self._leases.get(lease.id) is lease]
        for lease in ended:
            del self._leases[lease.id]
        if ended:
            self._outbox.release(self._sink, ended)

    def give_back_all(self) -> None:
        self.give_back(list(self._leases.values()))
