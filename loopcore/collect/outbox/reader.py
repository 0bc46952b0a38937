"""Reading samples back, and what happens when that shows damage."""

from __future__ import annotations

import logging
from contextlib import suppress

from loopcore.collect.outbox import records
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.records import DamagedError, Entry, Found
from loopcore.collect.outbox.rejects import Rejects
from loopcore.collect.outbox.rows import Row
from loopcore.collect.outbox.segments import Place, Segments
from loopcore.types import Sample

logger = logging.getLogger(__name__)


class Reader:
    """Reads samples for one index. All but `sample` belongs in a turn."""

    def __init__(self, index: Index, segments: Segments, rejects: Rejects) -> None:
        self._index = index
        self._segments = segments
        self._rejects = rejects

    def sample(self, place: Place, id: str) -> Sample:  # noqa: A002 - the field's term
        """A whole sample, checked; from any thread.

        Raises:
            DamagedError: It is not there as it was written.
            OSError: The file is gone or cannot be read.
        """
        data = self._segments.read(place)
        entry = records.decode(data)
        if entry.info.id != id:
            raise DamagedError("another sample lies there")
        return Sample(info=entry.info, image=records.image_of(data, entry))

    def entry(self, row: Row) -> Entry | None:
        """What is known of a sample; `None` if it is damaged or gone, and now out of the queue.

        Raises:
            OSError: The disk cannot read.
        """
        try:
            return self._segments.entry(row.place)
        except FileNotFoundError:
            self.removed(row.segment)
        except DamagedError:
            self.damaged(row)
        return None

    def checked(self, row: Row) -> Sample | None:
        """A whole sample; `None` if it is damaged or gone, and now out of the queue.

        Raises:
            OSError: The disk cannot read.
        """
        try:
            return self.sample(row.place, row.id.hex())
        except FileNotFoundError:
            self.removed(row.segment)
        except DamagedError:
            self.damaged(row)
            if mended := self._index.at(row.seq):
                return self.sample(mended.place, row.id.hex())
        return None

    def damaged(self, row: Row) -> None:
        """Take out a sample whose record is damaged, unless it was the index that named a wrong place."""
        with suppress(OSError):
            for found in records.scan(self._segments.path(row.segment)):
                if isinstance(found, Found) and found.sound and found.entry.info.id == row.id.hex():
                    place = Place(row.segment, found.offset, found.length)
                    if place != row.place and found.entry.revision == row.revision:
                        self._index.replace(row, row.moved(place))
                        return
        logger.error("A sample is damaged on disk and was put aside id=%s segment=%s", row.id.hex(), row.segment)
        with suppress(OSError, DamagedError):
            self._rejects.quarantine(f"{row.seq:016d}", self._segments.read(row.place))
        self._index.count_up("quarantined")
        self._index.remove(row)

    def removed(self, segment: int) -> None:
        """Take out the samples of a file that a person has removed."""
        rows = self._index.within(segment)
        logger.warning("A file of the outbox was removed by hand samples=%s segment=%s", len(rows), segment)
        self._index.count_up("operator_deleted", len(rows))
        for row in rows:
            self._index.remove(row)
