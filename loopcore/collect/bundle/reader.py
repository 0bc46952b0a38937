"""Reading a bundle, whatever has happened to it."""

from __future__ import annotations

import errno
import os
import stat
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from loopcore.collect.bundle.layout import (
    BLOCK,
    END,
    HEAD,
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    Damage,
    End,
    Head,
    Known,
    Mark,
    Member,
    after,
    consistent,
    decoded,
    end_of,
    linked,
    parsed,
)
from loopcore.errors import StorageError
from loopcore.types import Sample

_CHUNK = 1 << 20
_MOST = 1000
_MAX_GAP = 1 << 30


class Reader:
    """Reads a bundle or part of one from front to end; what is damaged is skipped. Blocking.

    Attributes:
        head: Its `bundle.json`.
        mark: Up to where it was read.
        damaged: How many damaged pieces were met.
        ended: Nothing more can be read.
        end: Its `end.json`, once it was met.

    Args:
        path: The file.
        fresh: Read from the medium, not from memory, where the system can.

    Raises:
        StorageError: On making it: it is no bundle, or cannot be read.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self.damaged = 0
        self.ended = False
        self.end: End | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise StorageError(f"cannot read {path}: {exc.strerror or exc}") from exc
        try:
            self.size = self._regular_size()
            if fresh and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def whole(self) -> bool:
        """Whether all was read, nothing was damaged, and nothing is missing."""
        return self.end is not None and not self.damaged and self.end == end_of(self.mark)

    def go_on(self, mark: Mark) -> None:
        """Go on where an earlier reader of the same bundle was."""
        self.mark = mark

    def pieces(self, max_bytes: int) -> list[Member | Damage]:
        """The next pieces: those that begin within so many bytes, at most a thousand; empty only at the end."""
        found: list[Member | Damage] = []
        limit = self.mark.offset + max_bytes
        while not self.ended and (not found or (self.mark.offset < limit and len(found) < _MOST)):
            if piece := self._next():
                self.damaged += isinstance(piece, Damage)
                found.append(piece)
        return found

    def _regular_size(self) -> int:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{self.path} is not a regular file")
        return found.st_size

    def _begin(self) -> None:
        header = self._header(0)
        data = self._content(0, header[1], MAX_JSON_BYTES) if header and header[0] == HEAD else None
        head = decoded(data, Head) if data else None
        if data is None or head is None:
            raise StorageError(f"{self.path} is not a bundle of loopcore, or of a newer one")
        self.head = head
        self.mark = Mark(offset=after(0, len(data)), samples=0, chain=sha256(data).hexdigest())

    def _next(self) -> Member | Damage | None:
        at = self.mark.offset
        if at >= self.size:
            self.ended = True
            return None
        header = self._header(at)
        if header is None or header[0] == HEAD:
            return self._skip(at, "these bytes are no member of a bundle")
        name, size = header
        if name == END:
            self.ended = True
            self.end = decoded(self._content(at, size, MAX_JSON_BYTES), End)
            return None
        meta = self._content(at, size, MAX_JSON_BYTES) if name.endswith(".json") else None
        if meta is None or sha256(meta).hexdigest() != name.removesuffix(".json"):
            return self._skip(at, "the JSON of a sample is damaged or missing")
        known = decoded(meta, Known)
        if known is None or not consistent(known):
            return self._skip(at, "the JSON of a sample is not understood")
        return self._member(at, meta, known)

    def _member(self, at: int, meta: bytes, known: Known) -> Member | Damage:
        info = known.sample
        place = after(at, len(meta))
        if self._header(place) != (known.image, info.image_bytes):
            return self._skip(at, "the image of a sample is missing", info.id)
        image = self._content(place, info.image_bytes, MAX_IMAGE_BYTES)
        if image is None or sha256(image).hexdigest() != info.image_id:
            return self._skip(at, "the image of a sample is damaged", info.id)
        chain = linked(self.mark.chain, sha256(meta).digest())
        self.mark = Mark(offset=after(place, len(image)), samples=self.mark.samples + 1, chain=chain)
        return Member(known.seq, known.revision, Sample(info=info, image=image))

    def _skip(self, at: int, why: str, id: str | None = None) -> Damage:  # noqa: A002 - the field's term
        """Go on behind what is damaged: where its headers say, or else where the next one is found."""
        following = at
        if header := self._header(at):
            following = after(at, header[1])
            if header[0].endswith(".json") and (image := self._header(following)) and not image[0].endswith(".json"):
                following = after(following, image[1])
        if following == at or not self._header(following):
            following = self._search(at + BLOCK)
        self.ended = following >= self.size
        self.mark = Mark(offset=following, samples=self.mark.samples, chain=self.mark.chain)
        return Damage(at, why, id)

    def _search(self, at: int) -> int:
        """Where the next sample or the end may begin."""
        for start in range(at, min(self.size, at + _MAX_GAP), _CHUNK):
            chunk = self._read(start, min(_CHUNK, self.size - start)) or b""
            for offset in range(0, len(chunk), BLOCK):
                header = parsed(chunk[offset : offset + BLOCK])
                if header and header[0].endswith(".json") and header[0] != HEAD:
                    return start + offset
        return self.size

    def _header(self, at: int) -> tuple[str, int] | None:
        block = self._read(at, BLOCK)
        return parsed(block) if block else None

    def _content(self, at: int, size: int, limit: int) -> bytes | None:
        return self._read(at + BLOCK, size) if size <= limit else None

    def _read(self, at: int, size: int) -> bytes | None:
        """So many bytes; `None` if the file ends before, or lies on a bad sector."""
        if at + size > self.size:
            return None
        try:
            data = os.pread(self._descriptor, size, at)
        except OSError as exc:
            if exc.errno == errno.EIO:
                return None
            raise StorageError(f"cannot read {self.path}: {exc.strerror or exc}") from exc
        return data if len(data) == size else None
