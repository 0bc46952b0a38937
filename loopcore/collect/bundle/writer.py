"""Writing a bundle, in as many goes as it takes."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from loopcore.collect.bundle.layout import (
    BLOCK,
    END,
    HEAD,
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    SUFFIXES,
    Head,
    Known,
    Mark,
    Member,
    end_of,
    linked,
    member,
)
from loopcore.collect.bundle.reader import Reader
from loopcore.errors import FrameError, StorageError
from loopcore.files import DISK, Disk
from loopcore.types import Sample

_SYNC_BYTES = 1 << 26  # so that no sync at the end takes minutes, and a power cut costs little
_FIRST_WORDS_BYTES = 4096


class Writer:
    """Writes a bundle, or goes on with one that was not finished. Blocking.

    Args:
        path: Where it is to be. Until it is whole, it lies beside that, as `NAME.part`.
        head: What it is. An unfinished one must be of the same origin and choice; its id stays.
        disk: How files are changed.

    Attributes:
        head: What it is.
        after: The place in the queue of the last sample in it.
        mark: How far it is.

    Raises:
        StorageError: On making it: there is such a file, or part of another bundle, or the disk refuses.
    """

    def __init__(self, path: Path, head: Head, *, disk: Disk = DISK) -> None:
        self.head = head
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._disk = disk
        self._unsynced = 0
        self._descriptor: int | None = None
        self.after = 0
        try:
            if path.exists():
                raise StorageError(f"{path} is there already; remove it or choose another name")
            mark = self._found(head)
            self._descriptor = disk.open(self._part, append=mark is not None)
            if mark is None:
                self.mark = self._start(msgspec.json.format(msgspec.json.encode(head)))
            else:
                self.mark = mark
                disk.truncate(self._descriptor, mark.offset)
        except OSError as exc:
            self.close()
            raise self._refused(exc) from exc

    def add(self, seq: int, revision: int, sample: Sample) -> None:
        """Put a sample behind the others.

        Raises:
            FrameError: The sample is too large for a bundle.
            StorageError: The disk refused; what was written before stays, to go on with.
        """
        info = sample.info
        if info.media not in SUFFIXES or len(sample.image) > MAX_IMAGE_BYTES:
            raise FrameError(
                f"the image of the sample {info.id} is too large for a bundle, or no JPEG or PNG", status=413
            )
        image = f"{info.image_id}{SUFFIXES[info.media]}"
        known = Known(seq=seq, revision=revision, image=image, sample=info)
        meta = msgspec.json.format(msgspec.json.encode(known))
        if len(meta) > MAX_JSON_BYTES:
            raise FrameError(f"what is known of the sample {info.id} is too much for a bundle", status=413)
        digest = sha256(meta)
        parts = [*member(f"{digest.hexdigest()}.json", meta), *member(image, sample.image)]
        self._write(parts)
        grown = sum(map(len, parts))
        chain = linked(self.mark.chain, digest.digest())
        self.mark = Mark(offset=self.mark.offset + grown, samples=self.mark.samples + 1, chain=chain)
        self.after = seq
        self._unsynced += grown
        if self._unsynced > _SYNC_BYTES:
            self._sync()

    def finish(self) -> None:
        """Write the end; on return the bundle has its name and survives a power cut.

        Raises:
            StorageError: The disk refused; what was written stays, to go on with.
        """
        self._write([*member(END, msgspec.json.encode(end_of(self.mark))), bytes(2 * BLOCK)])
        self._sync()
        self.close()
        try:
            self._disk.rename(self._part, self._path)
            self._disk.sync_folder(self._path.parent)
        except OSError as exc:
            raise self._refused(exc) from exc

    def close(self) -> None:
        """Leave it; unless it is finished, another writer can go on with it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                self._disk.close(descriptor)

    def _found(self, head: Head) -> Mark | None:
        """How far an unfinished one is; `None` if there is none."""
        if not self._part.exists():
            return None
        try:
            reader = Reader(self._part)
        except StorageError:
            if self._part.stat().st_size <= _FIRST_WORDS_BYTES:  # a power cut came while they were written
                return None
            raise
        with reader:
            if (reader.head.origin, reader.head.choice) != (head.origin, head.choice):
                raise StorageError(f"{self._part} is part of another export; remove it or choose another name")
            good = reader.mark
            while pieces := reader.pieces(1):
                if not isinstance(pieces[0], Member):
                    break
                good, self.after = reader.mark, pieces[0].seq
        return good

    def _start(self, head: bytes) -> Mark:
        parts = member(HEAD, head)
        self._write(parts)
        self._sync()
        self._disk.sync_folder(self._part.parent)
        return Mark(offset=sum(map(len, parts)), samples=0, chain=sha256(head).hexdigest())

    def _write(self, parts: list[bytes]) -> None:
        assert self._descriptor is not None
        try:
            self._disk.write(self._descriptor, parts)
        except OSError as exc:
            self.close()
            raise self._refused(exc) from exc

    def _sync(self) -> None:
        assert self._descriptor is not None
        try:
            self._disk.sync(self._descriptor)
        except OSError as exc:
            self.close()
            raise self._refused(exc) from exc
        self._unsynced = 0

    def _refused(self, exc: OSError) -> StorageError:
        return StorageError(f"cannot write {self._part}: {exc.strerror or exc}")
