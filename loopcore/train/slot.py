"""The GPU slot: a lock file that the trainers of one machine share, so that one of them trains at a time.

The lock is flock(2), exclusive, which falls with the process that holds it, in containers too. The file says who holds
it, for people; it is empty when nobody does, writable for all, and never replaced. The Learning Loop's own trainers
keep the same rules (protocol, section 9.4), so ours and theirs can share a card.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from loopcore.errors import StorageError

_SHOWN_BYTES = 200


class Slot:
    """The slot, or, without a path, none: then it can always be taken. Blocking, and quick."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, holder: str) -> bool:
        """Take it; `False` if somebody else has it.

        Args:
            holder: Who has it then, for people.

        Raises:
            StorageError: The file cannot be opened; its folder must exist.
        """
        if self._path is None or self._descriptor is not None:
            return True
        descriptor = self._open(self._path)
        if not _locks(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk: only people miss the name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}\n".encode(), 0)
        return True

    def release(self) -> None:
        """Give it up; nothing happens if it is not ours."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def is_taken(self) -> bool:
        """Whether somebody else has it.

        Raises:
            StorageError: As `take`.
        """
        if self._path is None or self._descriptor is not None:
            return False
        descriptor = self._open(self._path)
        try:
            return not _locks(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def holder(self) -> str:
        """Who has it, for people."""
        with suppress(OSError):
            if self._path is not None:
                with self._path.open("rb") as file:
                    return file.read(_SHOWN_BYTES).decode(errors="replace").strip() or "another trainer"
        return "another trainer"

    def _open(self, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as exc:
            raise StorageError(f"cannot open the lock {path}: {exc.strerror or exc}") from exc
        with suppress(OSError):  # another user's, who has seen to it
            os.fchmod(descriptor, 0o666)  # the umask has taken from it
        return descriptor


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
