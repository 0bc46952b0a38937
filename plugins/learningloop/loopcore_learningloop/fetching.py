"""Many images of a project at once: what the Loop knows of them, their pictures, and files that are checked.

Three stages work at the same time, each as fast as the next one takes: a call for what is known of a hundred images,
many calls for one picture each, and trips to a thread that write many files.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from random import uniform
from typing import Literal, TypeVar

import anyio
from anyio import BrokenResourceError, EndOfStream, WouldBlock, create_memory_object_stream, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

from loopcore.abc import StoredImage
from loopcore.errors import FrameError, RejectedError, RetryableError, StorageError, first
from loopcore.files import read_bounded, write_atomic
from loopcore.imaging import Header, check
from loopcore_learningloop import wire
from loopcore_learningloop.projects import Project
from loopcore_learningloop.translation import annotations_of

T = TypeVar("T")

CHUNK = 100
"""How many images one call for what is known of them may name (2.2)."""

CONNECTIONS = 32
"""How many pictures are under way at a time."""

TRIES = 4
"""For one call. A picture that fails so often while others come is missing; where none comes, the Loop is."""

PAUSE_S = 0.25
"""Before the second attempt, at least half of it; twice as long before each later one."""

MAX_PICTURE = 100_000_000

_ASKING = 2  # calls for what is known, at a time
_AT_ONCE = 32  # files, in one trip to a thread
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SEEN = frozenset({"review", "complete"})


class _Arrival(Struct):
    image: wire.ImageData
    picture: bytes


class Fetching:
    """One call of `ImageStore.fetch`.

    Args:
        project: Whose images.
        into: Where their files go, as `{id}.jpg`.
        got: Hears of each.
    """

    def __init__(self, project: Project, into: Path, got: Callable[[StoredImage], None]) -> None:
        self._project = project
        self._into = into
        self._got = got
        self._images = project.path("images")
        self._came = 0

    async def run(self, ids: Sequence[str]) -> None:
        """Bring them all.

        Raises:
            RemoteError: As `ImageStore.fetch`.
            StorageError: The disk refuses.
        """
        self._categories = await self._patiently(self._project.categories)
        self._here = await to_thread.run_sync(_names, self._into)
        ids = list(dict.fromkeys(ids))
        portions = iter([ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)])
        wanted, wanting = create_memory_object_stream[wire.ImageData](CHUNK)
        arriving, arrived = create_memory_object_stream[_Arrival](_AT_ONCE)
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(_ASKING):
                    tasks.start_soon(self._ask, portions, wanted.clone())
                for _ in range(CONNECTIONS):
                    tasks.start_soon(self._download, wanting.clone(), arriving.clone())
                tasks.start_soon(self._store, arrived)
                for stream in (wanted, wanting, arriving):
                    stream.close()
        except ExceptionGroup as exc:
            raise first(exc) from exc

    async def _ask(self, portions: Iterator[Sequence[str]], wanted: MemoryObjectSendStream[wire.ImageData]) -> None:
        """What the Loop knows of the images; those whose files are here already are done with."""
        async with wanted:
            for ids in portions:
                sound = [image for image in ids if _ID.fullmatch(image)]
                for odd in set(ids) - set(sound):
                    self._got(StoredImage(id=odd, missing="its id cannot be the name of a file"))
                for image in await self._missing(await self._known(sound)):
                    await _send(wanted, image)

    async def _known(self, ids: Sequence[str]) -> list[wire.ImageData]:
        if not ids:
            return []
        loop = self._project.loop
        answer = await self._patiently(lambda: loop.get(self._images, wire.ImagesData, params={"ids": ",".join(ids)}))
        known = {image.id: image for image in answer.images}
        for image in ids:
            if image not in known:
                self._got(StoredImage(id=image, missing="the Loop knows no such image"))
        return [known[image] for image in ids if image in known]

    async def _missing(self, images: list[wire.ImageData]) -> list[wire.ImageData]:
        here = [image for image in images if _name(image) in self._here]
        if not here:
            return images
        sound = await to_thread.run_sync(_headers, [self._into / _name(image) for image in here])
        for image, header in zip(here, sound, strict=True):
            if header is not None:
                self._tell(image, header)
        done = {image.id for image, header in zip(here, sound, strict=True) if header is not None}
        return [image for image in images if image.id not in done]

    async def _download(
        self, wanting: MemoryObjectReceiveStream[wire.ImageData], arriving: MemoryObjectSendStream[_Arrival]
    ) -> None:
        async with wanting, arriving:
            while (image := await _receive(wanting)) is not None:
                try:
                    picture = await self._picture(image.id)
                except RejectedError as exc:
                    self._got(StoredImage(id=image.id, missing=str(exc)))
                    continue
                await _send(arriving, _Arrival(image, picture))

    async def _picture(self, image: str) -> bytes:
        """One picture.

        Raises:
            RejectedError: It cannot be had, and others can.
            RemoteError: Nothing can be had.
        """
        path = f"{self._images}/{image}/main"
        before = self._came

        async def attempt() -> bytes:
            async with self._project.loop.stream(path, expect={HTTPStatus.NOT_FOUND}) as answer:
                if answer.status == HTTPStatus.NOT_FOUND and "json" in answer.headers.get("content-type", ""):
                    raise RejectedError("the Loop has no picture of it")  # a proxy's 404 is no JSON, and passes
                if answer.status == HTTPStatus.NOT_FOUND:
                    raise RetryableError(f"{path} answered 404; is the URL right?", status=answer.status)
                return await answer.read(MAX_PICTURE)

        try:
            picture = await self._patiently(attempt)
        except RetryableError as exc:
            if self._came == before:
                raise
            raise RejectedError(f"it could not be had in {TRIES} attempts: {exc}") from exc
        self._came += 1
        return picture

    async def _store(self, arrived: MemoryObjectReceiveStream[_Arrival]) -> None:
        async with arrived:
            while (one := await _receive(arrived)) is not None:
                batch = [one]
                with suppress(WouldBlock, EndOfStream):
                    while len(batch) < _AT_ONCE:
                        batch.append(arrived.receive_nowait())
                files = [(self._into / _name(one.image), one.picture) for one in batch]
                for one, result in zip(batch, await to_thread.run_sync(_write, files), strict=True):
                    if isinstance(result, Header):
                        self._tell(one.image, result)
                    else:
                        self._got(StoredImage(id=one.image.id, missing=str(result)))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, TRIES):
            try:
                return await call()
            except RetryableError as exc:
                pause_s = max(exc.retry_after_s or 0.0, PAUSE_S * 2 ** (attempt - 1) * uniform(0.5, 1))
            await anyio.sleep(pause_s)
        return await call()

    def _tell(self, image: wire.ImageData, header: Header) -> None:
        annotations = annotations_of(image, self._categories)
        self._got(
            StoredImage(
                id=image.id,
                file=_name(image),
                width=header.width,
                height=header.height,
                annotations=annotations if annotations or image.state in _SEEN else None,
                set=_set(image.set),
                state=image.state,
                tags=tuple(tag.name for tag in image.tags),
            )
        )


def _set(name: str | None) -> Literal["train", "val", "test"] | None:
    match name:
        case "train" | "val" | "test":
            return name
    return None


def _name(image: wire.ImageData) -> str:
    return f"{image.id}.jpg"


def _names(folder: Path) -> frozenset[str]:
    """The names in a folder: one look, where each file would take one. Blocking."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError as exc:
        raise StorageError(f"cannot read {folder}: {exc.strerror or exc}") from exc


def _headers(paths: Sequence[Path]) -> list[Header | None]:
    """Of each file, what it is, if it is sound. A power cut may have left half a file. Blocking."""
    headers: list[Header | None] = []
    for path in paths:
        try:
            headers.append(check(read_bounded(path, MAX_PICTURE)))
        except (FrameError, StorageError):
            headers.append(None)
    return headers


def _write(files: Sequence[tuple[Path, bytes]]) -> list[Header | FrameError]:
    """Check and write each; of one that is no picture, why. Blocking.

    Raises:
        StorageError: The disk refuses.
    """
    results: list[Header | FrameError] = []
    for path, picture in files:
        try:
            header = check(picture)
        except FrameError as exc:
            results.append(exc)
            continue
        write_atomic(path, picture, durable=False)
        results.append(header)
    return results


async def _send(stream: MemoryObjectSendStream[T], item: T) -> None:
    """Hand on without a turn of the event loop where there is room: it would cost as much as the call of the Loop."""
    try:
        try:
            stream.send_nowait(item)
        except WouldBlock:
            await stream.send(item)
    except BrokenResourceError:
        await anyio.sleep_forever()  # the other end has failed or was cancelled, and so shall we be


async def _receive(stream: MemoryObjectReceiveStream[T]) -> T | None:
    """The next item, likewise; `None` at the end."""
    try:
        return stream.receive_nowait()
    except WouldBlock:
        pass
    except EndOfStream:
        return None
    try:
        return await stream.receive()
    except EndOfStream:
        return None
