"""The tables of the index, and their rows in Python."""

from __future__ import annotations

from msgspec import Struct

from loopcore.collect.outbox.segments import Place

SCHEMA = """
CREATE TABLE state (one INTEGER PRIMARY KEY, next_seq INTEGER, segment INTEGER, offset INTEGER, count INTEGER,
    bytes INTEGER, age REAL, wall REAL);
INSERT INTO state VALUES (1, 1, 0, 0, 0, 0, 0, 0);
CREATE TABLE samples (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, revision INTEGER, segment INTEGER,
    offset INTEGER, length INTEGER, image_bytes INTEGER, urgent INTEGER, aged REAL, value REAL);
CREATE TABLE todo (seq INTEGER, sink INTEGER, rank INTEGER, revision INTEGER, bytes INTEGER, PRIMARY KEY (seq, sink))
    WITHOUT ROWID;
CREATE INDEX todo_order ON todo (sink, rank, seq);
CREATE TABLE sinks (sink INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, waiting INTEGER, bytes INTEGER,
    delivered INTEGER, rejected INTEGER, given_up INTEGER, backfill INTEGER, backfill_end INTEGER);
CREATE TABLE segments (segment INTEGER PRIMARY KEY, size INTEGER, live INTEGER, live_bytes INTEGER);
CREATE TABLE rejected (sink INTEGER, seq INTEGER, id BLOB, bytes INTEGER, at TEXT, why TEXT, PRIMARY KEY (sink, seq))
    WITHOUT ROWID;
CREATE TABLE drops (number INTEGER PRIMARY KEY, id BLOB, sink TEXT, rule TEXT, bytes INTEGER, at TEXT);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""


class State(Struct):
    """Totals, and up to where the segments are indexed."""

    next_seq: int
    segment: int
    offset: int
    count: int
    bytes: int
    age: float
    wall: float


class Row(Struct, array_like=True):
    """A sample in the index; `bytes` of its record are `length`."""

    seq: int
    id: bytes
    revision: int
    segment: int
    offset: int
    length: int
    image_bytes: int
    urgent: int
    aged: float
    value: float

    @property
    def place(self) -> Place:
        return Place(self.segment, self.offset, self.length)

    def moved(self, place: Place) -> Row:
        """The same at another place."""
        return Row(self.seq, self.id, self.revision, *place, self.image_bytes, self.urgent, self.aged, self.value)

    @property
    def rank(self) -> int:
        return 0 if self.urgent else 1


class SinkRow(Struct):
    """A sink's place in the queue; samples from `backfill` up to `backfill_end` are still to be looked at."""

    sink: int
    name: str
    waiting: int = 0
    bytes: int = 0
    delivered: int = 0
    rejected: int = 0
    given_up: int = 0
    backfill: int = 0
    backfill_end: int = 0


class SegmentRow(Struct):
    """What a segment takes on disk, and what of it is still needed."""

    size: int = 0
    live: int = 0
    live_bytes: int = 0
