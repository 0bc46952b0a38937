"""COLLECTING and FETCHING: the platform's images become a snapshot, and the model to start from a package."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from anyio import fail_after

from loopcore.abc import ModelRegistry, StoredImage
from loopcore.datasets import Picture, SnapshotWriter, read_snapshot, set_aside
from loopcore.errors import (
    DatasetError,
    FrameError,
    IntegrityError,
    ModelError,
    PluginError,
    StorageError,
    TrainingError,
)
from loopcore.files import inner_path, read_bounded
from loopcore.imaging import check
from loopcore.package import open_folder
from loopcore.train.work import ANSWER_S, Work
from loopcore.types import Annotation, ModelInfo

_log = logging.getLogger(__name__)

LABELLED = ("complete",)
"""The state of the images that a human has done with."""

UNUSED_S = 30 * 86_400.0
"""The images of a project that has had no training for so long are removed."""

MAX_IMAGE_BYTES = 200_000_000

_PORTION = 50  # images between two looks at whether the job has been aborted


async def collect(work: Work) -> None:
    """Make the snapshot of the platform's labelled images.

    Raises:
        TrainingError: The platform has none, or too few for what the job wants.
        RemoteError: They cannot be had now.
    """
    await work.run(_make_room, work)
    if await work.run(_is_sound, work.snapshot):
        return
    store = work.queue.images(work.job)
    with fail_after(ANSWER_S):
        ids = list(dict.fromkeys(await store.images(LABELLED)))
    if not ids:
        raise TrainingError("the platform has no labelled images for this training")
    got: dict[str, StoredImage] = {}

    def hear(image: StoredImage) -> None:
        got[image.id] = image
        work.tell(0.9 * len(got) / len(ids))

    await store.fetch(ids, work.images, hear)
    if absent := [image for image in ids if image not in got]:
        raise PluginError(f"the platform says nothing of {len(absent)} of {len(ids)} images, such as {absent[0]!r}")
    pictures = await _pictures(work, [got[image] for image in ids])
    missing = len(ids) - len(pictures)
    if missing:
        _log.warning(
            "Images of a training are missing or broken job=%s missing=%d of=%d", work.job.id, missing, len(ids)
        )
    if not any(picture.set == "train" for picture in pictures):
        raise TrainingError(f"there are no images to train on: of {len(ids)}, {missing} could not be had")
    pictures = _with_validation(work, pictures)
    sets = Counter(picture.set for picture in pictures)
    await work.note(images={"train": sets["train"], "val": sets["val"], "test": sets["test"], "missing": missing})
    await _write(work, pictures)


async def recollect(work: Work) -> None:
    """Make sure that the snapshot is as it was written, and make it again if not."""
    if not await work.run(_is_sound, work.snapshot):
        _log.warning("The snapshot of a training is damaged and is made again job=%s", work.job.id)
        await collect(work)


async def fetch(work: Work) -> None:
    """Get the model that the training starts from, if it is one of the platform's.

    Raises:
        TrainingError: The platform does not have it in a format that the trainer takes.
        RemoteError: It cannot be had now.
    """
    base = work.job.base
    if base is None or base in work.kit.info.pretrained or work.base.exists():
        return
    registry = work.queue.models(work.job)
    info = await _find(registry, base, work.kit.info.formats)
    draft = work.base.with_name("base.draft")
    await work.run(_empty, draft)
    try:
        await registry.fetch(info, info.format, draft)
        await work.run(open_folder, draft)
    except IntegrityError:
        raise
    except ModelError as exc:
        raise TrainingError(f"the model {base!r} to start from cannot be used: {exc}") from exc
    await work.run(work.kit.disk.rename, draft, work.base)


async def refetch(work: Work) -> None:
    """Make sure that the model to start from is as it was downloaded, and download it again if not."""
    if await work.run(work.base.exists) and not await work.run(_is_whole, work.base):
        _log.warning("The model to start from is damaged and is downloaded again job=%s", work.job.id)
        await fetch(work)


async def _find(registry: ModelRegistry, base: str, formats: Sequence[str]) -> ModelInfo:
    with fail_after(ANSWER_S):
        found = [info for info in await registry.list() if _is_called(info, base)]
    if not found:
        raise TrainingError(f"the platform has no model {base!r} to start from")
    fitting = [info for name in formats for info in found if info.format == name]
    if not fitting:
        has = ", ".join(sorted({info.format for info in found}))
        raise TrainingError(
            f"the platform has the model {base!r} as {has}, the trainer starts from {', '.join(formats)}"
        )
    return fitting[0]


def _is_called(info: ModelInfo, name: str) -> bool:
    """By its id, its version, or the id that a platform has written down under its own name in `extra`."""
    theirs = [words.get("id") for words in info.extra.values() if isinstance(words, Mapping)]
    return name in (info.id, info.version, *theirs)


async def _pictures(work: Work, images: Sequence[StoredImage]) -> list[Picture]:
    """Those of the images that there are, checked."""
    labels = set(work.job.labels)
    pictures: list[Picture] = []
    for start in range(0, len(images), _PORTION):
        pictures += await work.run(_portion, work, images[start : start + _PORTION], labels)
        work.tell(0.9 + 0.05 * start / len(images))
    return pictures


def _portion(work: Work, images: Sequence[StoredImage], labels: set[str]) -> list[Picture]:
    found = (_picture(work.images, image, labels) for image in images)
    return [picture for picture in found if picture is not None]


def _picture(folder: Path, image: StoredImage, labels: set[str]) -> Picture | None:
    if image.file is None:
        _log.info("An image of a training is missing image=%s why=%s", image.id, image.missing)
        return None
    try:
        path = inner_path(folder, image.file)
    except ModelError as exc:
        raise PluginError(f"the platform puts the image {image.id!r} into {image.file!r}, outside its folder") from exc
    try:
        header = check(read_bounded(path, MAX_IMAGE_BYTES))
    except (FrameError, StorageError) as exc:
        _log.warning("An image of a training is broken image=%s why=%s", image.id, exc)
        path.unlink(missing_ok=True)  # so that it is brought again the next time
        return None
    return Picture(
        path=path,
        id=image.id,
        media=header.media,
        width=header.width,
        height=header.height,
        set=image.set or "train",
        annotations=_wanted(image.annotations, labels),
        tags=image.tags,
    )


def _wanted(annotations: tuple[Annotation, ...] | None, labels: set[str]) -> tuple[Annotation, ...] | None:
    """Without the labels that this training is not about."""
    if annotations is None or not labels:
        return annotations
    return tuple(one for one in annotations if one.label in labels)


def _with_validation(work: Work, pictures: list[Picture]) -> list[Picture]:
    if any(picture.set == "val" for picture in pictures):
        return pictures
    if work.job.parameters.get("compute_validation_set") not in (True, "true"):
        return pictures
    try:
        return set_aside(pictures)
    except DatasetError as exc:
        raise TrainingError(str(exc)) from exc


async def _write(work: Work, pictures: Sequence[Picture]) -> None:
    writer = SnapshotWriter(work.snapshot, _labels(work, pictures), link=True, disk=work.kit.disk)
    await work.run(writer.begin)
    for start in range(0, len(pictures), _PORTION):
        await work.run(_add, writer, pictures[start : start + _PORTION])
        work.tell(0.95 + 0.05 * start / len(pictures))
    await work.run(writer.finish)


def _add(writer: SnapshotWriter, pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        writer.add(picture)


def _labels(work: Work, pictures: Sequence[Picture]) -> Sequence[str]:
    """Those of the job; of a job that names none, all that were annotated."""
    return work.job.labels or sorted({one.label for picture in pictures for one in picture.annotations or ()})


def _is_sound(folder: Path) -> bool:
    """Whether there is a whole snapshot; what is damaged is removed."""
    if not folder.exists():
        return False
    try:
        read_snapshot(folder)
    except DatasetError:
        _remove(folder)
        return False
    return True


def _is_whole(package: Path) -> bool:
    try:
        open_folder(package)
    except ModelError:
        _remove(package)
        return False
    return True


def _make_room(work: Work) -> None:
    """Remove what earlier jobs have left, and make the folders of this one."""
    folders = [work.folder.parent, work.images.parent]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for old in work.folder.parent.iterdir() if not work.kit.keep_old else ():
            if old != work.folder:
                _remove(old)
        for old in work.images.parent.iterdir():
            if old != work.images and time.time() - old.stat().st_mtime > UNUSED_S:
                _remove(old)
        work.images.mkdir(exist_ok=True)
        os.utime(work.images)
        work.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot make the folders of a training: {exc.strerror or exc}") from exc


def _empty(folder: Path) -> None:
    _remove(folder)
    folder.mkdir(parents=True)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
