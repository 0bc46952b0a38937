"""The source `learningloop`: takes over what a node of the reference has left in its outbox."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from msgspec import Struct

from loopcore import Options
from loopcore.abc import Service, Source
from loopcore.errors import BusyError, FrameError, NotReadyError, StorageError
from loopcore.files import DISK, read_bounded
from loopcore.imaging import probe
from loopcore.types import Encoded, Prediction
from loopcore_learningloop.tolerant import Said, read_metadata

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

_MOST_NOTES = 4_000_000
_MOST_IMAGE = 100_000_000
_FIRST_S, _MOST_S = 1.0, 60.0
_QUEUES = ("priority", "normal")


class LeftOptions(Options, frozen=True, kw_only=True):
    """Options of the source `learningloop`.

    Attributes:
        path: The folder `outbox` of the other node; nothing happens if it is not there.
    """

    path: Path


class _Left(Struct, frozen=True, kw_only=True):
    """An image that was not sent, and what was noted about it."""

    image: Path
    notes: Path
    urgent: bool


class LeftBehind(Source):
    """Keeps each image that another node did not get rid of, and ends.

    Both layouts are known, that of 0.11.1 and that of later releases (`learning-loop.md` 7.1). A folder is removed once
    its image is a sample of this node. What is no picture stays where it is.
    """

    Options = LeftOptions
    options: LeftOptions

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        found = await to_thread.run_sync(lambda: list(_look(self.options.path)))
        task_status.started()
        kept = 0
        for left in found:
            try:
                await _keep(service, left)
            except (FrameError, StorageError) as exc:
                _log.warning("An image that another node has left stays where it is: %s path=%s", exc, left.image)
                continue
            await to_thread.run_sync(_remove, left)
            kept += 1
        if found:
            _log.info("Images that another node has left are taken over count=%d of=%d", kept, len(found))


def _look(folder: Path) -> Iterator[_Left]:
    """The urgent ones first, then by the time that is their name."""
    for queue in _QUEUES:
        for one in _folders(folder / queue):
            image = one / f"image_{one.name}.jpg"
            if image.is_file():
                yield _Left(image=image, notes=image.with_suffix(".json"), urgent=queue == "priority")
    for one in _folders(folder):
        if (one / "image.jpg").is_file():
            yield _Left(image=one / "image.jpg", notes=one / "image.json", urgent=False)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


async def _keep(service: Service, left: _Left) -> None:
    data = await to_thread.run_sync(read_bounded, left.image, _MOST_IMAGE)
    media = (await to_thread.run_sync(probe, data)).media
    said = await to_thread.run_sync(_read_notes, left.notes)
    pause_s = _FIRST_S
    while True:
        try:
            await service.keep(
                Encoded(data, media),
                captured=said.created,
                tags=said.tags,
                source=said.source,
                prediction=Prediction(detections=tuple(said.detections), model_version=said.model),
                annotations=said.annotations,
                state=said.state,
                urgent=left.urgent,
            )
        except (BusyError, NotReadyError) as exc:
            await anyio.sleep(exc.retry_after_s)
        except StorageError as exc:
            if pause_s == _FIRST_S:
                _log.warning("An image that another node has left waits until it can be stored: %s", exc)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_S)
        else:
            return


def _read_notes(path: Path) -> Said:
    """What was noted, as far as it can be read: the image is what counts."""
    try:
        said = read_metadata(read_bounded(path, _MOST_NOTES))
    except StorageError as exc:
        said = Said(notes=[str(exc)])
    for note in said.notes:
        _log.warning("Of what another node has noted about an image: %s path=%s", note, path)
    return said


def _remove(left: _Left) -> None:
    try:
        for path in (left.image, left.notes):
            path.unlink(missing_ok=True)
        left.image.parent.rmdir()
        DISK.sync_folder(left.image.parent.parent)
    except OSError as exc:
        _log.warning("An image was taken over, and cannot be removed here: %s path=%s", exc.strerror, left.image)
