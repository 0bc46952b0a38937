"""The sink `folder`: the picture, and beside it what is known of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from msgspec import Struct

from loopcore.abc import Sink
from loopcore.errors import RetryableError, StorageError
from loopcore.files import DISK, Disk, write_atomic
from loopcore.options import Options
from loopcore.types import Delivered, Problem, Receipt, Sample, SampleInfo, joined

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}
_ABANDONED_S = 3600.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")


class FolderSinkOptions(Options, frozen=True, kw_only=True):
    """Options of the sink `folder`.

    Attributes:
        path: The folder; made if it is not there.
    """

    path: Path


class Stored(Struct, frozen=True, kw_only=True):
    """The JSON file beside a picture. Where it is, the picture is whole.

    Attributes:
        version: Of this form.
        image: The picture's file name, in the same folder.
        sample: What is known of it.
    """

    version: Literal[1] = 1
    image: str
    sample: SampleInfo


class FolderSink(Sink):
    """Writes `<path>/<camera>/<date>/<sample id>.jpg` and `.json`, both durable before it answers.

    `_` stands for no camera and `undated` for no capture time. A camera whose name would not do as a folder's gets one
    of its plain characters and a hash. The place depends on nothing but what makes the id, so that no sample is stored
    twice.
    """

    Options = FolderSinkOptions
    options: FolderSinkOptions
    media = tuple(_SUFFIXES)
    max_batch = 16
    in_flight = 2

    def __init__(self, options: FolderSinkOptions, *, disk: Disk = DISK) -> None:
        super().__init__(options)
        self._disk = disk
        self._swept: set[Path] = set()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._limiter = CapacityLimiter(self.in_flight)
        await run_sync(self._prepare, limiter=self._limiter)
        yield self

    async def check(self) -> Sequence[Problem]:
        path = self.options.path
        if not os.access(path, os.W_OK | os.X_OK):
            return [Problem(message=f"{path} cannot be written to; change its permissions or name another folder")]
        return ()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        return [await run_sync(self._store, sample, limiter=self._limiter) for sample in samples]

    def _prepare(self) -> None:
        try:
            self.options.path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise RetryableError(f"cannot make the folder {self.options.path}: {exc.strerror or exc}") from exc

    def _store(self, sample: Sample) -> Receipt:
        info = sample.info
        folder = self.options.path / _camera(info.camera) / _date(info)
        image = folder / f"{info.id}{_SUFFIXES[info.media]}"
        record = image.with_suffix(".json")
        try:
            self._make(folder)
            self._sweep(folder)
            before = _known(record)
            duplicate = before is not None and image.is_file() and image.stat().st_size == len(sample.image)
            if not duplicate:
                write_atomic(image, sample.image, disk=self._disk)
            known = joined(before, info) if before else info
            if not duplicate or known != before:
                stored = msgspec.json.encode(Stored(image=image.name, sample=known))
                write_atomic(record, msgspec.json.format(stored, indent=2) + b"\n", disk=self._disk)
        except StorageError as exc:
            raise RetryableError(str(exc)) from exc
        except OSError as exc:
            raise RetryableError(f"cannot store {image}: {exc.strerror or exc}") from exc
        return Delivered(remote_id=str(image.relative_to(self.options.path)), duplicate=duplicate)

    def _make(self, folder: Path) -> None:
        for path in (folder.parent, folder):
            if not path.is_dir():
                self._disk.mkdir(path, 0o777)  # for people, as the umask has it
                self._disk.sync_folder(path.parent)

    def _sweep(self, folder: Path) -> None:
        """Remove what a killed process left half written, once for each folder. Younger drafts may be another's."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        for draft in folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if draft.stat().st_mtime < time.time() - _ABANDONED_S:
                    self._disk.unlink(draft)


def _known(record: Path) -> SampleInfo | None:
    """What an earlier delivery wrote; a damaged file counts as none, and is written anew."""
    if not record.is_file():
        return None
    try:
        return msgspec.json.decode(record.read_bytes(), type=Stored).sample
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _camera(name: str | None) -> str:
    """A folder's name for a camera: another one for each, whatever characters the name has."""
    if name is None:
        return "_"
    if _PLAIN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40].strip("-")
    return f"{plain}~{sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _date(info: SampleInfo) -> str:
    return info.captured.astimezone(UTC).strftime("%Y-%m-%d") if info.captured else "undated"
