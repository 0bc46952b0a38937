"""Room for the last words on a full disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loopcore.files import Disk

MOST_BYTES = 1 << 20


class Reserve:
    """A file that is given up when the disk is full.

    The index grows a little when it notes what was delivered. Without room for that nothing would leave a full disk,
    though the sinks take everything.

    Args:
        path: Of the file.
        size: How many bytes.
        disk: How files are changed.

    Attributes:
        given_up: There is none: the disk was full, perhaps in an earlier run, and has not recovered yet.
    """

    def __init__(self, path: Path, size: int, disk: Disk) -> None:
        self._path = path
        self._size = size
        self._disk = disk
        self.given_up = False

    def keep(self) -> None:
        """Take the room, if there is enough of it."""
        self.given_up = not self._path.exists() and not self._take()

    def give_up(self) -> bool:
        """Give the room back. Whether there was any."""
        with suppress(OSError):
            self._disk.unlink(self._path)
            self.given_up = True
            return True
        return False

    def _take(self) -> bool:
        with suppress(OSError):
            if self._disk.free(self._path.parent) >= 2 * self._size:
                self._write()
                return True
        return False

    def _write(self) -> None:
        descriptor = self._disk.open(self._path)
        try:
            self._disk.write(descriptor, [bytes(self._size)])
        except OSError:
            self._disk.unlink(self._path)
            raise
        finally:
            self._disk.close(descriptor)
