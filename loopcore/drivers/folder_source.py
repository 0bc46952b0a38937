"""The source `folder`: pictures that lie in a folder, or come to lie there."""

from __future__ import annotations

import mimetypes
import struct
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from anyio import CapacityLimiter, to_thread
from msgspec import Meta

from loopcore.abc import Service, Source
from loopcore.drivers.folder_watch import FolderWatch, Found, Look, unchanged
from loopcore.drivers.ledger import Ledger
from loopcore.drivers.patience import predict_patiently
from loopcore.errors import BackendError, ConfigError, FrameError, PluginError, StorageError
from loopcore.files import DISK, read_bounded
from loopcore.options import Duration, Options, Size
from loopcore.types import Encoded

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = getLogger(__name__)
_STATE = ".loopcore-source"
_EXIF = b"Exif\0\0"
_EXIF_IFD, _TAKEN, _OFFSET, _FRACTION = 0x8769, 0x9003, 0x9011, 0x9291


class FolderOptions(Options, frozen=True):
    """What `folder` can be told.

    Attributes:
        path: The folder.
        patterns: Globs for the names of pictures; upper and lower case are the same.
        recursive: Pictures in folders below are meant, too.
        watch: Go on and wait for more; otherwise end after all that is there.
        every: How often to look for more. A look at a folder that has not changed costs next to nothing.
        settle: How long a file must stay unchanged to count as whole.
        camera: The camera of all pictures.
        camera_from: `folder`: the first folder below `path` is the camera; `camera` is that of pictures outside one.
        captured: When a picture was taken: what its EXIF data say, if they say it with a time zone; the file's time of
            change (`mtime`); or unknown (`none`).
        tags: Kept with the samples.
        after: What becomes of a file when the node has answered: `keep`, `delete`, or `move` it to `move_to`. A
            picture that cannot be used stays where it is.
        move_to: A folder on the same disk.
        state: The file that remembers what was handed over, for `keep`; by default a hidden one in the folder.
        max_bytes: Larger files are not read.
    """

    path: Path
    patterns: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*.jpg", "*.jpeg", "*.png")
    recursive: bool = True
    watch: bool = True
    every: Duration = Duration(1)
    settle: Duration = Duration(2)
    camera: str | None = None
    camera_from: Literal["none", "folder"] = "none"
    captured: Literal["exif", "mtime", "none"] = "exif"
    tags: tuple[str, ...] = ()
    after: Literal["keep", "delete", "move"] = "keep"
    move_to: Path | None = None
    state: Path | None = None
    max_bytes: Size = Size(64_000_000)

    def __post_init__(self) -> None:
        if (self.after == "move") != (self.move_to is not None):
            raise ValueError("Expected move_to with after = 'move', and only then")
        if self.every < 0.01:
            raise ValueError("Expected every to be at least 10 ms")


class FolderSource(Source):
    """Hands over the pictures of a folder, in order of their paths, one at a time, as their files are.

    A file is left alone until it is whole. What was handed over is remembered by name, size and time of change, and
    only after the node has answered, when its sample is durable; after a restart it does not come again. A picture that
    cannot be used, or that the model fails on, is logged, counted, and tried again when it changes or after a restart.

    Attributes:
        handed: How many pictures the node has answered.
        bad: How many could not be used.
    """

    Options = FolderOptions
    options: FolderOptions

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        self.handed = 0
        self.bad = 0
        remembers = options.after == "keep"
        self._ledger = Ledger((options.state or options.path / _STATE) if remembers else None)

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        options = self.options
        limiter = CapacityLimiter(1)
        await to_thread.run_sync(self._open, limiter=limiter)
        watch = FolderWatch(
            options.path,
            options.patterns,
            recursive=options.recursive,
            settle_s=options.settle,
            outside=options.move_to,
        )
        task_status.started()
        gone = False
        while True:
            try:
                look = await to_thread.run_sync(self._look, watch, limiter=limiter)
                gone = False
            except OSError as exc:
                if not gone:
                    _log.warning("The folder of a source cannot be read: %s path=%s", exc.strerror, options.path)
                gone, look = True, Look(found=[], waiting=0, present=None)
            for found in look.found:
                if not await self._hand_over(service, found, limiter):
                    watch.again(found)
            if look.found:
                continue
            if not options.watch and not look.waiting:
                return
            await anyio.sleep(options.every)

    def _open(self) -> None:
        options = self.options
        if not options.path.is_dir():
            raise ConfigError(f"there is no folder {options.path}", key="path")
        try:
            if options.move_to is not None:
                options.move_to.mkdir(parents=True, exist_ok=True)
                if options.move_to.stat().st_dev != options.path.stat().st_dev:
                    raise ConfigError(f"{options.move_to} is not on the same disk as {options.path}", key="move_to")
            self._ledger.open()
        except StorageError as exc:
            raise ConfigError(f"name a file that can be written: {exc}", key="state") from exc
        except OSError as exc:
            raise ConfigError(f"cannot make {options.move_to}: {exc.strerror}", key="move_to") from exc

    def _look(self, watch: FolderWatch) -> Look:
        look = watch.look(self._ledger)
        if look.present is not None:
            try:
                self._ledger.prune(look.present)
            except StorageError as exc:
                _log.warning("A source's memory could not be made smaller: %s", exc)
        return look

    async def _hand_over(self, service: Service, found: Found, limiter: CapacityLimiter) -> bool:
        """Hand one picture over; `False` if its file has changed since it was found."""
        try:
            data = await to_thread.run_sync(self._read, found, limiter=limiter)
            if data is None:
                return False
            await predict_patiently(
                service,
                Encoded(data, _media(found.path, data)),
                camera=self._camera(found),
                captured=self._captured(found, data),
                tags=self.options.tags,
                source=str(found.path),
            )
        except (FrameError, BackendError, PluginError, StorageError) as exc:
            self.bad += 1
            self._ledger.skip(found.mark)
            _log.warning("A picture was left out: %s path=%s", exc, found.path)
            return True
        self.handed += 1
        await to_thread.run_sync(self._finish, found, limiter=limiter)
        return True

    def _read(self, found: Found) -> bytes | None:
        try:
            data = read_bounded(found.path, self.options.max_bytes)
        except StorageError:
            if unchanged(found):
                raise
            return None
        return data if unchanged(found) else None

    def _finish(self, found: Found) -> None:
        """The node has answered: see to it that the file does not come again."""
        try:
            match self.options.after:
                case "keep":
                    self._ledger.add(found.mark)
                case "delete":
                    DISK.unlink(found.path)
                case "move":
                    self._move(found)
        except (OSError, StorageError) as exc:
            self._ledger.skip(found.mark)
            _log.error(
                "A picture was handed over, and may be again after a restart, because this failed: %s (%s) path=%s",
                self.options.after,
                exc,
                found.path,
            )

    def _move(self, found: Found) -> None:
        target = (self.options.move_to or self.options.path) / found.inner
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target = target.with_stem(f"{target.stem}-{found.mark[:8]}")
        DISK.rename(found.path, target)

    def _camera(self, found: Found) -> str | None:
        if self.options.camera_from == "folder" and len(found.inner.parts) > 1:
            return found.inner.parts[0]
        return self.options.camera

    def _captured(self, found: Found, data: bytes) -> datetime | None:
        match self.options.captured:
            case "exif":
                return exif_time(data)
            case "mtime":
                return datetime.fromtimestamp(found.changed_ns // 1000 / 1e6, UTC)
            case "none":
                return None


def exif_time(data: bytes) -> datetime | None:
    """When a JPEG was taken, as its EXIF data say; `None` unless they say it with a time zone."""
    start = data.find(_EXIF, 0, 1 << 17)
    if start < 0:
        return None
    from PIL import Image

    tags = Image.Exif()
    try:
        tags.load(data[start : start + (1 << 16)])
        notes: dict[int, Any] = tags.get_ifd(_EXIF_IFD)
        taken = datetime.strptime(f"{notes[_TAKEN]}{notes[_OFFSET]}", "%Y:%m:%d %H:%M:%S%z").astimezone(UTC)
        fraction = str(notes.get(_FRACTION, "0")).strip(" \0")[:6]
        return taken.replace(microsecond=int(fraction.ljust(6, "0")) if fraction.isdecimal() else 0)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error, Warning):
        return None  # damaged notes about a picture do not make the picture bad


def _media(path: Path, data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
