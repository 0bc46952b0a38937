"""What is done with a frame in a worker thread: decode, infer, select, and encode what is to be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from loopcore import imaging
from loopcore.abc import Backend
from loopcore.errors import FrameError, LoopcoreError, PluginError
from loopcore.types import (
    RGB,
    Encoded,
    Frame,
    FrameInfo,
    Image,
    Keep,
    Pixels,
    Prediction,
    SampleInfo,
    image_id,
    merged,
    sample_id,
)

if TYPE_CHECKING:
    from loopcore.collect.owed import Owed
    from loopcore.collect.selection import Selection
    from loopcore.hooks import Hooks

_JSON = msgspec.json.Encoder()
_PREDICTION = msgspec.json.Decoder(Prediction)

UNSUPPORTED = 415
"""The status of a `FrameError` for a media type that imaging does not read."""


class Call(Struct):
    """A frame as it was handed in."""

    image: Image
    time: datetime
    camera: str | None
    captured: datetime | None
    tags: tuple[str, ...]
    source: str | None
    keep: Keep


class _Opened(Struct):
    frame: Frame
    image: Image


class Seen(Struct):
    """What became of a frame; `sample` if it is to be kept."""

    info: FrameInfo
    prediction: Prediction
    sample: tuple[SampleInfo, bytes] | None = None


class Looker:
    """Looks at frames with the model and the selectors. All methods block, and may run in several threads at once.

    Args:
        selection: The selectors.
        hooks: Plugins that read what the core does not.
        owed: The samples that the disk has refused.
        max_pixels: Larger pictures are refused before they are decoded.
    """

    def __init__(self, selection: Selection, hooks: Hooks, owed: Owed, max_pixels: int) -> None:
        self._selection = selection
        self._hooks = hooks
        self._owed = owed
        self._max_pixels = max_pixels

    def look(self, backend: Backend, calls: Sequence[Call]) -> Sequence[Seen | Exception]:
        """What became of each frame, in order; an exception is that frame's own."""
        outcomes: list[Seen | Exception] = []
        opened = [_attempt(self._open, call, backend) for call in calls]
        answers = iter(_infer(backend, [one.frame for one in opened if isinstance(one, _Opened)]))
        for call, one in zip(calls, opened, strict=True):
            found = next(answers) if isinstance(one, _Opened) else one
            if isinstance(one, _Opened) and isinstance(found, Prediction):
                outcomes.append(_attempt(self._judge, call, one, found))
            elif isinstance(found, Exception):
                outcomes.append(found)
        return outcomes

    def _open(self, call: Call, backend: Backend) -> _Opened:
        image = call.image
        if isinstance(image, Encoded):
            known = self._probe(image)
            if isinstance(known, imaging.Header):
                size = _decode_size(backend, known)
                pixels = imaging.decode(image.data, header=known, size=size)
                info = _frame_info(call, known.width, known.height)
                return _Opened(Frame(info=info, pixels=pixels), Encoded(image.data, known.media))
            image = known
        height, width = _shape(image.array)
        pixels = np.ascontiguousarray(image.array)
        return _Opened(Frame(info=_frame_info(call, width, height), pixels=pixels), image)

    def _probe(self, image: Encoded) -> imaging.Header | Pixels:
        """What a picture says of itself, or its pixels where only a plugin can read it."""
        try:
            return imaging.probe(image.data, max_pixels=self._max_pixels)
        except FrameError as exc:
            pixels = self._hooks.decode_frame(image.data, image.media) if exc.status == UNSUPPORTED else None
            if pixels is None:
                raise
            return Pixels(pixels)

    def _judge(self, call: Call, opened: _Opened, prediction: Prediction) -> Seen:
        info = opened.frame.info
        if call.keep is Keep.NONE:
            return Seen(info, prediction)
        frame = opened.frame if self._selection.needs_image else None
        reasons = self._selection.consider(info, prediction, frame)
        wanted = bool(reasons) or call.keep is Keep.ALL
        if not wanted and not self._owed:
            return Seen(info, prediction)
        encoded = _encoded(opened.image)
        sample = make_sample(info, encoded, prediction, reasons)
        owed = self._owed.reasons(sample.id)
        if not wanted and owed is None:
            return Seen(info, prediction)
        return Seen(info, prediction, (replace(sample, reasons=merged(owed or (), reasons)), encoded.data))

    def stored(self, call: Call) -> tuple[FrameInfo, Encoded]:
        """An image that is kept as it is, without a model: only its header is read."""
        image = call.image
        if isinstance(image, Encoded):
            known = self._probe(image)
            if isinstance(known, imaging.Header):
                return _frame_info(call, known.width, known.height), Encoded(image.data, known.media)
            image = known
        height, width = _shape(image.array)
        return _frame_info(call, width, height), _encoded(image)


def _attempt(step: Callable[..., Any], *arguments: Any) -> Any:
    """A step for one frame of a batch: its error is this frame's own and leaves the others alone."""
    try:
        return step(*arguments)
    except LoopcoreError as exc:
        return exc


def _infer(backend: Backend, frames: Sequence[Frame]) -> Sequence[Prediction | Exception]:
    """Run the model; where a batch fails, each of its frames alone, so that one bad frame harms no other."""
    if not frames:
        return ()
    try:
        return _checked(backend.infer(frames), len(frames))
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - the driver guard: what is unforeseen is the plugin's fault
        if len(frames) > 1:
            return [_infer(backend, [frame])[0] for frame in frames]
        return (exc if isinstance(exc, LoopcoreError) else _broken(exc),)


def _checked(predictions: Sequence[Prediction], count: int) -> Sequence[Prediction]:
    if len(predictions) != count or not all(isinstance(one, Prediction) for one in predictions):
        raise PluginError(f"for {count} frames the backend gave {len(predictions)} answers, or such that are none")
    for one in predictions:  # what cannot be read again, such as NaN, would be lost on its way to the sinks
        _PREDICTION.decode(_JSON.encode(one))
    return predictions


def _decode_size(backend: Backend, header: imaging.Header) -> tuple[int, int]:
    try:
        return backend.decode_size(header.width, header.height)
    except LoopcoreError:
        raise
    except (Exception, SystemExit) as exc:
        raise _broken(exc) from exc  # the driver guard


def _broken(exc: BaseException) -> PluginError:
    fault = PluginError(f"the backend failed on a frame: {exc!r}")
    fault.__cause__ = exc
    return fault


def _frame_info(call: Call, width: int, height: int) -> FrameInfo:
    return FrameInfo(
        width=width,
        height=height,
        time=call.time,
        camera=call.camera,
        captured=call.captured,
        source=call.source,
        tags=call.tags,
    )


def make_call(
    image: Image, camera: str | None, captured: datetime | None, tags: Sequence[str], source: str | None, keep: Keep
) -> Call:
    """A frame as it was handed in, with its time in UTC and its names as they can be stored.

    Raises:
        FrameError: The capture time has no time zone, or is no time in UTC.
    """
    if captured is not None:
        if captured.tzinfo is None:
            raise FrameError(f"the capture time {captured.isoformat()} has no time zone; write it with one", status=400)
        try:
            captured = captured.astimezone(UTC)
        except OverflowError as exc:
            raise FrameError(f"the capture time {captured.isoformat()} is not a time in UTC", status=400) from exc
    words = tuple(_text(tag) for tag in tags)
    return Call(
        image=image,
        time=captured or datetime.now(UTC),
        camera=None if camera is None else _text(camera),
        captured=captured,
        tags=words,
        source=None if source is None else _text(source),
        keep=keep,
    )


def _text(text: str) -> str:
    """As it can be stored: names of files need not be UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _shape(array: RGB) -> tuple[int, int]:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != "uint8" or not array.size:
        raise FrameError(f"an image is uint8 (height, width, 3), not {array.dtype} {array.shape}", status=400)
    return array.shape[0], array.shape[1]


def _encoded(image: Image) -> Encoded:
    return image if isinstance(image, Encoded) else Encoded(imaging.encode_jpeg(image.array), "image/jpeg")


def make_sample(
    info: FrameInfo, image: Encoded, prediction: Prediction | None, reasons: tuple[str, ...], **more: Any
) -> SampleInfo:
    """The sample that a frame becomes; its id follows from the image, the camera and the capture time."""
    digest = image_id(image.data)
    return SampleInfo(
        id=sample_id(digest, info.camera, info.captured),
        image_id=digest,
        media=image.media,
        image_bytes=len(image.data),
        width=info.width,
        height=info.height,
        kept=datetime.now(UTC),
        camera=info.camera,
        captured=info.captured,
        source=info.source,
        tags=merged((), info.tags),
        reasons=reasons,
        prediction=prediction,
        **more,
    )
