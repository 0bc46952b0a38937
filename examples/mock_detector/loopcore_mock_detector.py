"""The backend `mock`: runs the models of format `mocked` that a Loop's demo project serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Self

import msgspec
from anyio import Path
from msgspec import Meta, Struct

from loopcore import Options
from loopcore.abc import Backend
from loopcore.errors import BackendError, ModelError
from loopcore.types import Box, Classification, Detection, Frame, FrameInfo, Point, Prediction, Segmentation


class MockOptions(Options, frozen=True, kw_only=True):
    """Options of the backend `mock`.

    Attributes:
        confidence: Of everything that it finds; by default within what the selector `uncertain` wants.
    """

    confidence: Annotated[float, Meta(ge=0, le=1)] = 0.5


class Category(Struct):
    """What the Loop says of a label in a model's `model.json`."""

    name: str
    type: str = "box"


class Loop(Struct):
    """What the plugin `learningloop` keeps of that file in `ModelInfo.extra`."""

    categories: list[Category] = []


class MockBackend(Backend):
    """Finds one thing of each category in the middle of every frame, in the shape that the category has."""

    Options = MockOptions
    formats = ("mocked",)
    max_batch = 8
    options: MockOptions

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            text = await Path(self.model.path / "file_1.txt").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelError(f"{self.model.info.name} {self.model.info.version} has no readable file_1.txt") from exc
        if not text.startswith("content of file one"):
            raise ModelError(f"{self.model.info.name} {self.model.info.version} is not a mocked model")
        self._categories = self._read_categories()
        yield self
        del self._categories

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if not hasattr(self, "_categories"):
            raise BackendError("the model is not open")
        info = self.model.info
        return [
            Prediction(
                detections=tuple(self._find(category, frame.info) for category in self._categories),
                model=info.name,
                model_version=info.version,
            )
            for frame in frames
        ]

    def _read_categories(self) -> list[Category]:
        info = self.model.info
        try:
            said = msgspec.convert(info.extra.get("learningloop", {}), Loop).categories
        except msgspec.ValidationError as exc:
            raise ModelError(f"{info.name} {info.version} has unreadable categories: {exc}") from exc
        return said or [Category(label) for label in info.labels]

    def _find(self, category: Category, info: FrameInfo) -> Detection:
        label, confidence = category.name, self.options.confidence
        x, y, width, height = info.width / 4, info.height / 4, info.width / 2, info.height / 2
        match category.type:
            case "point":
                return Point(label=label, confidence=confidence, x=info.width / 2, y=info.height / 2)
            case "segmentation":
                points = ((x, y), (x + width, y), (x, y + height))
                return Segmentation(label=label, confidence=confidence, points=points)
            case "classification":
                return Classification(label=label, confidence=confidence)
            case _:
                return Box(label=label, confidence=confidence, x=x, y=y, width=width, height=height)
