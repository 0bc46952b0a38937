"""Frames through infer into collect: what stands behind every source and every route, as `Service`.

One frame is one hop to a worker thread: decode, infer and select happen there together. What is kept waits for the
outbox, and for nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from loopcore import imaging
from loopcore.abc import Backend
from loopcore.collect.owed import Owed
from loopcore.errors import FrameError, LoopcoreError, PluginError, StorageError
from loopcore.infer.batching import Batcher
from loopcore.infer.serving import Serving
from loopcore.infer.threads import Threads
from loopcore.types import (
    RGB,
    Annotation,
    Answer,
    Encoded,
    Frame,
    FrameInfo,
    Image,
    Keep,
    ModelInfo,
    Pixels,
    Prediction,
    SampleInfo,
    image_id,
    merged,
    sample_id,
)

if TYPE_CHECKING:
    from loopcore.collect.outbox import Outbox
    from loopcore.collect.selection import Selection
    from loopcore.hooks import Hooks

_log = logging.getLogger(__name__)

_JSON = msgspec.json.Encoder()
_PREDICTION = msgspec.json.Decoder(Prediction)
_SAMPLE = msgspec.json.Decoder(SampleInfo)

UNSUPPORTED = 415
"""The status of a `FrameError` for a media type that imaging does not read."""


class Controls(Struct, frozen=True):
    """What the node can be told, handed to the pipeline so that `Service` is complete."""

    set_model: Callable[[str], Awaitable[None]]
    reload: Callable[[], Awaitable[None]]
    hold_updates: Callable[[bool], Awaitable[None]]
    set_outbox: Callable[[bool], Awaitable[None]]
    status: Callable[[], Awaitable[dict[str, Any]]]


class _Call(Struct):
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


class _Seen(Struct):
    info: FrameInfo
    prediction: Prediction
    sample: tuple[SampleInfo, bytes] | None = None


class Pipeline:
    """The node's `Service`.

    Args:
        serving: The model.
        selection: The selectors.
        outbox: Where samples go.
        hooks: Who else wants to know.
        controls: What the node does when it is told to.
        max_waiting: How many frames may wait for the model; one more is a `BusyError`.
        max_pixels: Larger pictures are refused before they are decoded.
        threads: Where frames are worked on.
        at_once: How many calls of the backend may run at a time, at most.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        selection: Selection,
        outbox: Outbox,
        hooks: Hooks,
        controls: Controls,
        threads: Threads,
        max_waiting: int = 64,
        max_pixels: int = 100_000_000,
        at_once: int = 2,
    ) -> None:
        self._serving = serving
        self._selection = selection
        self._outbox = outbox
        self._hooks = hooks
        self._controls = controls
        self._max_pixels = max_pixels
        self._at_once = at_once
        self._batcher: Batcher[Backend, _Call, _Seen] = Batcher(
            serving.borrow, self._look, threads=threads, max_waiting=max_waiting
        )
        self._counts: Counter[str] = Counter()
        self._fault = ""
        self._owed = Owed()

    def fit(self, backend: Backend) -> None:
        """Take note of how much the backend that serves now can do at a time."""
        overlap = min(backend.max_overlap, self._at_once)
        self._batcher.set_capacity(max_batch=max(1, backend.max_batch), overlap=max(1, overlap))

    async def predict(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        keep: Keep = Keep.SELECTED,
    ) -> Answer:
        self._counts["frames"] += 1
        self._owed.forget_old()
        try:
            call = _call(image, camera, captured, tags, source, keep)
            seen = await self._batcher.submit(call)
            sample = await self._accept_wanted(*seen.sample) if seen.sample else None
        except LoopcoreError as exc:
            self._note(exc)
            raise
        self._hooks.prediction_made(seen.info, seen.prediction)
        return Answer(
            prediction=seen.prediction,
            width=seen.info.width,
            height=seen.info.height,
            sample_id=sample.id if sample else None,
            reasons=sample.reasons if sample else (),
        )

    def select(self, info: FrameInfo, prediction: Prediction) -> tuple[str, ...]:
        return self._selection.consider(info, prediction, None)

    async def keep(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        prediction: Prediction | None = None,
        annotations: Sequence[Annotation] | None = None,
        reasons: Sequence[str] = (),
        state: str | None = None,
        urgent: bool = False,
    ) -> str:
        call = _call(image, camera, captured, tags, source, Keep.ALL)
        info, encoded = await to_thread.run_sync(self._stored, call)
        sample = _sample(
            info,
            encoded,
            prediction,
            merged((), tuple(reasons)),
            annotations=None if annotations is None else tuple(annotations),
            state=state,
            urgent=urgent,
        )
        try:
            _SAMPLE.decode(_JSON.encode(sample))
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise FrameError(f"what is said of the picture cannot be written down: {exc}", status=400) from exc
        return (await self._accept(sample, encoded.data)).id

    def model(self) -> ModelInfo | None:
        model = self._serving.model
        return model.info if model else None

    async def set_model(self, choice: str) -> None:
        await self._controls.set_model(choice)

    async def reload(self) -> None:
        await self._controls.reload()

    async def hold_updates(self, hold: bool) -> None:
        await self._controls.hold_updates(hold)

    async def set_outbox(self, sending: bool) -> None:
        await self._controls.set_outbox(sending)

    async def status(self) -> dict[str, Any]:
        return await self._controls.status()

    def report(self) -> dict[str, Any]:
        """The pipeline's own part of the status: frames since the start, by what became of them."""
        counts = dict(self._counts)
        return {
            "frames": counts.pop("frames", 0),
            "kept": counts.pop("kept", 0),
            "unwanted": counts.pop("unwanted", 0),
            "failed": counts,
            "waiting": self._batcher.waiting,
            "running": self._batcher.running,
        }

    def _note(self, exc: LoopcoreError) -> None:
        self._counts[type(exc).__name__] += 1
        if isinstance(exc, PluginError) and str(exc) != self._fault:
            self._fault = str(exc)
            _log.error("A plugin broke its contract on a frame: %s", exc, exc_info=exc)

    async def _accept_wanted(self, sample: SampleInfo, data: bytes) -> SampleInfo | None:
        if not self._outbox.wanted(sample):
            self._counts["unwanted"] += 1
            return None
        try:
            accepted = await self._accept(sample, data)
        except StorageError:
            self._owed.add(sample)
            raise
        self._owed.settle(sample.id)
        return accepted

    async def _accept(self, sample: SampleInfo, data: bytes) -> SampleInfo:
        accepted = await self._outbox.accept(sample, data)
        self._counts["kept"] += 1
        self._hooks.sample_kept(accepted)
        return accepted

    # What follows runs in worker threads.

    def _look(self, backend: Backend, calls: Sequence[_Call]) -> Sequence[_Seen | Exception]:
        outcomes: list[_Seen | Exception] = []
        opened = [_attempt(self._open, call, backend) for call in calls]
        answers = iter(_infer(backend, [one.frame for one in opened if isinstance(one, _Opened)]))
        for call, one in zip(calls, opened, strict=True):
            found = next(answers) if isinstance(one, _Opened) else one
            if isinstance(one, _Opened) and isinstance(found, Prediction):
                outcomes.append(_attempt(self._judge, call, one, found))
            elif isinstance(found, Exception):
                outcomes.append(found)
        return outcomes

    def _open(self, call: _Call, backend: Backend) -> _Opened:
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

    def _judge(self, call: _Call, opened: _Opened, prediction: Prediction) -> _Seen:
        info = opened.frame.info
        if call.keep is Keep.NONE:
            return _Seen(info, prediction)
        frame = opened.frame if self._selection.needs_image else None
        reasons = self._selection.consider(info, prediction, frame)
        wanted = bool(reasons) or call.keep is Keep.ALL
        if not wanted and not self._owed:
            return _Seen(info, prediction)
        encoded = _encoded(opened.image)
        sample = _sample(info, encoded, prediction, reasons)
        owed = self._owed.reasons(sample.id)
        if not wanted and owed is None:
            return _Seen(info, prediction)
        return _Seen(info, prediction, (replace(sample, reasons=merged(owed or (), reasons)), encoded.data))

    def _stored(self, call: _Call) -> tuple[FrameInfo, Encoded]:
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


def _frame_info(call: _Call, width: int, height: int) -> FrameInfo:
    return FrameInfo(
        width=width,
        height=height,
        time=call.time,
        camera=call.camera,
        captured=call.captured,
        source=call.source,
        tags=call.tags,
    )


def _call(
    image: Image, camera: str | None, captured: datetime | None, tags: Sequence[str], source: str | None, keep: Keep
) -> _Call:
    if captured is not None:
        if captured.tzinfo is None:
            raise FrameError(f"the capture time {captured.isoformat()} has no time zone; write it with one", status=400)
        try:
            captured = captured.astimezone(UTC)
        except OverflowError as exc:
            raise FrameError(f"the capture time {captured.isoformat()} is not a time in UTC", status=400) from exc
    words = tuple(_text(tag) for tag in tags)
    return _Call(
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


def _sample(
    info: FrameInfo, image: Encoded, prediction: Prediction | None, reasons: tuple[str, ...], **more: Any
) -> SampleInfo:
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
