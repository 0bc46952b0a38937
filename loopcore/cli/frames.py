"""Frames for one-shot commands: what a person named, read in order, and looked at by a model in several threads."""

from __future__ import annotations

import glob
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar, cast

from anyio import CapacityLimiter, Event, Semaphore, create_memory_object_stream, create_task_group
from anyio.to_thread import run_sync
from msgspec import Struct

from loopcore import imaging
from loopcore.abc import Backend
from loopcore.errors import BackendError, FrameError, StorageError
from loopcore.files import read_bounded
from loopcore.types import RGB, Frame, FrameInfo, Prediction

PICTURES = frozenset({".jpg", ".jpeg", ".png"})
CLIPS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
MAX_PICTURE = 256_000_000

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")


class Input(Struct, frozen=True, kw_only=True, eq=False):
    """One frame to look at, or what stood in the way of reading it.

    Attributes:
        path: The file, as it was named or found.
        index: Which frame of the file, from 0.
        image: The bytes of a picture, or the pixels of a clip's frame.
        error: Why there is none.
    """

    path: Path
    index: int = 0
    image: bytes | RGB = b""
    error: str | None = None


class Looked(Struct, frozen=True, kw_only=True, eq=False):
    """What the model said to an input, or what went wrong."""

    input: Input
    width: int = 0
    height: int = 0
    prediction: Prediction | None = None
    error: str | None = None


def find(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that are meant by files, folders and globs, each once, in order; and the names that mean nothing.

    A folder means the pictures and clips in it and below. A name that exists is never taken for a glob.
    """
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112 - unlike a Path's, it takes a name that is too long for none
            files = _walk(Path(name))
        elif is_file(name):
            files = [Path(name)]
        else:
            matches = (Path(match) for match in sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 - may be absolute
            files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match])]
        if not files:
            missing.append(name)
        found.update(dict.fromkeys(files))
    return list(found), missing


def is_file(name: str) -> bool:
    """Whether there is such a file, whatever a person wrote."""
    return os.path.isfile(name)  # noqa: PTH113 - as above


def _walk(folder: Path) -> list[Path]:
    names = (Path(place) / name for place, _, files in os.walk(folder) for name in files if not name.startswith("."))
    return sorted(path for path in names if path.suffix.lower() in PICTURES | CLIPS)


def read(paths: Iterable[Path], *, every: int, begun: Callable[[Path], None]) -> Iterator[Input]:
    """The frames of all files, one file after the other; of a clip, only each `every`th. Blocking."""
    for path in paths:
        begun(path)
        yield from _read_clip(path, every) if path.suffix.lower() in CLIPS else _read_picture(path)


def _read_picture(path: Path) -> Iterator[Input]:
    try:
        yield Input(path=path, image=read_bounded(path, MAX_PICTURE))
    except StorageError as exc:
        yield Input(path=path, error=str(exc))


def _read_clip(path: Path, every: int) -> Iterator[Input]:
    from loopcore.drivers.video_source import frames_of

    index = -1
    try:
        for index, pixels in islice(enumerate(frames_of(path)), 0, None, every):
            yield Input(path=path, index=index, image=pixels)
    except FrameError as exc:
        yield Input(path=path, index=index + 1, error=str(exc))


class Looker:
    """Decodes and infers in worker threads, no more of either at a time than machine and backend allow.

    Args:
        backend: An entered backend.
        threads: How many pictures are decoded at a time.
    """

    def __init__(self, backend: Backend, *, threads: int) -> None:
        self._backend = backend
        self._decoding = CapacityLimiter(threads)
        self._inferring = CapacityLimiter(max(1, min(threads, backend.max_overlap)))

    async def look(self, item: Input) -> Looked:
        """Run the model on one frame; a bad frame is an answer too."""
        if item.error is not None:
            return Looked(input=item, error=item.error)
        try:
            frame = await run_sync(self._open, item, limiter=self._decoding)
            (prediction,) = await run_sync(self._backend.infer, [frame], limiter=self._inferring)
        except (FrameError, BackendError) as exc:
            return Looked(input=item, error=str(exc))
        return Looked(input=item, width=frame.info.width, height=frame.info.height, prediction=prediction)

    def _open(self, item: Input) -> Frame:
        if not isinstance(item.image, bytes):
            height, width = item.image.shape[:2]
            return _frame(item, width, height, item.image)
        header = imaging.probe(item.image)
        size = self._backend.decode_size(header.width, header.height)
        pixels = imaging.decode(item.image, header=header, size=size)
        return _frame(item, header.width, header.height, pixels)


def _frame(item: Input, width: int, height: int, pixels: RGB) -> Frame:
    info = FrameInfo(width=width, height=height, time=datetime.now(UTC), source=str(item.path))
    return Frame(info=info, pixels=pixels)


class _Slot(Struct, Generic[DoneT], eq=False):
    finished: Event
    value: DoneT | None = None


async def in_order(
    items: Iterator[ItemT], work: Callable[[ItemT], Awaitable[DoneT]], show: Callable[[DoneT], None], *, ahead: int
) -> None:
    """Work on up to `ahead` items at a time and show the results in the order of the items.

    The iterator is asked in a worker thread; no more than `ahead` items and results are in memory.
    """
    sender, receiver = create_memory_object_stream[_Slot[DoneT]](ahead)
    room = Semaphore(ahead)

    async def feed() -> None:
        async with sender, create_task_group() as workers:
            while True:
                await room.acquire()
                item = await run_sync(next, items, None)
                if item is None:
                    return
                slot: _Slot[DoneT] = _Slot(Event())
                await sender.send(slot)
                workers.start_soon(one, item, slot)

    async def one(item: ItemT, slot: _Slot[DoneT]) -> None:
        slot.value = await work(item)
        slot.finished.set()

    async with receiver, create_task_group() as group:
        group.start_soon(feed)
        async for slot in receiver:
            await slot.finished.wait()
            show(cast("DoneT", slot.value))
            room.release()
