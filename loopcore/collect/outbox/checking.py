"""Looking whether an outbox is what it says: every record that is needed, the index, and `rejected/`."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.reader import Reader
from loopcore.collect.outbox.records import DamagedError
from loopcore.collect.outbox.rejects import Rejects
from loopcore.collect.outbox.terms import Listed
from loopcore.errors import StorageError

logger = logging.getLogger(__name__)


class Checking:
    """What `loopcore outbox fsck` asks. Works inside a turn of the store, but for `suspicious`.

    With `mend`, damage is dealt with as delivery would when it met it: what is damaged goes to `quarantine/`, what a
    person removed is counted as such, wrong totals are counted anew.

    Args:
        index: The index.
        reader: Reads samples.
        rejects: The folder of refusals.
        afterwards: Puts off work until the turn is committed.
    """

    def __init__(
        self, index: Index, reader: Reader, rejects: Rejects, afterwards: Callable[[Callable[[], None]], None]
    ) -> None:
        self._index = index
        self._reader = reader
        self._rejects = rejects
        self._afterwards = afterwards

    def suspicious(self, listed: Sequence[Listed]) -> list[Listed]:
        """Those that cannot be read as they should. From any thread: they may have been moved, or have left."""
        return [one for one in listed if not self._sound(one)]

    def samples(self, listed: Sequence[Listed], mend: bool) -> tuple[int, int]:
        """How many of these are damaged, and how many lay in a file that is gone."""
        damaged = gone = 0
        for one in listed:
            row = self._index.at(one.seq)
            if row is None:
                continue
            try:
                self._reader.sample(row.place, row.id.hex())
            except FileNotFoundError:
                gone += 1
            except (DamagedError, OSError):
                damaged += 1
            else:
                continue
            if mend:
                with suppress(OSError):
                    self._reader.checked(row)
        return damaged, gone

    def index(self, mend: bool) -> list[str]:
        """What is wrong with the index, in words.

        Raises:
            sqlite3.DatabaseError: The file is damaged, and to be mended: the store makes it anew.
        """
        found = [str(line) for (line,) in self._index.look("PRAGMA integrity_check(10)") if line != "ok"]
        if found and mend:
            raise sqlite3.DatabaseError(found[0])
        return found or [*self._totals(mend), *self._sink_totals(mend), *self._segment_totals(mend)]

    def rejected(self, mend: bool) -> tuple[int, int]:
        """How many refused samples are damaged, and how many files of them are gone."""
        damaged = gone = 0
        for sink, seq, *_ in self._index.rejected():
            if not self._rejects.whole(sink, seq):
                gone += 1
            elif not self._readable(sink, seq):
                damaged += 1
                if mend:
                    self._rejects.put_aside(sink, seq)
                    self._index.count_up("quarantined")
                    self._index.forget_rejected(sink, seq)
                    self._afterwards(lambda sink=sink, seq=seq: self._rejects.remove(sink, seq))  # type: ignore[misc]
        if mend:
            self.notice_rejected()
        return damaged, gone

    def notice_rejected(self) -> None:
        """Count refused samples whose files a person has removed."""
        for sink, seq, *_ in self._index.rejected():
            if not self._rejects.whole(sink, seq):
                self._index.count_up("operator_deleted")
                self._index.forget_rejected(sink, seq)
                self._afterwards(lambda sink=sink, seq=seq: self._rejects.remove(sink, seq))  # type: ignore[misc]

    def _readable(self, sink: str, seq: int) -> bool:
        try:
            self._rejects.read(sink, seq)
        except (StorageError, DamagedError):
            return False
        return True

    def _sound(self, listed: Listed) -> bool:
        try:
            self._reader.sample(listed.place, listed.id)
        except (DamagedError, OSError):
            return False
        return True

    def _totals(self, mend: bool) -> list[str]:
        state = self._index.state
        ((count, size),) = self._index.look("SELECT count(*), coalesce(sum(length), 0) FROM samples")
        if (count, size) == (state.count, state.bytes):
            return []
        wrong = f"the totals say {state.count} samples with {state.bytes} bytes, there are {count} with {size}"
        if mend:
            state.count, state.bytes = count, size
        return [wrong]

    def _sink_totals(self, mend: bool) -> list[str]:
        rows = self._index.look("SELECT sink, count(*), sum(bytes) FROM todo GROUP BY sink")
        true = {sink: (count, size) for sink, count, size in rows}
        wrong = []
        for sink in self._index.sinks.values():
            count, size = true.get(sink.sink, (0, 0))
            if (count, size) != (sink.waiting, sink.bytes):
                wrong.append(f"the totals say that {sink.waiting} samples wait for {sink.name!r}, there are {count}")
                if mend:
                    self._index.touch(sink)
                    sink.waiting, sink.bytes = count, size
        return wrong

    def _segment_totals(self, mend: bool) -> list[str]:
        rows = self._index.look("SELECT segment, count(*), sum(length) FROM samples GROUP BY segment")
        true = {segment: (count, size) for segment, count, size in rows}
        wrong = []
        for number in sorted(set(true) | set(self._index.segments)):
            known = self._index.segments.get(number)
            count, size = true.get(number, (0, 0))
            if known is not None and (known.live, known.live_bytes) == (count, size):
                continue
            wrong.append(f"the totals of segment {number} are wrong")
            if mend:
                row = self._index.touch_segment(number)
                row.live, row.live_bytes = count, size
                self._index.retire(number)
        return wrong
