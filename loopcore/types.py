"""Neutral data: what the parts of loopcore hand to each other. Frozen, typed, without I/O.

Boxes and points are floats in pixels of the frame as received after EXIF rotation, origin top left. Confidence is
0 to 1. Images are `uint8` arrays `(height, width, 3)`, RGB. Times are aware and in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from msgspec import Meta, Struct, field
from msgspec.structs import replace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RGB: TypeAlias = NDArray[np.uint8]
else:
    RGB = Any

Confidence: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Digest: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Shape(Struct, frozen=True, kw_only=True, tag_field="kind"):
    label: str
    confidence: Confidence = 1.0


class Box(_Shape, frozen=True, kw_only=True, tag="box"):
    """An axis-parallel box; `x`, `y` is its top left corner. It may reach over the edge of the frame."""

    x: float
    y: float
    width: float
    height: float


class Point(_Shape, frozen=True, kw_only=True, tag="point"):
    """A place without extent."""

    x: float
    y: float


class Segmentation(_Shape, frozen=True, kw_only=True, tag="segmentation"):
    """A closed outline; the last point is joined to the first."""

    points: Annotated[tuple[tuple[float, float], ...], Meta(min_length=3)]


class Classification(_Shape, frozen=True, kw_only=True, tag="classification"):
    """A label for the whole frame."""


Detection: TypeAlias = Box | Point | Segmentation | Classification
"""One thing found by a model."""

Annotation: TypeAlias = Detection
"""One thing that a human says is there: the same shapes, with confidence 1."""


class Prediction(Struct, frozen=True, kw_only=True):
    """A backend's answer for one frame.

    Attributes:
        detections: What was found, in the backend's order.
        model: The name of the model that answered; empty if the source brought the prediction without one.
        model_version: Its version.
        infer_ms: How long the model ran for this frame, in milliseconds, without decoding the picture.
        extra: What the neutral shapes cannot hold; passed through.
    """

    detections: tuple[Detection, ...] = ()
    model: str = ""
    model_version: str = ""
    infer_ms: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class FrameInfo(Struct, frozen=True, kw_only=True):
    """What is known of a frame besides its pixels.

    Attributes:
        width: Pixels across, of the frame as received after EXIF rotation.
        height: Pixels down, likewise.
        time: The frame's time: `captured` where known, else when it was received. Selectors live by this clock.
        camera: Which camera took it; `None` if nobody said.
        captured: When it was taken, as said by the caller or the medium; `None` if nobody said.
        source: Where it came from, in the words of whoever brought it (a path, a device), or `None`.
        tags: The caller's tags.
    """

    width: int
    height: int
    time: datetime
    camera: str | None = None
    captured: datetime | None = None
    source: str | None = None
    tags: tuple[str, ...] = ()


class Frame(Struct, frozen=True, kw_only=True, eq=False):
    """One image with its camera, time and source.

    `pixels` may be smaller than `info.width` × `info.height`: a JPEG is decoded at the smallest scale that still
    covers the model's input. Nobody writes into it.
    """

    info: FrameInfo
    pixels: RGB


class Encoded(Struct, frozen=True):
    """An image as the bytes of a file; `media` is `image/jpeg` or `image/png`."""

    data: bytes
    media: str


class Pixels(Struct, frozen=True, eq=False):
    """An image as an array, `uint8` `(height, width, 3)`, RGB; encoded once, and only when it is kept."""

    array: RGB


Image: TypeAlias = Encoded | Pixels


class Keep(StrEnum):
    """Which frames of a call may become samples."""

    SELECTED = "selected"
    """Those that a selector wants."""
    ALL = "all"
    NONE = "none"


class Answer(Struct, frozen=True, kw_only=True):
    """What `Service.predict` returns.

    Attributes:
        prediction: What the model found.
        width: Pixels across, of the frame as received after EXIF rotation.
        height: Pixels down, likewise.
        sample_id: The id of the sample, durable by now; `None` if the frame was not kept.
        reasons: Why it was kept.
    """

    prediction: Prediction
    width: int
    height: int
    sample_id: str | None = None
    reasons: tuple[str, ...] = ()


class SampleInfo(Struct, frozen=True, kw_only=True):
    """A kept frame without its pixels.

    Attributes:
        id: `sample_id()` of image id, camera and capture time; 64 lower-case hexadecimal digits.
        image_id: SHA-256 of the image bytes as they came.
        media: Media type of the image.
        image_bytes: Size of the image.
        width: Pixels across, after EXIF rotation.
        height: Pixels down, likewise.
        kept: When it was accepted.
        camera: See `FrameInfo`.
        captured: See `FrameInfo`.
        source: See `FrameInfo`.
        tags: The caller's tags, without repetition, in order of arrival.
        reasons: Why it was kept, likewise.
        prediction: What the model found; `None` if no model looked.
        annotations: What a human says is there; `None` if nobody looked (an empty tuple says: nothing is there).
        state: Where the platform should put the image, in its own words; `None` leaves it to the platform.
        urgent: Sent before all that is not urgent.
    """

    id: Digest
    image_id: Digest
    media: str
    image_bytes: int
    width: int
    height: int
    kept: datetime
    camera: str | None = None
    captured: datetime | None = None
    source: str | None = None
    tags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    prediction: Prediction | None = None
    annotations: tuple[Annotation, ...] | None = None
    state: str | None = None
    urgent: bool = False


class Sample(Struct, frozen=True, kw_only=True):
    """A kept frame: what the outbox holds and a sink sends."""

    info: SampleInfo
    image: bytes


class Delivered(Struct, frozen=True, kw_only=True, tag="delivered"):
    """The sink's peer has the sample for good.

    Attributes:
        remote_id: The peer's name for it, if it gave one.
        duplicate: The peer had it before.
    """

    remote_id: str | None = None
    duplicate: bool = False


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """The sink's peer refused this one sample and will always refuse it; `why` is the peer's answer."""

    why: str


Receipt: TypeAlias = Delivered | Refused
"""A sink's answer for one sample."""


class ModelFile(Struct, frozen=True, kw_only=True):
    """One file of a model package: `name` is relative to the package, with `/`, and stays inside it."""

    name: str
    size: Annotated[int, Meta(ge=0)]
    sha256: Digest


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What is known of a model without opening it.

    Attributes:
        name: For people and for the store; letters, digits, `.`, `_` and `-`.
        version: Which of the models of that name, likewise.
        format: What the files are: `onnx`, `onnx_int8`, `eim` …
        labels: Class names in the order of the model's channels.
        id: SHA-256 over the names and hashes of the files: two models are the same if their ids are.
        files: The files of the package, without `model.json`.
        spec: How to feed it and how to read its answer, in the words of the backend of this format.
        extra: What else the maker wrote down; passed through. Under a platform's own key, `id` is what the platform
            calls the model; under `origin` are the ids of the packages that this one was made from.
    """

    name: str
    version: str
    format: str
    labels: tuple[str, ...] = ()
    id: str = ""
    files: tuple[ModelFile, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Model(Struct, frozen=True, kw_only=True):
    """A model on this disk: metadata, and the folder that holds its files."""

    info: ModelInfo
    path: Path


class Problem(Struct, frozen=True, kw_only=True):
    """Something that `loopcore check --online` found.

    Attributes:
        message: What is wrong and what to do, in one sentence.
        fatal: `False` for a warning: the node would work.
    """

    message: str
    fatal: bool = True


def image_id(data: bytes) -> str:
    """The SHA-256 of an image's bytes, in hexadecimal."""
    return sha256(data).hexdigest()


def sample_id(image: str, camera: str | None, captured: datetime | None) -> str:
    """The SHA-256 of image id, camera and capture time, each followed by a zero byte.

    Args:
        image: The image id.
        camera: The camera, or `None`.
        captured: The capture time as said by the caller or the medium, aware; `None` if nobody said. The same
            instant gives the same id in every time zone.
    """
    stamp = str((captured - _EPOCH) // timedelta(microseconds=1)) if captured is not None else ""
    return sha256(b"".join(part.encode() + b"\0" for part in (image, camera or "", stamp))).hexdigest()


def merged(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """Both, in order of arrival, without repetition: how tags and reasons of a sample accepted again come together."""
    return tuple(dict.fromkeys((*old, *new)))


def joined(old: SampleInfo, new: SampleInfo) -> SampleInfo:
    """What is known of a sample that is accepted again: tags and reasons of both, and the newest a human said.

    The prediction and the time of the first acceptance stay, so that the same frame again changes nothing.
    """
    return replace(
        old,
        tags=merged(old.tags, new.tags),
        reasons=merged(old.reasons, new.reasons),
        prediction=old.prediction or new.prediction,
        annotations=old.annotations if new.annotations is None else new.annotations,
        state=new.state or old.state,
        urgent=old.urgent or new.urgent,
    )
