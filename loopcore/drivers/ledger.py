"""What a source has handed over, so that a restart does not hand it over again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from loopcore.errors import StorageError
from loopcore.files import DISK, Disk, read_bounded, write_atomic

_MARK = 32
_MAX_BYTES = 1_000_000_000
_SPARE = 1000


class Ledger:
    """Marks of 32 hexadecimal digits, in memory and, if there is a file, one a line on disk. Blocking.

    A mark is added after the sample that it stands for is durable: a crash between the two hands the sample over again,
    under the same id.

    Args:
        path: The file; `None` keeps the marks in memory alone.
        disk: What changes the disk.
    """

    def __init__(self, path: Path | None, *, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._marks: set[str] = set()
        self._skipped: set[str] = set()

    def __contains__(self, mark: object) -> bool:
        return mark in self._marks or mark in self._skipped

    def __len__(self) -> int:
        return len(self._marks)

    def open(self) -> None:
        """Read the file, mend a torn end, and see that it can be written.

        Raises:
            StorageError: It cannot be read or written.
        """
        if self._path is None:
            return
        data = read_bounded(self._path, _MAX_BYTES) if self._path.exists() else b""
        self._marks = {line for line in data.decode("ascii", "replace").split("\n") if len(line) == _MARK}
        self._rewrite()

    def add(self, mark: str) -> None:
        """Remember; durable on return.

        Raises:
            StorageError: The disk refused; it is remembered until the end of the process.
        """
        self._marks.add(mark)
        if self._path is None:
            return
        try:
            descriptor = self._disk.open(self._path, append=True)
            try:
                self._disk.write(descriptor, [f"{mark}\n".encode()])
                self._disk.sync(descriptor)
            finally:
                self._disk.close(descriptor)
        except OSError as exc:
            raise StorageError(f"cannot write {self._path}: {exc.strerror or exc}") from exc

    def skip(self, mark: str) -> None:
        """Leave it alone until the end of the process."""
        self._skipped.add(mark)

    def prune(self, present: Collection[str]) -> None:
        """Forget what is no longer there, if that is most of what is remembered.

        Raises:
            StorageError: The disk refused; the file holds more than it need.
        """
        self._skipped.intersection_update(present)
        if present and len(self._marks) > 2 * len(present) + _SPARE:
            self._marks.intersection_update(present)
            self._rewrite()

    def _rewrite(self) -> None:
        if self._path is not None:
            write_atomic(self._path, "".join(f"{mark}\n" for mark in sorted(self._marks)).encode(), disk=self._disk)
