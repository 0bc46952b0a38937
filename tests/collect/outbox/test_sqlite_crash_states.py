"""The same as `test_crash_states.py`, with what SQLite writes recorded, too: nothing is taken for atomic or durable.

The product uses the sqlite3 of Python, which cannot be recorded. So its index works on apsw here: that brings an SQLite
of its own and lets a VFS in Python stand between that and the disk. What SQLite is asked is the product's own, down to
the pragmas, but that the log is taken into the file after 8 pages rather than 1,000: histories are short. What a power
cut and a recovery have left is read, and checked, by the sqlite3 of Python in the end.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import apsw
import pytest

from loopcore.cli.torture.campaign import scratch_folder
from loopcore.cli.torture.crashes import run_batch
from loopcore.cli.torture.recording import RecordingDisk
from loopcore.cli.torture.rig import Rig
from loopcore.cli.torture.trouble import KilledError
from loopcore.cli.torture.volume import Create, Step, Sync, SyncFolder, Truncate, Unlink, Write
from loopcore.cli.torture.world import Rules, World, sample

STATES = 2_000
SHARE, TORN = 0.02, 4
ENOUGH_TO_FIND_A_FLAW = 2_000
JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL

_names = count()


class SqliteDisk(RecordingDisk):
    """Records what SQLite writes, syncs and removes, step by step, and none of its commits."""

    def database(self, path: Path) -> Any:
        return Connection(path, self)

    def number(self, path: str) -> int:
        """Of a file, which is new if it has none."""
        inner = self._inner(Path(path))
        if inner not in self._numbers:
            self._numbers[inner] = self._made
            self._made += 1
            folder, _, name = inner.rpartition("/")
            self.steps.append(Create(folder, name, self._numbers[inner]))
        return self._numbers[inner]

    def removed(self, path: str) -> None:
        inner = self._inner(Path(path))
        folder, _, name = inner.rpartition("/")
        del self._numbers[inner]
        self.steps.append(Unlink(folder, name))

    def synced(self, number: int, folder_of: str | None) -> None:
        """A file was synced, and perhaps the folder of one."""
        self.steps.append(Sync(number))
        if folder_of:
            self.synced_folder(folder_of)

    def synced_folder(self, path: str) -> None:
        self.steps.append(SyncFolder(self._inner(Path(path).parent)))


class Vfs(apsw.VFS):
    """Stands between one connection and the disk.

    Attributes:
        disk: The disk.
        ended: The process was killed: nothing is done any more.
    """

    def __init__(self, disk: SqliteDisk) -> None:
        self.name = f"recording-{next(_names)}"
        self.disk = disk
        self.ended = False
        super().__init__(self.name, "")

    def allow(self) -> None:
        """Before each step.

        Raises:
            apsw.Error: The disk refuses, or the process was killed.
        """
        error = None
        try:
            error = self.disk.trouble("commit")
        except KilledError:
            self.ended = True
        if self.ended or error:
            full = error is not None and error.errno == errno.ENOSPC
            raise apsw.exception_for(apsw.SQLITE_FULL if full else apsw.SQLITE_IOERR)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return File(self, name.filename() if isinstance(name, apsw.URIFilename) else str(name), name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.allow()
        super().xDelete(filename, False)
        self.disk.removed(filename)
        if syncdir:
            self.disk.synced_folder(filename)


class File(apsw.VFSFile):
    """A file that SQLite has opened.

    The first sync of a journal or log syncs its folder, too, as SQLite does it on POSIX (os_unix.c, `unixSync`,
    UNIXFILE_DIRSYNC).
    """

    def __init__(self, vfs: Vfs, path: str, name: Any, flags: list[int]) -> None:
        if not Path(path).exists():
            vfs.allow()
        super().__init__("", name, flags)
        self._vfs = vfs
        self._path = path
        self._number = vfs.disk.number(path)
        self._names_to_sync = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & JOURNALS)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._do(Write(self._number, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._do(Truncate(self._number, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.allow()
        self._vfs.disk.synced(self._number, self._path if self._names_to_sync else None)
        self._names_to_sync = False

    def _do(self, step: Step) -> None:
        self._vfs.allow()
        self._vfs.disk.steps.append(step)


class Connection:
    """What the index uses of `sqlite3.Connection`, on apsw."""

    def __init__(self, path: Path, disk: SqliteDisk) -> None:
        self._vfs = Vfs(disk)
        self._db = apsw.Connection(str(path), vfs=self._vfs.name)
        self.execute("PRAGMA wal_autocheckpoint = 8")

    @property
    def in_transaction(self) -> bool:
        try:
            return self._db.in_transaction
        except apsw.Error as exc:
            raise self._translated(exc) from exc

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Answer:
        try:
            return Answer(self._db.execute(sql, tuple(values)), self._db)
        except apsw.Error as exc:
            raise self._translated(exc) from exc

    def executescript(self, sql: str) -> None:
        self.execute(sql).fetchall()

    def close(self) -> None:
        with suppress(apsw.Error):
            self._db.close()
        self._db.close(True)
        self._vfs.unregister()

    def _translated(self, exc: apsw.Error) -> BaseException:
        if self._vfs.ended:
            return KilledError()
        if isinstance(exc, apsw.ConnectionClosedError):
            return sqlite3.ProgrammingError(str(exc))
        error = sqlite3.DatabaseError(str(exc))
        error.sqlite_errorcode = exc.extendedresult
        return error


class Answer:
    """What the index uses of `sqlite3.Cursor`."""

    def __init__(self, cursor: apsw.Cursor, db: apsw.Connection) -> None:
        self.fetchone = cursor.fetchone
        self.fetchall = cursor.fetchall
        self.rowcount = db.changes()
        self._cursor = cursor

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """An outbox that is hurt says so, some thousand times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def world(disk: type[SqliteDisk]) -> World:
    return World(disk=disk, share=SHARE, torn=TORN)


def test_no_state_after_a_power_cut_breaks_a_promise() -> None:
    with scratch_folder() as base:
        batch = run_batch(0, STATES, base, world(SqliteDisk))
    print(f"{len(batch.tally.states)} states of {batch.tally.histories} histories, {batch.tally.nested} nested")
    assert not batch.broken, batch.broken[0][1]
    assert len(batch.tally.states) >= STATES


class NoSync(SqliteDisk):
    """SQLite's syncs do nothing, and it is told that they have succeeded."""

    def synced(self, number: int, folder_of: str | None) -> None:
        pass


class NoFolderSync(SqliteDisk):
    """Nor the folder's, that go with the first sync of a log."""

    def synced(self, number: int, folder_of: str | None) -> None:
        super().synced(number, None)


class SyncsNow(SqliteDisk):
    """`synchronous = NORMAL`, as it is often recommended with a log: a commit is durable at the next checkpoint."""

    def database(self, path: Path) -> Any:
        return NormalConnection(path, self)


class NormalConnection(Connection):
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Answer:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), values)


@pytest.mark.parametrize("disk", [NoSync, NoFolderSync, SyncsNow], ids=lambda disk: disk.__name__)
def test_flaw_is_found(disk: type[SqliteDisk]) -> None:
    with scratch_folder() as base:
        batch = run_batch(0, ENOUGH_TO_FIND_A_FLAW, base, world(disk))
    assert batch.broken, f"nothing was found in {len(batch.tally.states)} states"
    print(len(batch.tally.states), "states,", batch.broken[0][1])
    assert batch.broken[0][0] in {"lost", "again"}


def test_index_needs_no_memory_that_processes_share() -> None:
    """Where only one may write, SQLite keeps its `-shm` for itself: it is not among the files to be recorded."""
    with scratch_folder() as base:
        rig = Rig(base, world(SqliteDisk), Rules())
        rig.turn([rig.accept(*sample(1, size=700)), rig.swept()])
        files = {path.name for path in base.glob("*/box/index.db*")}
        rig.leave()
    assert files == {"index.db", "index.db-wal"}
