"""Where each sample lies and who still waits for it: an SQLite file that can be rebuilt from the segments.

One connection, used from one thread at a time, and nobody else's (SQLite before 3.51.3 may corrupt a file that two
connections write). Totals are kept beside the rows, so that nothing is ever counted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import astuple

from loopcore.collect.outbox.rows import SCHEMA, UPGRADES, Row, SegmentRow, SinkRow, State, sealed, unsealed
from loopcore.collect.outbox.segments import Place
from loopcore.errors import StorageError
from loopcore.files import DISK, Disk

VERSION = 2
_APPLICATION = 0x4C4F4F50
_LISTED_DROPS = 1000
_LAYOUT = """
SELECT m.name, p.cid, p.name, p.type FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table'
UNION ALL SELECT m.name, p.cid, p.name, m.type FROM sqlite_master m, pragma_index_info(m.name) p
    WHERE m.type = 'index' AND m.name <> 'samples_value'
ORDER BY 1, 2, 3
"""
_PAGES = 1000
_SPARING_PAGES = 32
"""How long the log of the index grows before it is taken into the file."""
_NOT_DAMAGE = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip

T = TypeVar("T")


class Index:
    """The index of one outbox. Everything happens in a turn: from `begin` to the next one, or `undo`.

    What a turn adds to a segment is safe there, so turns that only add share a transaction that `commit` ends later.
    The totals are written then.

    Attributes:
        fresh: There was none before, or an empty file; until it has been filled.

    Raises:
        StorageError: On making it: a newer loopcore made the file.
        sqlite3.DatabaseError: At any time: the file is damaged or the disk refuses.
    """

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.state = State(*[0] * 7)
        self.active = 0
        self._db = disk.database(path)
        try:
            self._prepare(path)
            self.reload()
        except UnicodeDecodeError as exc:  # of SQLite's own words about a table, where they repeat what is damaged
            self._db.close()
            raise sqlite3.DatabaseError("the tables are not what was written") from exc
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        do = self._db.execute
        do("PRAGMA locking_mode = EXCLUSIVE")
        do("PRAGMA journal_mode = WAL")
        do("PRAGMA synchronous = FULL")
        do("PRAGMA temp_store = MEMORY")
        do("PRAGMA cache_size = -4000")
        version = do("PRAGMA user_version").fetchone()[0]
        self.fresh = not do("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if self.fresh:
            self._db.executescript(  # ended by `commit` once the index is filled, or it would not be fresh next time
                f"BEGIN;{SCHEMA}PRAGMA user_version = {VERSION};PRAGMA application_id = {_APPLICATION};"
            )
        elif do("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise sqlite3.DatabaseError("not an index of an outbox")
        elif version > VERSION:
            raise StorageError(
                f"{path} was made by a newer loopcore (version {version}, known {VERSION}); update this one"
            )
        elif version < VERSION:
            steps = "".join(UPGRADES[known] for known in range(version, VERSION))
            self._db.executescript(f"BEGIN;{steps}PRAGMA user_version = {VERSION};COMMIT;")
        if do(_LAYOUT).fetchall() != _layout():
            raise sqlite3.DatabaseError("the tables are not what was written")

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def reload(self) -> None:
        """Read the totals from the file, as after a transaction that was undone."""
        do = self._db.execute
        next_seq = self.state.next_seq
        found = do("SELECT next_seq, segment, offset, count, bytes, age, wall, crc FROM state").fetchone()
        if found is None or None in found[:-1]:
            raise sqlite3.DatabaseError("the totals are missing")
        self.state = State(*unsealed(found))
        self._saved = copy(self.state)
        self.state.next_seq = max(next_seq, self.state.next_seq)  # a number once given may stand in a segment
        self.sinks = {row[1]: SinkRow(*row) for row in map(unsealed, do("SELECT * FROM sinks"))}
        self.segments = {row[0]: SegmentRow(*row[1:]) for row in map(unsealed, do("SELECT * FROM segments"))}
        self.counters = dict(_typed(do("SELECT * FROM counters").fetchall(), list[tuple[str, int]]))
        self.disk_bytes = sum(segment.size for segment in self.segments.values())
        self._dead: list[int] = []
        self._changed_sinks: set[str] = set()
        self._changed_segments: set[int] = set()
        self._changed_counters: set[str] = set()

    def begin(self, active: int) -> None:
        """Start a turn, in the open transaction or a new one.

        Args:
            active: The segment that is being written to, which is needed even if nothing in it is.
        """
        self.active = active
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make all turns so far survive a power cut."""
        self._save()
        self._db.execute("COMMIT")

    def be_sparing(self, sparing: bool) -> None:
        """Take as little room as can be beside the file, as on a full disk, or no longer."""
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_SPARING_PAGES if sparing else _PAGES}")
        if sparing:
            if self._db.in_transaction:
                self.commit()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def undo(self) -> None:
        """Undo the turn, and with it those that share its transaction."""
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.reload()

    def by_value(self, wanted: bool) -> None:
        """Keep samples in the order of their value, or no longer; costly only when that changes."""
        known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'samples_value'").fetchone()
        if wanted and not known:
            self._db.execute("CREATE INDEX samples_value ON samples (value, seq)")
        elif known and not wanted:
            self._db.execute("DROP INDEX samples_value")

    # samples

    def find(self, id: bytes) -> Row | None:  # noqa: A002 - the field's term
        return self._row("WHERE id = ?", id)

    def at(self, seq: int) -> Row | None:
        return self._row("WHERE seq = ?", seq)

    def oldest(self) -> Row | None:
        return self._row("ORDER BY seq LIMIT 1")

    def least(self) -> Row | None:
        return self._row("ORDER BY value, seq LIMIT 1")

    def behind(self, seq: int, limit: int, end: int = 1 << 62) -> list[Row]:
        rows = self._db.execute(
            "SELECT * FROM samples WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?", (seq, end, limit)
        )
        return [Row.of(row) for row in rows]

    def within(self, segment: int) -> list[Row]:
        """The samples of a segment; looks at all there are."""
        return [Row.of(row) for row in self._db.execute("SELECT * FROM samples WHERE segment = ?", (segment,))]

    def insert(self, row: Row) -> None:
        self._db.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed(astuple(row)))
        self._count(row.place, 1)
        self.state.count += 1
        self.state.bytes += row.length

    def replace(self, old: Row, new: Row) -> None:
        """The same sample at another place, or in another revision."""
        self._db.execute(
            "UPDATE samples SET revision = ?, segment = ?, offset = ?, length = ?, image_bytes = ?, urgent = ?,"
            " aged = ?, value = ?, crc = ? WHERE seq = ?",
            [*sealed(astuple(new))[2:], old.seq],
        )
        self._count(new.place, 1)
        self._count(old.place, -1)
        self.state.bytes += new.length - old.length

    def remove(self, row: Row) -> None:
        """The sample leaves, with all places it still has."""
        for name, _ in self.places(row.seq):
            self.leave(row.seq, name)
        self._db.execute("DELETE FROM samples WHERE seq = ?", (row.seq,))
        self._count(row.place, -1)
        self.state.count -= 1
        self.state.bytes -= row.length

    # places in the queue

    def add_sink(self, name: str) -> SinkRow:
        row = SinkRow(max((known.sink for known in self.sinks.values()), default=0) + 1, name)
        self.sinks[name] = row
        self._save_sink(row)
        return row

    def touch(self, sink: SinkRow) -> SinkRow:
        """Say that a sink's counts are going to change."""
        self._changed_sinks.add(sink.name)
        return sink

    def remove_sink(self, name: str) -> None:
        sink = self.sinks.pop(name)
        self._changed_sinks.discard(name)
        self._db.execute("DELETE FROM sinks WHERE sink = ?", (sink.sink,))

    def places(self, seq: int) -> list[tuple[str, int]]:
        """Who still waits for this sample: names and ranks."""
        return self._db.execute("SELECT name, rank FROM todo JOIN sinks USING (sink) WHERE seq = ?", (seq,)).fetchall()

    def queue(self, row: Row, name: str, rank: int) -> None:
        """Give a sample a place at this sink, or change the one that it has."""
        sink = self.touch(self.sinks[name])
        if not self._db.execute(
            "UPDATE todo SET rank = ?, revision = ? WHERE seq = ? AND sink = ?",
            (rank, row.revision, row.seq, sink.sink),
        ).rowcount:
            self._add_place(row, sink, rank)

    def queue_new(self, row: Row, names: tuple[str, ...]) -> None:
        """Give a sample that has just come a place at each of these sinks."""
        for name in names:
            self._add_place(row, self.touch(self.sinks[name]), row.rank)

    def _add_place(self, row: Row, sink: SinkRow, rank: int) -> None:
        self._db.execute(
            "INSERT INTO todo VALUES (?, ?, ?, ?, ?)", (row.seq, sink.sink, rank, row.revision, row.image_bytes)
        )
        sink.waiting += 1
        sink.bytes += row.image_bytes

    def leave(self, seq: int, name: str, revision: int = 1 << 62) -> bool:
        """Give up a place, unless it is for a newer revision. Whether there was one."""
        sink = self.sinks.get(name)
        gone = (
            sink
            and self._db.execute(
                "DELETE FROM todo WHERE seq = ? AND sink = ? AND revision <= ? RETURNING bytes",
                (seq, sink.sink, revision),
            ).fetchone()
        )
        if not sink or not gone:
            return False
        self.touch(sink).waiting -= 1
        sink.bytes -= gone[0]
        return True

    def waits(self, seq: int, name: str, revision: int) -> bool:
        """Whether there is a place at this sink, and not for a newer revision."""
        statement = "SELECT 1 FROM todo WHERE seq = ? AND sink = ? AND revision <= ?"
        return name in self.sinks and self._one(statement, seq, self.sinks[name].sink, revision) is not None

    def waited_for(self, seq: int) -> bool:
        return self._db.execute("SELECT 1 FROM todo WHERE seq = ? LIMIT 1", (seq,)).fetchone() is not None

    def waiting(self, name: str, limit: int) -> Iterator[tuple[int, int, Row]]:
        """Rank, revision and sample of what a sink waits for, in the order of sending."""
        rows = self._db.execute(
            "SELECT t.rank, t.revision, s.* FROM todo t JOIN samples s USING (seq) WHERE t.sink = ?"
            " ORDER BY t.rank, t.seq LIMIT ?",
            (self.sinks[name].sink, limit),
        )
        for rank, revision, *stored in rows:
            row = Row.of(stored)
            if type(rank) is not int or revision != row.revision:
                raise sqlite3.DatabaseError("a place in the queue is not what was written")
            yield rank, revision, row

    def first_place(self, name: str) -> int | None:
        """The sample whose turn at this sink is the oldest."""
        seqs = [
            row[0]
            for rank in (0, 1)
            if (row := self._one("SELECT min(seq) FROM todo WHERE sink = ? AND rank = ?", self.sinks[name].sink, rank))
            and row[0] is not None
        ]
        deferred = self._one("SELECT min(seq) FROM todo WHERE sink = ? AND rank > 1", self.sinks[name].sink)
        seqs += [deferred[0]] if deferred and deferred[0] is not None else []
        return min(seqs, default=None)

    def deferred(self, name: str) -> int:
        found = self._one("SELECT count(*) FROM todo WHERE sink = ? AND rank > 1", self.sinks[name].sink)
        return int(found[0]) if found else 0

    # rejected, drops, counters

    def note_rejected(self, name: str, seq: int, id: bytes, size: int, at: str, why: str) -> None:  # noqa: A002
        self._db.execute("REPLACE INTO rejected VALUES (?, ?, ?, ?, ?, ?)", (name, seq, id, size, at, why))

    def rejected(self, name: str | None = None, limit: int = -1) -> list[tuple[str, int, bytes, int, str, str]]:
        """Sink (maybe a forgotten one), place, id, bytes, time and answer of what is in `rejected/`, oldest first."""
        rows = self._db.execute(
            "SELECT * FROM rejected WHERE ? IS NULL OR sink = ? ORDER BY seq, sink LIMIT ?", (name, name, limit)
        )
        return _typed(rows.fetchall(), list[tuple[str, int, bytes, int, str, str]])

    def rejected_totals(self) -> dict[str, tuple[int, int]]:
        """How many samples and bytes lie in `rejected/`, by sink."""
        rows = self._db.execute("SELECT sink, count(*), sum(bytes) FROM rejected GROUP BY sink")
        return {name: (count, size) for name, count, size in rows}

    def forget_rejected(self, name: str, seq: int) -> None:
        self._db.execute("DELETE FROM rejected WHERE sink = ? AND seq = ?", (name, seq))

    def note_drop(self, id: bytes, size: int, sink: str | None, rule: str, at: str) -> None:  # noqa: A002
        """Count a drop and list it among the last of them."""
        self.count_up(f"dropped:{rule}")
        number = self.count_up("drops")
        self._db.execute("INSERT INTO drops VALUES (?, ?, ?, ?, ?, ?)", (number, id, sink, rule, size, at))
        self._db.execute("DELETE FROM drops WHERE number <= ?", (number - _LISTED_DROPS,))

    def drops(self) -> list[tuple[bytes, str | None, str, int, str]]:
        rows = self._db.execute("SELECT id, sink, rule, bytes, at FROM drops ORDER BY number DESC")
        return _typed(rows.fetchall(), list[tuple[bytes, str | None, str, int, str]])

    def count_up(self, name: str, by: int = 1) -> int:
        self.counters[name] = self.counters.get(name, 0) + by
        self._changed_counters.add(name)
        return self.counters[name]

    # segments

    def reach(self, segment: int, size: int) -> None:
        """Segments are indexed up to here."""
        self.state.segment, self.state.offset = segment, size
        self.grow(segment, size)

    def retire(self, segment: int) -> None:
        """If nothing in this segment is needed and it is not being written to, its file goes once that is durable."""
        row = self.segments.get(segment)
        if row is None or row.live or segment == self.active:
            return
        if row.live_bytes:
            raise sqlite3.DatabaseError(f"the totals of segment {segment} are wrong")
        del self.segments[segment]
        self.disk_bytes -= row.size
        self._changed_segments.discard(segment)
        self._db.execute("DELETE FROM segments WHERE segment = ?", (segment,))
        self._dead.append(segment)

    def check_needless(self, numbers: set[int]) -> None:
        """Before files go that hold nothing, or of which nothing is known: no sample may be in one of them.

        Raises:
            sqlite3.DatabaseError: One is, or the totals are wrong.
        """
        live = sum(row.live for row in self.segments.values())
        live_bytes = sum(row.live_bytes for row in self.segments.values())
        used = {segment for (segment,) in self._db.execute("SELECT DISTINCT segment FROM samples")}
        if (live, live_bytes) != (self.state.count, self.state.bytes) or used & numbers:
            raise sqlite3.DatabaseError("the totals of the segments are wrong")

    def take_dead(self) -> list[int]:
        """The segments retired since the last call."""
        dead, self._dead = self._dead, []
        return dead

    def look(self, statement: str, *values: int | str | bytes | None) -> list[Any]:
        """The rows that a SELECT finds, for what is asked once in a while."""
        return self._db.execute(statement, values).fetchall()

    def touch_segment(self, segment: int) -> SegmentRow:
        """Say that a segment's counts are going to change."""
        self._changed_segments.add(segment)
        return self.segments.setdefault(segment, SegmentRow())

    def grow(self, segment: int, size: int) -> None:
        """A segment takes at least so much on disk."""
        row = self.touch_segment(segment)
        self.disk_bytes += max(0, size - row.size)
        row.size = max(size, row.size)

    def _count(self, place: Place, by: int) -> None:
        if by > 0:
            self.grow(place.segment, place.offset + place.length)
        row = self.segments.get(place.segment)
        if row is None:
            raise sqlite3.DatabaseError(f"segment {place.segment} is not known")
        self._changed_segments.add(place.segment)
        row.live += by
        row.live_bytes += by * place.length
        if by < 0:
            self.retire(place.segment)

    def _row(self, condition: str, *values: int | bytes) -> Row | None:
        found = self._one(f"SELECT * FROM samples {condition}", *values)  # noqa: S608 - our own words
        return Row.of(found) if found else None

    def _one(self, statement: str, *values: int | bytes) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
        return found

    def _save(self) -> None:
        do = self._db.execute
        state = self.state
        if state != self._saved:
            do(
                "UPDATE state SET next_seq = ?, segment = ?, offset = ?, count = ?, bytes = ?, age = ?, wall = ?,"
                " crc = ?",
                sealed(astuple(state)),
            )
            self._saved = copy(state)
        for name in self._changed_sinks:
            self._save_sink(self.sinks[name])
        for number in self._changed_segments:
            segment = (number, *astuple(self.segments[number]))
            do("REPLACE INTO segments VALUES (?, ?, ?, ?, ?)", sealed(segment))
        for name in self._changed_counters:
            do("REPLACE INTO counters VALUES (?, ?)", (name, self.counters[name]))
        self._changed_sinks.clear()
        self._changed_segments.clear()
        self._changed_counters.clear()

    def _save_sink(self, sink: SinkRow) -> None:
        self._db.execute("REPLACE INTO sinks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed(astuple(sink)))


@cache
def _layout() -> list[Any]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return db.execute(_LAYOUT).fetchall()


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether the file is at fault. Else it is the disk or the machine, and it may go better another time."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    if code is None:  # of Python's own: a text that is no UTF-8, or ours
        return not isinstance(exc, sqlite3.OperationalError) or "decode" in str(exc)
    return code & 0xFF not in _NOT_DAMAGE


def is_full(exc: sqlite3.Error) -> bool:
    """Whether there is no room on the disk."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def _typed(rows: list[Any], type_: type[T]) -> T:
    try:
        return msgspec.convert(rows, type_)
    except msgspec.ValidationError as exc:
        raise sqlite3.DatabaseError(f"a row of the index is not what was written: {exc}") from exc
