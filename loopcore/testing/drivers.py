"""Drivers that need nothing but memory. They pass the suites, so a test may use them in place of real ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import anyio
from anyio.abc import TaskStatus
from msgspec import Meta, Struct

from loopcore.abc import Backend, Selector, Service, Sink, Source
from loopcore.errors import BusyError, FrameError, NotReadyError
from loopcore.options import Options
from loopcore.testing.pictures import START, make_jpeg
from loopcore.types import (
    Box,
    Confidence,
    Delivered,
    Encoded,
    Frame,
    FrameInfo,
    Prediction,
    Receipt,
    Sample,
)

Fraction = Annotated[float, Meta(ge=0, le=1)]


class MemorySink(Sink):
    """Keeps the samples in a dictionary.

    Attributes:
        samples: What was delivered, by id; of a sample that came again, the newest.
        errors: Raised by the next calls of `send`, one each, in order.
    """

    max_batch = 8
    in_flight = 2

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.samples: dict[str, Sample] = {}
        self.errors: deque[Exception] = deque()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.popleft()
        receipts = [Delivered(remote_id=sample.info.id, duplicate=sample.info.id in self.samples) for sample in samples]
        self.samples.update((sample.info.id, sample) for sample in samples)
        return receipts


class MemorySourceOptions(Options, frozen=True, kw_only=True):
    """How many pictures, how large, and whose."""

    count: Annotated[int, Meta(ge=0)] = 3
    width: Annotated[int, Meta(ge=1)] = 64
    height: Annotated[int, Meta(ge=1)] = 48
    camera: str | None = "memory"


class MemorySource(Source):
    """Makes the same few pictures each time, a second of their own time apart, and ends."""

    Options = MemorySourceOptions
    options: MemorySourceOptions

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        for index in range(self.options.count):
            image = Encoded(make_jpeg(index, self.options.width, self.options.height), "image/jpeg")
            while not await self._hand(service, image, index):
                pass

    async def _hand(self, service: Service, image: Encoded, index: int) -> bool:
        try:
            await service.predict(
                image, camera=self.options.camera, captured=START + timedelta(seconds=index), source=f"memory/{index}"
            )
        except (BusyError, NotReadyError) as exc:
            await anyio.sleep(exc.retry_after_s)
            return False
        except FrameError:
            pass
        return True


class NullBackend(Backend):
    """Finds nothing in any frame, for models of every format that is called `null`."""

    formats = ("null",)
    max_batch = 8
    max_overlap = 2

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        return [self._found(frame.info) for frame in frames]

    def _found(self, info: FrameInfo) -> Prediction:
        return Prediction(model=self.model.info.name, model_version=self.model.info.version, infer_ms=0.0)


class FixedBox(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A box by its share of the frame's width and height."""

    label: str = "thing"
    confidence: Confidence = 0.5
    x: Fraction = 0.25
    y: Fraction = 0.25
    width: Fraction = 0.5
    height: Fraction = 0.5


class FixedBackendOptions(Options, frozen=True, kw_only=True):
    """What is found in every frame."""

    boxes: tuple[FixedBox, ...] = (FixedBox(),)


class FixedBackend(NullBackend):
    """Finds the same boxes in every frame, in the pixels of that frame."""

    Options = FixedBackendOptions
    options: FixedBackendOptions

    def _found(self, info: FrameInfo) -> Prediction:
        boxes = tuple(
            Box(
                label=box.label,
                confidence=box.confidence,
                x=box.x * info.width,
                y=box.y * info.height,
                width=box.width * info.width,
                height=box.height * info.height,
            )
            for box in self.options.boxes
        )
        return Prediction(
            detections=boxes, model=self.model.info.name, model_version=self.model.info.version, infer_ms=0.0
        )


class AlwaysSelector(Selector):
    """Wants every frame; the reason is `always`."""

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        return ("always",)
