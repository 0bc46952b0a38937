"""The folders beside the queue: `rejected/`, with each sink's refusals, and `quarantine/`, with what was damaged."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from loopcore.files import Disk, read_bounded, write_atomic
from loopcore.types import SampleInfo

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

    def path(self, sink: str, seq: int) -> Path:
        """The JSON; the image is beside it, without suffix."""
        return self.folder / quote(sink, safe="").replace(".", "%2E") / f"{seq:016d}.json"

    def add(self, refusal: Refusal, image: bytes) -> int:
        """Write image and JSON, the JSON last; durable on return. Returns their size.

        Raises:
            StorageError: The disk refused.
        """
        path = self.path(refusal.sink, refusal.seq)
        for folder in (self.folder, path.parent):
            if not folder.is_dir():
                self._disk.mkdir(folder)
                self._disk.sync_folder(folder.parent)
        meta = msgspec.json.format(msgspec.json.encode(refusal))
        write_atomic(path.with_suffix(""), image, disk=self._disk)
        write_atomic(path, meta, disk=self._disk)
        return len(meta) + len(image)

    def read(self, sink: str, seq: int) -> tuple[Refusal, bytes]:
        """A rejected sample; its image is unchecked.

        Raises:
            StorageError: A file is missing or unreadable.
            msgspec.MsgspecError: The JSON is damaged.
        """
        path = self.path(sink, seq)
        refusal, _ = self.meta(path)
        return refusal, read_bounded(path.with_suffix(""), refusal.info.image_bytes)

    def meta(self, path: Path) -> tuple[Refusal, int]:
        """What a JSON file says, and the size of it with its image; errors as of `read`."""
        data = read_bounded(path, _JSON_BYTES)
        refusal = msgspec.json.decode(data, type=Refusal)
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
