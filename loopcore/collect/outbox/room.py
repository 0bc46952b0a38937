"""Keeping an outbox within its bounds: give back dead space first, then what the operator's rule says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.records import DamagedError, Found, scan
from loopcore.collect.outbox.reserve import Reserve
from loopcore.collect.outbox.rows import Row
from loopcore.collect.outbox.segments import Segments
from loopcore.collect.outbox.terms import Bounds
from loopcore.errors import OutboxFullError
from loopcore.files import Disk

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 8
_WORTH_MOVING = {"reject": 0.25, "drop_oldest": 0.5, "drop_least_valuable": 0.2}
"""The dead part from which on a segment is compacted to make room; less would write much to gain little."""
_LAST_RESORT = 0.05
_IDLE_DEAD_PART = 0.75


class Room:
    """Makes room in an outbox. Works inside a turn of the store.

    Args:
        bounds: What the operator allows.
        index: The index.
        segments: The segments.
        reserve: What is given up when the disk is full.
        disk: Says how much of the disk is free.
        at: The wall clock's time as text, for the list of drops.
        damaged: Takes a sample out whose record cannot be read.
    """

    def __init__(
        self,
        bounds: Bounds,
        index: Index,
        segments: Segments,
        reserve: Reserve,
        disk: Disk,
        at: Callable[[], str],
        damaged: Callable[[Row], None],
    ) -> None:
        self._bounds = bounds
        self._index = index
        self._segments = segments
        self._reserve = reserve
        self._disk = disk
        self._at = at
        self._damaged = damaged
        self._free = 0

    def begin(self) -> None:
        """Look at the disk; once a turn."""
        if self._reserve.given_up:
            self._reserve.keep()
            if not self._reserve.given_up:
                self._index.be_sparing(False)
        self._free = self._disk.free(self._segments.folder) if self._bounds.min_free else 0
        self._disk_bytes = self._index.disk_bytes

    def make(self, need: int, worth: float, *, more: int) -> None:
        """See to it that a record of `need` bytes fits, and `more` samples with it.

        Args:
            need: The record's size.
            worth: The value of its sample: nothing better is dropped for it by `drop_least_valuable`.
            more: 1 for a new sample, 0 for one that is here already.

        Raises:
            OutboxFullError: It does not fit, by the operator's rule.
        """
        if self._reserve.given_up:
            raise OutboxFullError("the disk is full; what is left of it is for noting what was delivered")
        rule = self._bounds.when_full
        while bound := self._reached(need, more):
            if bound != "max_count" and self._regain(_WORTH_MOVING[rule]):
                continue
            row = self._victim(rule, worth) if self._of_use(bound, need) else None
            if row is None:
                if bound != "max_count" and rule == "drop_least_valuable" and self._regain(_LAST_RESORT):
                    continue
                raise OutboxFullError(
                    f"the outbox has reached {bound} = {getattr(self._bounds, bound)}{self._filler()}"
                )
            self.drop(row, rule)

    def _victim(self, rule: str, worth: float) -> Row | None:
        if rule == "drop_oldest":
            return self._index.oldest()
        if rule == "drop_least_valuable":
            row = self._index.least()
            return row if row is not None and row.value <= worth else None
        return None

    def _of_use(self, bound: str, need: int) -> bool:
        """Whether dropping can help: it cannot if the sample is too large by itself, or others have filled the disk."""
        if bound == "min_free":
            return self._free + self._disk_bytes - need >= self._bounds.min_free
        return bound == "max_count" or need <= self._bounds.max_bytes

    def drop(self, row: Row, rule: str) -> None:
        """A sample leaves by a rule of the operator; it is counted, logged and listed."""
        logger.warning("A sample is dropped rule=%s id=%s", rule, row.id.hex())
        self._index.note_drop(row.id, row.image_bytes, None, rule, self._at())
        self._index.remove(row)

    def give_up(self, row: Row, sink: str) -> None:
        """A sink's place is given up by `max_backlog`; the sample leaves if it was the last."""
        logger.warning("A place is given up rule=max_backlog sink=%s id=%s", sink, row.id.hex())
        self._index.note_drop(row.id, row.image_bytes, sink, "max_backlog", self._at())
        self._index.touch(self._index.sinks[sink]).given_up += 1
        self._index.leave(row.seq, sink)
        if not self._index.waited_for(row.seq):
            self._index.remove(row)

    def outdated(self, age: float) -> None:
        """Drop what has waited for longer than `max_age`."""
        if self._bounds.max_age is None:
            return
        while (row := self._index.oldest()) and age - row.aged > self._bounds.max_age:
            self.drop(row, "max_age")

    def tidy(self) -> None:
        """Compact the segments that hold little besides dead records."""
        for _ in range(_MOST_AT_ONCE):
            if not self._regain(_IDLE_DEAD_PART):
                return

    def compact(self, segment: int) -> None:
        """Move what is needed of a segment to the active one."""
        with suppress(OSError, DamagedError):  # what cannot be read is dealt with below
            for found in scan(self._segments.path(segment), check_images=False):
                if not isinstance(found, Found):
                    continue
                row = self._index.find(bytes.fromhex(found.entry.info.id))
                if row is not None and row.segment == segment and row.offset == found.offset:
                    self._index.replace(row, row.moved(self._segments.add([self._segments.read(row.place)])))
        if segment in self._index.segments:
            for row in self._index.within(segment):
                self._damaged(row)

    def _reached(self, need: int, more: int) -> str | None:
        bounds, index = self._bounds, self._index
        if more and bounds.max_count is not None and index.state.count + more > bounds.max_count:
            return "max_count"
        if index.disk_bytes + need > bounds.max_bytes:
            return "max_bytes"
        grown = index.disk_bytes - self._disk_bytes
        if bounds.min_free and self._free - grown - need < bounds.min_free:
            return "min_free"
        return None

    def _regain(self, dead_part: float) -> bool:
        """Compact the segment with the most dead bytes, if they are at least this part of it."""
        busy = self._segments.active if self._segments.pending else 0
        candidates = (item for item in self._index.segments.items() if item[0] != busy)
        number, row = max(candidates, key=lambda item: item[1].size - item[1].live_bytes, default=(0, None))
        if row is None or row.size - row.live_bytes < max(1, dead_part * row.size):
            return False
        if number == self._segments.active:
            self._segments.roll(only_full=False)
            self._index.active = self._segments.active
        if row.live:
            self.compact(number)
        else:
            self._index.retire(number)
        return True

    def _filler(self) -> str:
        sinks = self._index.sinks.values()
        most = max(sinks, key=lambda sink: sink.bytes, default=None)
        if most is None or not most.waiting:
            return "; no sink waits for what is in it: export it"
        return f"; most of it waits for the sink {most.name!r} ({most.waiting} samples)"
