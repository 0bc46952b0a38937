"""Pictures, frames and samples made from a number: the same number, the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from msgspec import structs

from loopcore.datasets import Picture, Set, Snapshot, SnapshotWriter
from loopcore.imaging import encode_jpeg
from loopcore.types import (
    RGB,
    Annotation,
    Box,
    Classification,
    Frame,
    FrameInfo,
    Point,
    Prediction,
    Sample,
    SampleInfo,
    Segmentation,
    image_id,
    sample_id,
)

START = datetime(2024, 5, 17, 8, 30, tzinfo=UTC)
"""When the first of the made pictures was taken; each next one a second later."""

_SETS: tuple[Set, ...] = ("train", "train", "val", "train", "test")


def make_picture(seed: int, width: int = 64, height: int = 48) -> RGB:
    """A sky, a ground and a few rectangles on it: `uint8` `(height, width, 3)`, RGB."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, height)[:, None, None]
    top, bottom = random.integers(40, 220, (2, 3))
    pixels = np.repeat(top * (1 - ramp) + bottom * ramp, width, axis=1).astype(np.uint8)
    for _ in range(4):
        x, y = random.integers(0, width), random.integers(0, height)
        w, h = random.integers(1, max(2, width // 3)), random.integers(1, max(2, height // 3))
        pixels[y : y + h, x : x + w] = random.integers(0, 256, 3)
    return pixels


def make_jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    """`make_picture` as a JPEG."""
    return encode_jpeg(make_picture(seed, width, height))


def make_png(seed: int, width: int = 64, height: int = 48) -> bytes:
    """`make_picture` as a PNG."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(make_picture(seed, width, height)).save(file, "PNG")
    return file.getvalue()


def make_frame(seed: int, width: int = 64, height: int = 48, *, camera: str | None = "gate") -> Frame:
    """A frame whose pixels are as large as the picture is said to be."""
    time = START + timedelta(seconds=seed)
    info = FrameInfo(width=width, height=height, time=time, camera=camera, captured=time)
    return Frame(info=info, pixels=make_picture(seed, width, height))


def make_prediction(seed: int) -> Prediction:
    """One detection of each shape."""
    random = np.random.default_rng(seed)
    x, y, width, height = (float(value) for value in random.uniform(0, 20, 4))
    return Prediction(
        detections=(
            Box(label="penguin", confidence=float(random.uniform()), x=x, y=y, width=width, height=height),
            Point(label="beak", confidence=float(random.uniform()), x=x, y=y),
            Segmentation(label="floe", confidence=float(random.uniform()), points=((x, y), (x + 5, y), (x, y + 5))),
            Classification(label="day", confidence=float(random.uniform())),
        ),
        model="made",
        model_version="1",
        infer_ms=1.5,
    )


def make_sample(
    seed: int,
    *,
    media: str = "image/jpeg",
    camera: str | None = "gate",
    annotations: Sequence[Annotation] | None = None,
    **changes: Any,
) -> Sample:
    """A whole sample, its id and sizes in keeping with its image.

    Args:
        seed: Which; another seed, another sample.
        media: `image/jpeg` or `image/png`.
        camera: The camera; part of the id.
        annotations: What a human says is there.
        changes: Other fields of `SampleInfo`.
    """
    image = make_png(seed) if media == "image/png" else make_jpeg(seed)
    captured = changes.pop("captured", START + timedelta(seconds=seed))
    digest = image_id(image)
    info = SampleInfo(
        id=sample_id(digest, camera, captured),
        image_id=digest,
        media=media,
        image_bytes=len(image),
        width=64,
        height=48,
        kept=START + timedelta(seconds=seed + 1),
        camera=camera,
        captured=captured,
        source=f"made/{seed}",
        tags=("made",),
        reasons=("suite",),
        prediction=make_prediction(seed),
        annotations=None if annotations is None else tuple(annotations),
    )
    return Sample(info=structs.replace(info, **changes), image=image)


def make_snapshot(folder: Path, count: int = 8, labels: Sequence[str] = ("penguin", "floe")) -> Snapshot:
    """A snapshot of made pictures with a box of each label: three in five to train on, and two sets of one in five."""
    work = folder.with_name(f"{folder.name}.pictures")
    work.mkdir()
    writer = SnapshotWriter(folder, labels, link=True)
    writer.begin()
    for seed in range(count):
        path = work / f"{seed}.jpg"
        path.write_bytes(make_jpeg(seed))
        boxes = tuple(Box(label=label, x=4.0 * at, y=seed, width=12, height=9) for at, label in enumerate(labels))
        kind = _SETS[seed % len(_SETS)]
        writer.add(
            Picture(path=path, id=f"made-{seed}", media="image/jpeg", width=64, height=48, set=kind, annotations=boxes)
        )
    snapshot = writer.finish()
    rmtree(work)
    return snapshot
