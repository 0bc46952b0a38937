"""What a child writes: cut into lines of a bounded length, and kept in a log of a bounded size."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from loopcore.files import DISK, Disk

_log = logging.getLogger(__name__)

LINE_BYTES = 64_000
"""Of a longer line only the beginning counts; the log has all of it."""

LOG_BYTES = 50_000_000
"""A log that has grown so large becomes `NAME.old`, in place of an older one, and a new one begins."""


class Lines:
    """Cuts what comes in pieces into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in this piece, without their ends. A carriage return, as of a progress bar, ends one."""
        *whole, rest = data.replace(b"\r", b"\n").split(b"\n")
        lines = []
        for piece in whole:
            self._add(piece)
            if self._rest:
                lines.append(self._cut())
            self._skipping = False
        self._add(rest)
        return lines

    def finish(self) -> list[str]:
        """The last line, if it has no end."""
        return [self._cut()] if self._rest else []

    def _add(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._rest += piece[: LINE_BYTES - len(self._rest)]
        self._skipping = len(self._rest) >= LINE_BYTES

    def _cut(self) -> str:
        line = self._rest.decode(errors="replace")
        self._rest.clear()
        return line


class Log:
    """Appends to a file; a disk that refuses is told of once, and costs no more than the log."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._failed = False

    def write(self, data: bytes) -> None:
        """Append; blocking."""
        if self._failed:
            return
        try:
            with suppress(FileNotFoundError):
                if self._path.stat().st_size + len(data) > LOG_BYTES:
                    self._disk.rename(self._path, self._path.with_name(f"{self._path.name}.old"))
            descriptor = self._disk.open(self._path, append=True)
            try:
                self._disk.write(descriptor, [data])
            finally:
                self._disk.close(descriptor)
        except OSError as exc:
            self._failed = True
            _log.warning("A log cannot be written and ends here path=%s error=%s", self._path, exc)
