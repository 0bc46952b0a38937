"""Handing samples out to sinks, and noting what became of them."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from loopcore.collect.outbox.accepting import Accepting
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.reader import Reader
from loopcore.collect.outbox.records import DamagedError
from loopcore.collect.outbox.rejects import Refusal, Rejects
from loopcore.collect.outbox.rows import Row, SinkRow
from loopcore.collect.outbox.terms import Lease, Listed, Taker
from loopcore.types import Sample

logger = logging.getLogger(__name__)

_CHUNK = 500


class Leases:
    """Which samples are in hand for which sink; forgotten at a restart. Used in turns, but for `release`."""

    def __init__(self) -> None:
        self._held: dict[str, set[int]] = {}
        self._new: list[tuple[str, list[Lease]]] = []

    def take(self, sink: str, leases: list[Lease]) -> None:
        """Hand out, if the turn succeeds."""
        self.of(sink).update([lease.seq for lease in leases])
        self._new.append((sink, leases))

    def confirm(self) -> None:
        """The turn has succeeded."""
        self._new.clear()

    def undo(self) -> None:
        """The turn has failed; its jobs are run again or have failed."""
        for sink, leases in self._new:
            self.release(sink, leases)
        self._new.clear()

    def of(self, sink: str) -> set[int]:
        return self._held.setdefault(sink, set())

    def release(self, sink: str, leases: Sequence[Lease]) -> None:
        self.of(sink).difference_update([lease.seq for lease in leases])

    def end(self, seq: int) -> None:
        """A sample has left."""
        for held in self._held.values():
            held.discard(seq)


class Sending:
    """Leases, reads and settles. Works inside a turn of the store, but for `read`.

    Args:
        index: The index.
        reader: Reads samples.
        accepting: Keeps backlogs within their limits.
        rejects: The folder of refusals.
        takers: The sinks of the TOML.
        leases: What is in hand.
        rejected_max_bytes: What `rejected/` may take.
        now: The wall clock.
        afterwards: Puts off work until the turn is committed.
    """

    def __init__(
        self,
        index: Index,
        reader: Reader,
        accepting: Accepting,
        rejects: Rejects,
        takers: Mapping[str, Taker],
        leases: Leases,
        rejected_max_bytes: int,
        now: Callable[[], datetime],
        afterwards: Callable[[Callable[[], None]], None],
    ) -> None:
        self._index = index
        self._reader = reader
        self._accepting = accepting
        self._rejects = rejects
        self._takers = takers
        self._leases = leases
        self._rejected_max_bytes = rejected_max_bytes
        self._now = now
        self._afterwards = afterwards

    def lease(self, sink: str, max_count: int, max_bytes: int) -> tuple[list[Lease], bool]:
        """The leases, and whether more is waiting; see `Outbox.lease`."""
        known = self._index.sinks.get(sink)
        if known is None:
            return [], False
        held = self._leases.of(sink)
        self._backfill(known, max_count + len(held) + 1)
        chosen: list[Lease] = []
        size = 0
        more = False
        limit = max_count + len(held) + 1
        seen = 0
        for rank, revision, row in self._index.waiting(sink, limit):
            seen += 1
            if row.seq in held:
                continue
            size += row.image_bytes
            if len(chosen) == max_count or (chosen and size > max_bytes):
                more = True
                break
            chosen.append(_lease(row, revision, rank))
        if not more and seen != min(known.waiting, limit):
            raise sqlite3.DatabaseError(f"{known.waiting} samples wait for {sink!r}, and {seen} of them are there")
        self._leases.take(sink, chosen)
        return chosen, more

    def read(self, leases: Sequence[Lease | Listed]) -> list[Sample | None]:
        """The samples that are sound and where they were when leased. From any thread."""
        samples: list[Sample | None] = []
        for lease in leases:
            sample = None
            with suppress(OSError, DamagedError):  # it may have been moved: `read_again` knows
                sample = self._reader.sample(lease.place, lease.id)
            samples.append(sample)
        return samples

    def read_again(self, lease: Lease | Listed) -> Sample | None:
        """The same inside a turn; what is not sound is taken out of the queue."""
        row = self._index.at(lease.seq)
        sample = self._reader.checked(row) if row and row.id.hex() == lease.id else None
        if sample is None:
            self._leases.end(lease.seq)
        return sample

    def delivered(self, sink: str, leases: Sequence[Lease]) -> None:
        """See `Outbox.delivered`."""
        known = self._index.sinks.get(sink)
        for lease in leases:
            if self._settle(sink, lease) and known is not None:
                self._index.touch(known).delivered += 1

    def rejected(self, sink: str, lease: Lease, why: str) -> None:
        """See `Outbox.rejected`."""
        row = self._index.at(lease.seq)
        known = self._index.sinks.get(sink)
        sample = self._reader.checked(row) if row else None
        if row is None or known is None or sample is None:
            return
        if not self._index.waits(lease.seq, sink, lease.revision):
            return  # dropped, or come again with something new, which the sink may take
        refusal = Refusal(sink=sink, seq=row.seq, why=why, at=self._now(), info=sample.info)
        size = self._rejects.add(refusal, sample.image)  # where the disk refuses, the place stands
        self._settle(sink, lease)
        self._index.touch(known).rejected += 1
        self._index.note_rejected(sink, row.seq, row.id, size, refusal.at.isoformat(), why)
        self._trim_rejected()

    def defer(self, sink: str, lease: Lease) -> None:
        """See `Outbox.defer`."""
        row = self._index.at(lease.seq)
        if row is not None and row.revision == lease.revision and sink in dict(self._index.places(row.seq)):
            self._index.queue(row, sink, lease.deferrals + 2)

    def _backfill(self, sink: SinkRow, enough: int) -> None:
        taker = self._takers.get(sink.name)
        while taker and sink.backfill < sink.backfill_end and sink.waiting < enough:
            rows = self._index.behind(sink.backfill, _CHUNK, sink.backfill_end)
            for row in rows:
                entry = self._reader.entry(row)
                if entry is not None and taker.wants(entry.info):
                    self._index.queue(row, sink.name, row.rank)
            self._index.touch(sink).backfill = rows[-1].seq if len(rows) == _CHUNK else sink.backfill_end
            self._accepting.trim(sink.name)

    def _settle(self, sink: str, lease: Lease) -> bool:
        if not self._index.leave(lease.seq, sink, lease.revision):
            return False
        if not self._index.waited_for(lease.seq) and (row := self._index.at(lease.seq)):
            self._index.remove(row)
        return True

    def _trim_rejected(self) -> None:
        size = sum(total for _, total in self._index.rejected_totals().values())
        while size > self._rejected_max_bytes:
            for sink, seq, id_, held, _, _ in self._index.rejected(limit=1):
                logger.warning("A rejected sample is dropped rule=rejected_max_bytes sink=%s id=%s", sink, id_.hex())
                self._index.note_drop(id_, held, sink, "rejected_max_bytes", self._now().isoformat())
                self._index.forget_rejected(sink, seq)
                self._afterwards(lambda sink=sink, seq=seq: self._rejects.remove(sink, seq))  # type: ignore[misc]
                size -= held


def _lease(row: Row, revision: int, rank: int) -> Lease:
    return Lease(
        id=row.id.hex(),
        seq=row.seq,
        revision=revision,
        image_bytes=row.image_bytes,
        urgent=bool(row.urgent),
        deferrals=max(0, rank - 1),
        place=row.place,
    )
