"""Drivers for nodes whose platform is what is tested: they do next to nothing, and always the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from loopcore import hookimpl
from loopcore.abc import (
    AnnotationSession,
    Annotator,
    Backend,
    Converter,
    Driver,
    Proposal,
    Report,
    Score,
    Stroke,
    StrokeKind,
    Trainer,
)
from loopcore.datasets import read_snapshot
from loopcore.package import open_folder, write_package
from loopcore.types import RGB, Box, Frame, ModelInfo, Prediction


class Mocked(Backend):
    """Runs the models of the demo project: finds the model's first label in every picture."""

    name = "mocked"
    formats = ("mocked",)

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        label = self.model.info.labels[0]
        return [Prediction(detections=(Box(label=label, confidence=0.5, x=1, y=2, width=30, height=40),))] * len(frames)


class Turning(Converter):
    """Turns the bytes of each file round."""

    name = "format_a-to-format_b"
    source, target = "format_a", "format_b"

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        model = open_folder(source)
        for file in model.info.files:
            (into / file.name).write_bytes((source / file.name).read_bytes()[::-1])
        write_package(into, replace(model.info, format=self.target))


class Waiting(Trainer):
    """Makes a model at once."""

    name = "waiting"
    formats = ("mocked", "mocked_2")
    architecture = "none"

    def pretrained(self) -> Sequence[str]:
        return ()

    def train(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: Callable[[], bool],
    ) -> Path:
        labels = read_snapshot(snapshot, pictures=False).labels
        report(0.5, score=Score(epoch=1, confusion=dict.fromkeys(labels, (1, 2, 3))))
        for name in self.formats:
            package = workdir / "package" / name
            package.mkdir(parents=True, exist_ok=True)
            (package / "model.pt").write_bytes(b"weights" + (b"" if base is None else base.name.encode()))
            write_package(package, ModelInfo(name="waiting", version="1", format=name, labels=labels))
        return workdir / "package"


class Framing(AnnotationSession):
    """The box that was dragged."""

    def __init__(self) -> None:
        self._start = (0.0, 0.0)

    def act(self, stroke: Stroke) -> Proposal:
        if stroke.kind is StrokeKind.PRESS:
            self._start = (stroke.x, stroke.y)
        if stroke.kind is not StrokeKind.RELEASE:
            return Proposal()
        (left, top), right, bottom = self._start, stroke.x, stroke.y
        return Proposal(outline=((left, top), (right, top), (right, bottom), (left, bottom)))


class Frames(Annotator):
    """Outlines the box that was dragged."""

    name = "frames"

    def open(self, pixels: RGB, label: str) -> AnnotationSession:
        return Framing()


@hookimpl
def loopcore_drivers() -> list[type[Driver]]:
    return [Frames, Mocked, Turning, Waiting]
