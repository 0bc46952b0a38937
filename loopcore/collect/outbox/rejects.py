"""The folders beside the queue: `rejected/`, with each sink's refusals, and `quarantine/`, with what was damaged."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from loopcore.collect.outbox.records import DamagedError
from loopcore.errors import StorageError
from loopcore.files import Disk, read_bounded, write_atomic
from loopcore.types import SampleInfo, image_id

_QUARANTINE_BYTES = 64_000_000
_JSON_BYTES = 64_000_000


class Refusal(Struct, frozen=True, kw_only=True):
    """The JSON beside a rejected image."""

    version: int = 1
    sink: str
    seq: int
    why: str
    at: datetime
    info: SampleInfo


class Rejects:
    """Writes and reads the two folders. Which files there are is the index's affair.

    Args:
        folder: The outbox's folder.
        disk: How files are changed.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder / "rejected"
        self._quarantine = folder / "quarantine"
        self._disk = disk
        self._durable: set[Path] = set()

    def path(self, sink: str, seq: int) -> Path:
        """The JSON; the image is beside it, without suffix."""
        return self.folder / quote(sink, safe="").replace(".", "%2E") / f"{seq:016d}.json"

    def add(self, refusal: Refusal, image: bytes) -> int:
        """Write image and JSON, the JSON last; durable on return. Returns their size.

        Raises:
            StorageError: The disk refused.
        """
        path = self.path(refusal.sink, refusal.seq)
        try:
            for folder in (self.folder, path.parent):
                self._make(folder)
        except OSError as exc:
            raise StorageError(f"cannot make {path.parent}: {exc.strerror or exc}") from exc
        meta = msgspec.json.format(msgspec.json.encode(refusal))
        write_atomic(path.with_suffix(""), image, disk=self._disk)
        write_atomic(path, meta, disk=self._disk)
        return len(meta) + len(image)

    def _make(self, folder: Path) -> None:
        """Once in a run also one that is there: who made it may not have come to the sync."""
        if folder in self._durable and folder.is_dir():
            return
        self._disk.mkdir(folder)
        self._disk.sync_folder(folder.parent)
        self._durable.add(folder)

    def read(self, sink: str, seq: int) -> tuple[Refusal, bytes]:
        """A rejected sample, checked.

        Raises:
            StorageError: A file is missing or unreadable.
            DamagedError: The JSON or the image is not what was written.
        """
        path = self.path(sink, seq)
        try:
            refusal, _ = self.meta(path)
        except msgspec.MsgspecError as exc:
            raise DamagedError(str(exc)) from exc
        image, info = path.with_suffix(""), refusal.info
        if _size(image) > info.image_bytes:
            raise DamagedError("the image is larger than it was")
        data = read_bounded(image, info.image_bytes)
        if image_id(data) != info.image_id:
            raise DamagedError("the image does not have its hash")
        return refusal, data

    def meta(self, path: Path) -> tuple[Refusal, int]:
        """What a JSON file says, and the size of it with its image.

        Raises:
            StorageError: It is missing or unreadable.
            msgspec.MsgspecError: It is damaged.
        """
        data = read_bounded(path, _JSON_BYTES)
        try:
            refusal = msgspec.json.decode(data, type=Refusal)
        except UnicodeDecodeError as exc:  # msgspec lets it through
            raise msgspec.DecodeError(f"{path} is not UTF-8") from exc
        return refusal, len(data) + refusal.info.image_bytes

    def whole(self, sink: str, seq: int) -> bool:
        """Whether nobody has removed the JSON or the image."""
        path = self.path(sink, seq)
        return path.exists() and path.with_suffix("").exists()

    def remove(self, sink: str, seq: int) -> None:
        path = self.path(sink, seq)
        for file in (path, path.with_suffix("")):
            with suppress(OSError):
                self._disk.unlink(file)

    def put_aside(self, sink: str, seq: int) -> None:
        """Copy a damaged one to `quarantine/`; `remove` takes it from here."""
        path = self.path(sink, seq)
        for file in (path, path.with_suffix("")):
            with suppress(StorageError):
                self.quarantine(f"rejected-{file.name}", read_bounded(file, _QUARANTINE_BYTES))

    def found(self) -> list[Path]:
        """The JSON files that are there."""
        return sorted(self.folder.glob("*/*.json"))

    def quarantine(self, name: str, data: bytes) -> None:
        """Put damaged bytes aside for a person to look at, while there is room for them; best effort."""
        with suppress(OSError):
            self._disk.mkdir(self._quarantine)
            used = sum(file.stat().st_size for file in self._quarantine.iterdir())
            if used + len(data) <= _QUARANTINE_BYTES:
                write_atomic(self._quarantine / name, data, disk=self._disk)


def _size(path: Path) -> int:
    with suppress(OSError):  # who reads it says what is wrong
        return path.stat().st_size
    return 0
