"""Drivers that need nothing but memory. They pass the suites, so a test may use them in place of real ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Annotated, Any

import anyio
from anyio.abc import TaskStatus
from msgspec import Meta, Struct

from loopcore.abc import Backend, Report, Score, Selector, Service, Sink, Source, Trainer
from loopcore.datasets import read_snapshot
from loopcore.errors import BusyError, DatasetError, FrameError, NotReadyError, TrainingError
from loopcore.files import write_atomic
from loopcore.options import Duration, Options
from loopcore.package import write_package
from loopcore.testing.pictures import START, make_jpeg
from loopcore.types import (
    Box,
    Confidence,
    Delivered,
    Encoded,
    Frame,
    FrameInfo,
    ModelInfo,
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


class FixedTrainerOptions(Options, frozen=True, kw_only=True):
    """How many steps, how long each takes, and the formats of the model."""

    steps: Annotated[int, Meta(ge=1)] = 3
    pause: Duration = Duration(0)
    formats: Annotated[tuple[str, ...], Meta(min_length=1)] = ("null",)


class FixedTrainer(Trainer):
    """Counts its steps, and leaves a model that says how many there were."""

    Options = FixedTrainerOptions
    options: FixedTrainerOptions
    architecture = "fixed"

    def __init__(self, options: FixedTrainerOptions) -> None:
        super().__init__(options)
        self.formats = options.formats

    def pretrained(self) -> Sequence[str]:
        return ("small", "large")

    def train(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: Callable[[], bool],
    ) -> Path:
        try:
            data = read_snapshot(snapshot)
        except DatasetError as exc:
            raise TrainingError(str(exc)) from exc
        book = workdir / "steps"
        done = int(book.read_text()) if book.exists() else 0
        while True:
            score = Score(confusion=dict.fromkeys(data.labels, (done, 0, 0)), epoch=done)
            report(done / self.options.steps, f"{done} steps", score=score, loss=1 / (done + 1))
            if done == self.options.steps or _waited(self.options.pause, stop):
                return self._leave(workdir / "package", data.labels, done)
            done += 1
            write_atomic(book, str(done).encode())

    def _leave(self, folder: Path, labels: tuple[str, ...], done: int) -> Path:
        for name in self.formats:
            package = folder if len(self.formats) == 1 else folder / name
            package.mkdir(parents=True, exist_ok=True)
            (package / "model.txt").write_text(f"{name} after {done} steps\n")
            write_package(package, ModelInfo(name="fixed", version="1", format=name, labels=labels))
        return folder


def _waited(seconds: float, stop: Callable[[], bool]) -> bool:
    """Wait so long; true at once when the training is to end."""
    until = monotonic() + seconds
    while not stop():
        if monotonic() >= until:
            return False
        Event().wait(min(0.02, max(0.0, until - monotonic())))
    return True


class AlwaysSelector(Selector):
    """Wants every frame; the reason is `always`."""

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        return ("always",)
