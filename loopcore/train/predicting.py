"""PREDICTING and REPORTING: the new model looks at the platform's images, and the platform is told what it found."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from anyio import create_memory_object_stream, create_task_group, fail_after
from anyio.streams.memory import MemoryObjectSendStream
from msgspec.structs import replace

from loopcore.abc import Backend, StoredImage
from loopcore.errors import (
    BackendError,
    FrameError,
    LoopcoreError,
    ModelError,
    PluginError,
    StorageError,
    TrainingError,
)
from loopcore.files import inner_path, read_bounded, write_atomic
from loopcore.imaging import decode, probe
from loopcore.train.collecting import MAX_IMAGE_BYTES
from loopcore.train.packages import open_packages
from loopcore.train.work import ANSWER_S, Eyes, Work
from loopcore.types import Frame, FrameInfo, Model, Prediction

_log = logging.getLogger(__name__)

CHUNK = 100
"""So many images' predictions are in a file, and told to the platform at once."""

_MAX_BYTES = 1_000_000_000
_List = msgspec.json.Decoder(tuple[str, ...])
_Chunk = msgspec.json.Decoder(dict[str, Prediction])

_Fetched = tuple[Path, list[StoredImage]]


async def predict(work: Work) -> None:
    """Let the new model look at the platform's images, and keep what it finds.

    Raises:
        TrainingError: The model cannot be used.
        RemoteError: The images cannot be had now.
    """
    eyes = work.kit.eyes
    model = await work.run(_find_model, work, eyes) if eyes else None
    if eyes is None or model is None:
        _log.warning("No backend here runs the new model, so it looks at no images job=%s", work.job.id)
        return
    ids = await _list_images(work)
    async with _opened(eyes, model) as backend, create_task_group() as tasks:
        send, receive = create_memory_object_stream[_Fetched](1)  # one portion is fetched while another is looked at
        tasks.start_soon(_fetch, work, ids, send)
        done = 0
        async with receive:
            async for file, images in receive:
                found = await _look(work, backend, images)
                await work.run(_write, work, file, found)
                done += 1
                work.tell(min(1.0, done * CHUNK / len(ids)))
    await work.note(eyes=model.info.format)


async def report(work: Work) -> None:
    """Tell the platform what the model found; what it has heard is not told again.

    Raises:
        RejectedError: It does not want to know.
        RemoteError: It cannot be told now.
    """
    if work.record.eyes is None:
        return
    store = work.queue.images(work.job)
    model = work.record.published[work.record.eyes]
    files = await work.run(_files, work.predictions)
    for index, file in enumerate(files[work.record.reported :], work.record.reported):
        work.tell(index / len(files))
        found = await work.run(_read, file)
        with fail_after(ANSWER_S):
            await store.predictions(found, model)
        await work.note(reported=index + 1)


def _find_model(work: Work, eyes: Eyes) -> Model | None:
    """The best of the published packages that can be run here, under the name that the platform has given it."""
    try:
        models = open_packages(work.folder / (work.record.package or ""), work.kit.info.formats)
    except ModelError as exc:
        raise TrainingError(f"the trainer's model cannot be used any more: {exc}") from exc
    for name in eyes.formats:
        for model in models:
            if model.info.format == name:
                known = work.record.published[name]
                info = replace(model.info, version=known.version, extra={**model.info.extra, **known.extra})
                return Model(info=info, path=model.path)
    return None


async def _list_images(work: Work) -> Sequence[str]:
    """The platform's images, asked once for each job: the files of predictions are numbered by this list."""
    listed = work.predictions / "images"
    if await work.run(listed.exists):
        return _List.decode(await work.run(read_bounded, listed, _MAX_BYTES))
    with fail_after(ANSWER_S):
        ids = tuple(dict.fromkeys(await work.queue.images(work.job).images()))
    await work.run(_write, work, listed, ids)
    return ids


async def _fetch(work: Work, ids: Sequence[str], send: MemoryObjectSendStream[_Fetched]) -> None:
    store = work.queue.images(work.job)
    files: set[str] = set()
    complete = True
    async with send:
        for start in range(0, len(ids), CHUNK):
            file = work.predictions / f"{start:09}.json"
            if await work.run(file.exists):
                complete = False
                continue
            got: list[StoredImage] = []
            await store.fetch(ids[start : start + CHUNK], work.images, got.append)
            files.update(image.file for image in got if image.file)
            await send.send((file, got))
    if complete:
        await work.run(_prune, work.images, files)


async def _look(work: Work, backend: Backend, images: Sequence[StoredImage]) -> dict[str, Prediction]:
    """What the model finds in these images; those that it cannot look at are left out, and told of."""
    found: dict[str, Prediction] = {}
    size = max(1, min(work.kit.batch, backend.max_batch))
    there = [image for image in images if image.file is not None]
    for start in range(0, len(there), size):
        found |= await _infer(work, backend, await _decode(work, backend, there[start : start + size]))
    return found


async def _infer(work: Work, backend: Backend, batch: Mapping[str, Frame]) -> dict[str, Prediction]:
    if not batch:
        return {}
    try:
        return dict(zip(batch, await work.run(_call, backend, list(batch.values())), strict=True))
    except BackendError:
        if len(batch) == 1:
            raise
    found: dict[str, Prediction] = {}
    failed: BackendError | None = None
    for image, frame in batch.items():
        try:
            found |= await _infer(work, backend, {image: frame})
        except BackendError as exc:
            _log.warning("The new model fails on an image job=%s image=%s error=%s", work.job.id, image, exc)
            failed = exc
    if not found and failed is not None:
        raise failed  # not the images' fault
    return found


def _call(backend: Backend, frames: Sequence[Frame]) -> Sequence[Prediction]:
    try:
        predictions = list(backend.infer(frames))
    except LoopcoreError:
        raise
    except Exception as exc:
        # The driver guard: whatever else a backend raises is its fault.
        raise PluginError(f"the backend failed on the platform's images: {exc!r}") from exc
    if len(predictions) != len(frames):
        raise PluginError(f"the backend gave {len(predictions)} predictions for {len(frames)} frames")
    try:
        _Chunk.decode(msgspec.json.encode({str(number): one for number, one in enumerate(predictions)}))
    except msgspec.MsgspecError as exc:
        raise BackendError(f"the model's answer has numbers that are none: {exc}") from exc
    return predictions


async def _decode(work: Work, backend: Backend, images: Sequence[StoredImage]) -> dict[str, Frame]:
    """All at once, as far as there are threads; in order, without those that are no pictures."""
    frames: dict[str, Frame | None] = dict.fromkeys(image.id for image in images)

    async def one(image: StoredImage) -> None:
        frames[image.id] = await work.run(_frame, work.images, backend, image)

    async with create_task_group() as tasks:
        for image in images:
            tasks.start_soon(one, image)
    return {image: frame for image, frame in frames.items() if frame is not None}


def _frame(folder: Path, backend: Backend, image: StoredImage) -> Frame | None:
    try:
        data = read_bounded(inner_path(folder, image.file or ""), MAX_IMAGE_BYTES)
        header = probe(data)
        pixels = decode(data, header=header, size=backend.decode_size(header.width, header.height))
    except (FrameError, ModelError, StorageError) as exc:
        _log.warning("An image of the platform cannot be looked at image=%s why=%s", image.id, exc)
        return None
    info = FrameInfo(width=header.width, height=header.height, time=datetime.now(UTC))
    return Frame(info=info, pixels=pixels)


@asynccontextmanager
async def _opened(eyes: Eyes, model: Model) -> AsyncGenerator[Backend]:
    """The backend on the new model.

    Raises:
        TrainingError: It cannot load the model.
        PluginError: It broke its contract.
    """
    try:
        async with eyes.open(model) as backend:
            yield backend
    except ModelError as exc:
        raise TrainingError(f"the new model is published, and cannot look at the platform's images: {exc}") from exc


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _read(file: Path) -> dict[str, Prediction]:
    try:
        return _Chunk.decode(read_bounded(file, _MAX_BYTES))
    except msgspec.MsgspecError as exc:
        raise TrainingError(f"what the model found is damaged: {file}: {exc}") from exc


def _write(work: Work, file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, msgspec.json.encode(content), disk=work.kit.disk)


def _prune(folder: Path, files: set[str]) -> None:
    """Remove the pictures that the platform does not have any more."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in files:
            path.unlink(missing_ok=True)
