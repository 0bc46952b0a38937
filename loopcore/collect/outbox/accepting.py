"""Taking samples in: new ones, and those that come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopcore.collect.outbox import records
from loopcore.collect.outbox.clock import AgeClock
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.reader import Reader
from loopcore.collect.outbox.records import Entry
from loopcore.collect.outbox.room import Room
from loopcore.collect.outbox.rows import Row
from loopcore.collect.outbox.segments import Place, Segments
from loopcore.collect.outbox.terms import Taker, value
from loopcore.errors import StorageError
from loopcore.types import SampleInfo, joined


class Accepting:
    """Puts samples into segments and index. Works inside a turn of the store.

    Args:
        index: The index.
        segments: The segments.
        room: Makes room.
        reader: Reads what is known of a sample that comes again.
        clock: The outbox's age.
        takers: The sinks of the TOML.
    """

    def __init__(
        self,
        index: Index,
        segments: Segments,
        room: Room,
        reader: Reader,
        clock: AgeClock,
        takers: Mapping[str, Taker],
    ) -> None:
        self._index = index
        self._segments = segments
        self._room = room
        self._reader = reader
        self._clock = clock
        self._takers = takers

    def accept(self, info: SampleInfo, image: bytes) -> tuple[SampleInfo, Sequence[str]]:
        """See `Outbox.accept`. Returns also the sinks for which there is news."""
        if len(image) != info.image_bytes:
            raise StorageError(f"the image has {len(image)} bytes, not the {info.image_bytes} that its info says")
        row = self._index.find(bytes.fromhex(info.id))
        old = self._reader.entry(row) if row else None
        if row is None or old is None:
            takers = tuple(name for name, taker in self._takers.items() if taker.wants(info))
            self._insert(info, image, takers)
            return info, takers
        both = joined(old.info, info)
        return both, () if both == old.info else self._supersede(row, old, both, image)

    def readmit(self, info: SampleInfo, image: bytes, sink: str) -> None:
        """Queue a sample for one sink, which had rejected it."""
        row = self._index.find(bytes.fromhex(info.id))
        if row is None:
            self._insert(info, image, (sink,))
            return
        self._index.queue(row, sink, row.rank)

    def trim(self, sink: str) -> None:
        """Keep a sink within its `max_backlog`."""
        limit = self._takers[sink].max_backlog if sink in self._takers else None
        while limit is not None and self._index.sinks[sink].waiting > limit:
            seq = self._index.first_place(sink)
            row = self._index.at(seq) if seq is not None else None
            if row is None:
                return
            self._room.give_up(row, sink)

    def _insert(self, info: SampleInfo, image: bytes, takers: tuple[str, ...]) -> None:
        state = self._index.state
        aged, worth = self._clock.read(), value(info)
        self._room.outdated(aged)
        entry = Entry(seq=state.next_seq, revision=0, takers=takers, aged=aged, info=info)
        place = self._add(entry, image, worth, more=1)
        state.next_seq += 1
        row = Row(entry.seq, bytes.fromhex(info.id), 0, *place, info.image_bytes, int(info.urgent), aged, worth)
        self._index.insert(row)
        self._index.queue_new(row, takers)
        for name in takers:
            self.trim(name)

    def _supersede(self, row: Row, old: Entry, info: SampleInfo, image: bytes) -> list[str]:
        takers = [name for name, _ in self._index.places(row.seq)]
        if info.annotations != old.info.annotations:
            takers += [name for name, taker in self._takers.items() if name not in takers and taker.wants(info)]
        worth = value(info)
        entry = Entry(seq=row.seq, revision=row.revision + 1, takers=tuple(takers), aged=old.aged, info=info)
        place = self._add(entry, image, worth, more=0)
        new = Row(row.seq, row.id, entry.revision, *place, row.image_bytes, int(info.urgent), row.aged, worth)
        present = self._index.at(row.seq)  # making room may have moved or dropped it
        if present is None:
            self._index.insert(new)
        else:
            self._index.replace(present, new)
        for name in takers:
            self._index.queue(new, name, new.rank)
        for name in takers:  # only now: a sample that nobody waits for leaves
            self.trim(name)
        return takers

    def _add(self, entry: Entry, image: bytes, worth: float, *, more: int) -> Place:
        parts = records.encode(entry, image)
        self._room.make(sum(map(len, parts)), worth, more=more)
        return self._segments.add(parts)
