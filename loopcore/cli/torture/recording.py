"""A disk that does as it is told, and remembers each step, SQLite's commits among them."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopcore.cli.torture.steps import Commit, Create, Mkdir, Rename, Step, Sync, SyncFolder, Truncate, Unlink, Write
from loopcore.cli.torture.trouble import no_trouble
from loopcore.cli.torture.volume import Image
from loopcore.files import Disk

_BESIDE = "reserve"
"""Whether this file is there, and what is in it, makes no state another one."""


def plain_index(data: bytes) -> bytes:
    """An SQLite file without what makes no state another one: its counts of commits, and whether it was made in WAL
    mode (https://www.sqlite.org/fileformat.html, 1.3).
    """
    return data[:18] + b"\1\1" + data[20:24] + b"\0\0\0\1" + data[28:92] + b"\0\0\0\1" + data[96:]


class RecordingDisk(Disk):
    """Works in a folder and syncs nothing: what survives is for `Volume` to say.

    Args:
        root: The folder.
        image: What is in it.

    Attributes:
        steps: What has been done.
        trouble: Says for each step by its name, before it is done, whether it fails instead; may raise, as if the
            process had ended. A write that fails has written half; a sync that fails leaves in doubt what was written.
    """

    def __init__(self, root: Path, image: Image) -> None:
        self.steps: list[Step] = []
        self.trouble: Callable[[str], OSError | None] = no_trouble
        self._prefix = len(str(root)) + 1
        self._numbers = {path: number for number, path in enumerate(sorted(image.files))}
        self._made = len(self._numbers)
        self._open: dict[int, tuple[int, int]] = {}

    def open(self, path: Path, *, append: bool = False) -> int:
        if path.name == _BESIDE:
            return super().open(path, append=append)
        self._step("open")
        inner = self._inner(path)
        descriptor = super().open(path, append=append)
        size = path.stat().st_size if append else 0
        if inner not in self._numbers:
            self._numbers[inner] = self._made
            self._made += 1
            self.steps.append(Create(*_split(inner), self._numbers[inner]))
        elif not append:
            self.steps.append(Truncate(self._numbers[inner], 0))
        self._open[descriptor] = (self._numbers[inner], size)
        return descriptor

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        if descriptor not in self._open:
            super().write(descriptor, parts)
            return
        data = b"".join(parts)
        try:
            self._step("write")
        except BaseException:
            self._write(descriptor, data[: len(data) // 2])
            raise
        self._write(descriptor, data)

    def _write(self, descriptor: int, data: bytes) -> None:
        super().write(descriptor, [data])
        number, size = self._open[descriptor]
        self.steps.append(Write(number, size, data))
        self._open[descriptor] = (number, size + len(data))

    def sync(self, descriptor: int) -> None:
        number, _ = self._open[descriptor]
        try:
            self._step("sync")
        except OSError:
            self.steps.append(Sync(number, failed=True))
            raise
        self.steps.append(Sync(number))

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)
        self.steps.append(Truncate(self._open[descriptor][0], size))

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        super().close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)
        self._numbers[self._inner(new)] = self._numbers.pop(self._inner(old))
        self.steps.append(Rename(*_split(self._inner(old)), new.name))

    def unlink(self, path: Path) -> None:
        if path.name == _BESIDE:
            super().unlink(path)
            return
        self._step("unlink")
        super().unlink(path)
        self._numbers.pop(self._inner(path))
        self.steps.append(Unlink(*_split(self._inner(path))))

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._step("mkdir")
        there = path.is_dir()
        super().mkdir(path, mode)
        if not there:
            self.steps.append(Mkdir(*_split(self._inner(path))))

    def free(self, path: Path) -> int:  # noqa: ARG002 - the disk's signature
        return 1 << 40

    def sync_folder(self, path: Path) -> None:
        self._step("sync_folder")
        self.steps.append(SyncFolder(self._inner(path)))

    def database(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=_Connection)
        connection.before_commit = lambda: self._step("commit")
        connection.committed = lambda data: self.steps.append(Commit(*_split(self._inner(path)), data))
        return connection

    def abandon(self) -> None:
        """Close what is open, as the end of the process would."""
        for descriptor in self._open:
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()

    def _step(self, name: str) -> None:
        if error := self.trouble(name):
            raise error

    def _inner(self, path: Path) -> str:
        return str(path)[self._prefix :]


class _Connection(sqlite3.Connection):
    """Notes the file's content after each commit. What SQLite asks of the real disk is beside the point."""

    before_commit: Callable[[], None]
    committed: Callable[[bytes], None]
    _full = False

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA synchronous"):
            self._full = sql.endswith(("FULL", "EXTRA"))
            sql = "PRAGMA synchronous = OFF"
        if sql.startswith("PRAGMA journal_mode"):
            sql = "PRAGMA journal_mode = MEMORY"
        if sql == "COMMIT":
            try:
                self.before_commit()
            except OSError as exc:
                error = sqlite3.OperationalError(f"the database cannot be written: {exc.strerror}")
                full = exc.errno == errno.ENOSPC
                error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR
                raise error from exc
        open_before, changes = self.in_transaction, self.total_changes
        cursor = super().execute(sql, parameters)
        if not self.in_transaction and (open_before or self.total_changes != changes):
            self._note(sql)
        return cursor

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        cursor = super().executescript(sql)
        self._note(sql)
        return cursor

    def _note(self, sql: str) -> None:
        if self._full and not self.in_transaction and not sql.startswith("ROLLBACK"):
            self.committed(plain_index(self.serialize()))


def _split(inner: str) -> tuple[str, str]:
    folder, _, name = inner.rpartition("/")
    return folder, name
