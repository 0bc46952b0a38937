"""The files that hold the samples: appended to by one process, read by many threads, removed as a whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from loopcore.collect.outbox import records
from loopcore.collect.outbox.records import DamagedError, Entry
from loopcore.files import Disk

_SUFFIX = ".seg"
_MOST = 1 << 62  # what SQLite can count up to, and room for more


class Place(NamedTuple):
    """Where a record lies."""

    segment: int
    offset: int
    length: int


class Segments:
    """Appends records to the active segment; what was added goes to the disk at `flush`, all with one sync.

    A process never appends to a file that another one wrote: after a restart, and after any failure, there is a new
    segment, so that a torn end stays at the end.

    Args:
        folder: Where the segments lie.
        disk: How files are changed.
        limit: The size from which on a new segment is begun.
    """

    def __init__(self, folder: Path, disk: Disk, limit: int) -> None:
        self.folder = folder
        self.active = 1
        self.size = 0
        self._disk = disk
        self._limit = limit
        self._descriptor: int | None = None
        self._added: dict[int, list[bytes]] = {}
        self._added_bytes = 0

    def path(self, segment: int) -> Path:
        return self.folder / _name(segment)

    def numbers(self) -> list[int]:
        """The segments that are there, in order; what others have put beside them is left alone."""
        try:
            with os.scandir(self.folder) as entries:
                numbers = [_number(entry.name) for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []
        return sorted(number for number in numbers if number is not None)

    @property
    def end(self) -> int:
        """Where the next record of the active segment begins."""
        return self.size + self._added_bytes

    @property
    def pending(self) -> bool:
        """Whether something was added and not flushed."""
        return bool(self._added)

    def add(self, parts: list[bytes]) -> Place:
        """Put a record behind the others; it is nowhere until `flush`."""
        place = Place(self.active, self.end, sum(map(len, parts)))
        self._added[place.offset] = parts
        self._added_bytes += place.length
        return place

    def flush(self) -> None:
        """Write and sync what was added. After a failure the active segment is given up.

        Raises:
            OSError: The disk refused; nothing of it counts.
        """
        if not self._added:
            return
        try:
            if self._descriptor is None:
                self._descriptor = self._create(self.path(self.active))
                self._disk.sync_folder(self.folder)
            self._disk.write(self._descriptor, [part for parts in self._added.values() for part in parts])
            self._disk.sync(self._descriptor)
        except OSError:
            self._give_up()
            raise
        self.size += self._added_bytes
        self.discard()

    def sync(self, segment: int) -> None:
        """What another run has written to a segment survives a power cut.

        Raises:
            OSError: The disk refused.
        """
        descriptor = self._disk.open(self.path(segment), append=True)
        try:
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        self._disk.sync_folder(self.folder)

    def _create(self, path: Path) -> int:
        try:
            return self._disk.open(path)
        except FileNotFoundError:  # somebody has removed the folder
            self._disk.mkdir(self.folder)
            self._disk.sync_folder(self.folder.parent)
            return self._disk.open(path)

    def discard(self) -> None:
        """Forget what was added and not flushed."""
        self._added.clear()
        self._added_bytes = 0

    def roll(self, *, only_full: bool = True) -> None:
        """Begin a new segment, if the active one is full, or somebody has removed its file."""
        if self.size and (not only_full or self.size >= self._limit or self._is_removed()):
            self.close()
            self.active += 1
            self.size = 0

    def _is_removed(self) -> bool:
        return self._descriptor is not None and not os.fstat(self._descriptor).st_nlink

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # all of it was synced, or given up
                self._disk.close(descriptor)

    def entry(self, place: Place) -> Entry:
        """What is known of a sample, without its image.

        Raises:
            DamagedError: The record is damaged.
            OSError: The file is gone or cannot be read.
        """
        if place.segment == self.active and place.offset in self._added:
            return records.decode(b"".join(self._added[place.offset]))
        return records.decode(self.read(place))

    def read(self, place: Place) -> bytes:
        """A whole record, unchecked; from any thread.

        Raises:
            DamagedError: The file ends before it, or lies on a bad sector.
            OSError: The file is gone or cannot be read.
        """
        descriptor = os.open(self.path(place.segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, place.length, place.offset)
        except OSError as exc:
            if exc.errno == errno.EIO:  # a bad sector; others are fine
                raise DamagedError("the disk cannot read it") from exc
            raise
        finally:
            os.close(descriptor)
        if len(data) != place.length:
            raise DamagedError("the file ends too early")
        return data

    def unlink(self, segment: int) -> None:
        """Remove a segment, if nobody else did. What a power cut brings back is removed at the next start."""
        with suppress(OSError):
            self._disk.unlink(self.path(segment))

    def _give_up(self) -> None:
        self.discard()
        if self._descriptor is not None:  # a rebuilt index should not find what the callers were told has failed
            with suppress(OSError):
                self._disk.truncate(self._descriptor, self.size)
        self.close()
        self.active += 1
        self.size = 0


def _number(name: str) -> int | None:
    """Of a segment, by the name of its file; `None` if it is none of ours."""
    digits = name.removesuffix(_SUFFIX)
    if not digits.isdecimal() or _name(int(digits)) != name or int(digits) > _MOST:
        return None
    return int(digits)


def _name(segment: int) -> str:
    return f"{segment:016d}{_SUFFIX}"
