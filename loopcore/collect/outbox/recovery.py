"""Opening an outbox: find the index or make it anew, and take in what the segments hold beyond it."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from pathlib import Path

import msgspec

from loopcore.collect.outbox.index import Index, is_damage
from loopcore.collect.outbox.records import DamagedError, Entry, Found, Gap, decode, image_of, scan
from loopcore.collect.outbox.rejects import Rejects
from loopcore.collect.outbox.rows import Row
from loopcore.collect.outbox.segments import Place, Segments
from loopcore.collect.outbox.terms import value
from loopcore.errors import StorageError
from loopcore.files import Disk

logger = logging.getLogger(__name__)


def make_folder(path: Path, disk: Disk) -> None:
    """Make a folder and those above it, durably; the last two also if a run that made them did not come to the sync."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            disk.mkdir(folder)
        elif folder not in {path, path.parent}:
            continue
        with suppress(PermissionError):  # what lies in a folder of somebody else was made by him
            disk.sync_folder(folder.parent)


def open_index(path: Path, disk: Disk) -> Index:
    """The index; a damaged one is set aside for a fresh one."""
    if path.exists():
        try:
            return Index(path, disk)
        except sqlite3.DatabaseError as exc:
            if not is_damage(exc):
                raise
            logger.error("The index of the outbox is damaged and is made anew error=%s", exc)  # noqa: TRY400
        set_aside(path, disk)
    return Index(path, disk)


def set_aside(path: Path, disk: Disk) -> None:
    """Give a damaged index another name."""
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            disk.rename(path.with_name(path.name + suffix), path.with_name(f"{path.name}.damaged{suffix}"))


def catch_up(index: Index, segments: Segments, rejects: Rejects) -> None:
    """Index what the segments hold beyond the place up to which they are indexed.

    Made anew, the index knows nothing of deliveries: what shares a segment with a sample that still waits is sent once
    more. What was rejected is known from `rejected/`.
    """
    numbers = segments.numbers()
    known, end = index.state.segment, index.state.offset
    for number in numbers:
        if number < known:
            if number in index.segments:  # what a failed write has left behind is not indexed, but takes room
                index.grow(number, _size(segments.path(number)))
            continue
        index.active = number
        _read_in(index, segments, rejects, number, end if number == known else 0, index.fresh and number != numbers[-1])
    segments.active = index.active = max([*numbers, known]) + 1
    for number in list(index.segments):
        index.retire(number)
    if index.fresh:
        _read_rejected(index, rejects)


def _read_in(index: Index, segments: Segments, rejects: Rejects, number: int, offset: int, quick: bool) -> None:
    path = segments.path(number)
    bad: list[Found | Gap] = []  # at the end it is what a power cut tore, and nobody was told that it is kept
    for found in scan(path, offset, check_images=not quick):
        if isinstance(found, Gap) or not found.sound:
            bad.append(found)
            continue
        place = Place(number, found.offset, found.length)
        if index.fresh and not _prevails(index, segments, rejects, place, found.entry):
            bad.append(found)
            continue
        for piece in bad:
            _put_aside(index, rejects, path, number, piece)
        bad.clear()
        _take_in(index, segments, found.entry, place)
    size = _size(path)
    if size > offset:  # a run that was killed may not have come to the sync, and the index is going to rely on it
        segments.sync(number)
    index.reach(number, size)


def _prevails(index: Index, segments: Segments, rejects: Rejects, place: Place, entry: Entry) -> bool:
    """Whether a record counts for an index that is made anew. If it is the second of a sample, it must be sound, and a
    first one that is not is put aside: either may be what a power cut tore, and the other what was promised.
    """
    known = index.find(bytes.fromhex(entry.info.id))
    if known is None:
        return True
    if not _is_sound(segments, place):
        return False
    if not _is_sound(segments, known.place):
        _put_aside(index, rejects, segments.path(known.segment), known.segment, Gap(known.offset, known.length))
        index.remove(known)
    return True


def _is_sound(segments: Segments, place: Place) -> bool:
    with suppress(OSError, DamagedError):
        data = segments.read(place)
        image_of(data, decode(data))
        return True
    return False


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _take_in(index: Index, segments: Segments, entry: Entry, place: Place) -> None:
    info = entry.info
    id_ = bytes.fromhex(info.id)
    old = index.find(id_)
    takers = entry.takers
    if old is not None and entry.seq > old.seq:  # it had left and came again; a drop that is forgotten is undone
        takers += tuple(name for name, _ in index.places(old.seq) if name not in takers)
        index.remove(old)
        old = None
    if old is not None and (entry.seq < old.seq or entry.revision < old.revision):
        return
    clash = old is None and index.at(entry.seq) is not None
    seq = old.seq if old else index.state.next_seq if clash else entry.seq
    row = Row(
        seq, id_, entry.revision, *place, info.image_bytes, int(info.urgent), entry.aged, value(info)
    )  # fmt: skip
    index.state.next_seq = max(index.state.next_seq, seq + 1)
    for name in takers:
        if name not in index.sinks:
            index.add_sink(name)
    if old is None:
        index.insert(row)
        index.queue_new(row, takers)
        return
    news = entry.revision > old.revision or _differs(segments, old, entry)
    index.replace(old, row)
    if news:
        for name in {*takers, *(name for name, _ in index.places(seq))}:  # who gave up a place: that is undone
            index.queue(row, name, row.rank)


def _differs(segments: Segments, row: Row, entry: Entry) -> bool:
    """Whether an entry is no copy of the record that is known, but came after one that was given up."""
    with suppress(OSError, DamagedError):
        known = segments.entry(row.place)
        return (known.info, known.takers) != (entry.info, entry.takers)
    return True


def _put_aside(index: Index, rejects: Rejects, path: Path, number: int, piece: Found | Gap) -> None:
    logger.error("A record is damaged on disk and was put aside segment=%s offset=%s", number, piece.offset)
    index.count_up("quarantined")
    with path.open("rb") as file:
        file.seek(piece.offset)
        rejects.quarantine(f"{number:016d}-{piece.offset:010d}", file.read(piece.length))


def _read_rejected(index: Index, rejects: Rejects) -> None:
    for path in rejects.found():
        try:
            refusal, size = rejects.meta(path)
        except (StorageError, msgspec.MsgspecError) as exc:
            logger.warning("A file in rejected/ is not understood and is left alone path=%s error=%s", path, exc)
            continue
        if not rejects.whole(refusal.sink, refusal.seq):
            continue  # it was being removed, after a retry
        sink, id_ = refusal.sink, bytes.fromhex(refusal.info.id)
        index.note_rejected(sink, refusal.seq, id_, size, refusal.at.isoformat(), refusal.why)
        row = index.find(id_)
        if row is not None and row.seq == refusal.seq and index.leave(row.seq, sink) and not index.waited_for(row.seq):
            index.remove(row)
