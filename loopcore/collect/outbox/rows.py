"""The tables of the index, and their rows in Python."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Self
from zlib import crc32

from msgspec import Struct, msgpack

from loopcore.collect.outbox.segments import Place

SCHEMA = """
CREATE TABLE state (one INTEGER PRIMARY KEY, next_seq INTEGER, segment INTEGER, offset INTEGER, count INTEGER,
    bytes INTEGER, age REAL, wall REAL, crc INTEGER);
INSERT INTO state VALUES (1, 1, 0, 0, 0, 0, 0, 0, NULL);
CREATE TABLE samples (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, revision INTEGER, segment INTEGER,
    offset INTEGER, length INTEGER, image_bytes INTEGER, urgent INTEGER, aged REAL, value REAL, crc INTEGER);
CREATE TABLE todo (seq INTEGER, sink INTEGER, rank INTEGER, revision INTEGER, bytes INTEGER, PRIMARY KEY (seq, sink))
    WITHOUT ROWID;
CREATE INDEX todo_order ON todo (sink, rank, seq);
CREATE TABLE sinks (sink INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, waiting INTEGER, bytes INTEGER,
    delivered INTEGER, rejected INTEGER, given_up INTEGER, backfill INTEGER, backfill_end INTEGER, crc INTEGER);
CREATE TABLE segments (segment INTEGER PRIMARY KEY, size INTEGER, live INTEGER, live_bytes INTEGER, crc INTEGER);
CREATE TABLE rejected (sink TEXT, seq INTEGER, id BLOB, bytes INTEGER, at TEXT, why TEXT, PRIMARY KEY (sink, seq))
    WITHOUT ROWID;
CREATE TABLE drops (number INTEGER PRIMARY KEY, id BLOB, sink TEXT, rule TEXT, bytes INTEGER, at TEXT);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""
UPGRADES = {
    1: """
ALTER TABLE rejected RENAME TO rejected_1;
CREATE TABLE rejected (sink TEXT, seq INTEGER, id BLOB, bytes INTEGER, at TEXT, why TEXT, PRIMARY KEY (sink, seq))
    WITHOUT ROWID;
INSERT INTO rejected SELECT name, seq, id, r.bytes, at, why FROM rejected_1 r JOIN sinks USING (sink);
DROP TABLE rejected_1;
ALTER TABLE state ADD COLUMN crc INTEGER;
ALTER TABLE samples ADD COLUMN crc INTEGER;
ALTER TABLE sinks ADD COLUMN crc INTEGER;
ALTER TABLE segments ADD COLUMN crc INTEGER;
""",
}
"""What makes of each version the next."""

_encode = msgpack.Encoder().encode


def sealed(values: Sequence[Any]) -> list[Any]:
    """A row as it is stored: behind it a CRC-32, for SQLite does not notice a bit that flips in a value."""
    return [*values, crc32(_encode(values))]


def unsealed(stored: Sequence[Any]) -> Sequence[Any]:
    """The row as it was; one of version 1 has no seal.

    Raises:
        sqlite3.DatabaseError: It is not what was written.
    """
    *values, crc = stored
    wrong = None in values if crc is None else crc != crc32(_encode(values))
    if wrong:
        raise sqlite3.DatabaseError("a row of the index is not what was written")
    return values


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

    @classmethod
    def of(cls, stored: Sequence[Any]) -> Self:
        """A row as SQLite gives it, checked."""
        return cls(*unsealed(stored))

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
