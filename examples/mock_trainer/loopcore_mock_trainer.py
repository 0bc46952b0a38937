"""The trainer `mock`: learns nothing, and takes its time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import _exit
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

from msgspec import Meta

from loopcore import Duration, Options
from loopcore.abc import Report, Score, Trainer
from loopcore.datasets import Snapshot, read_snapshot
from loopcore.errors import DatasetError, TrainingError
from loopcore.files import write_atomic
from loopcore.package import write_package
from loopcore.types import ModelInfo

FILES = {"file_1.txt": b"content of file one", "file_2.txt": b"content of file two"}


class MockOptions(Options, frozen=True, kw_only=True):
    """Options of the trainer `mock`.

    Attributes:
        takes: How long a training takes.
        every: How often it has a better model; a second of training counts as an epoch.
        formats: Of the models that it leaves.
        fails: What happens in the middle: nothing, an error that is told, or the end of the process.
    """

    takes: Duration = Duration(30)
    every: Duration = Duration(5)
    formats: Annotated[tuple[str, ...], Meta(min_length=1)] = ("mocked",)
    fails: Literal["never", "told", "dies"] = "never"


class MockTrainer(Trainer):
    """Gets better at the same speed whatever it is given, and goes on where it was when it is started again."""

    Options = MockOptions
    options: MockOptions
    architecture = "mock"

    def __init__(self, options: MockOptions) -> None:
        super().__init__(options)
        self.formats = options.formats

    def pretrained(self) -> Sequence[str]:
        return ("mock_small", "mock_large")

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
            raise TrainingError(f"there is nothing to learn from: {exc}") from exc
        takes = float(self.options.takes)
        tick_s = min(0.5, takes / 10)
        clock = workdir / "trained_s.txt"
        trained_s = float(clock.read_text()) if clock.exists() else 0.0
        better_s = 0.0
        start = base.name if base else parameters.get("pretrained", "scratch")
        while trained_s < takes and not stop():
            Event().wait(tick_s)
            trained_s = min(trained_s + tick_s, takes)
            write_atomic(clock, str(trained_s).encode())
            self._fail(trained_s / takes)
            score = None
            if trained_s >= better_s:
                better_s = trained_s + self.options.every
                score = score_of(data, trained_s / takes, int(trained_s))
            report(trained_s / takes, f"trained {trained_s:.0f} s from {start}", score=score)
        report(1.0, "trained", score=score_of(data, trained_s / takes if takes else 1.0, int(trained_s)))
        return self._leave(workdir / "package", data.labels)

    def _fail(self, progress: float) -> None:
        if progress < 0.5:
            return
        if self.options.fails == "told":
            raise TrainingError("the options say that this training fails")
        if self.options.fails == "dies":
            _exit(1)  # as a program that falls over

    def _leave(self, folder: Path, labels: tuple[str, ...]) -> Path:
        """One package, or one for each format."""
        for name in self.formats:
            package = folder if len(self.formats) == 1 else folder / name
            package.mkdir(parents=True, exist_ok=True)
            for file, content in FILES.items():
                write_atomic(package / file, content)
            write_package(package, ModelInfo(name="mock", version="1", format=name, labels=labels))
        return folder


def score_of(data: Snapshot, progress: float, epoch: int) -> Score:
    """Of what humans have annotated, so much is found: all of it in the end."""
    things = Counter(one.label for entry in data.entries for one in entry.annotations or ())
    confusion = {}
    for label in data.labels:
        found = round(progress * things[label])
        confusion[label] = (found, things[label] - found, things[label] - found)
    return Score(confusion=confusion, epoch=epoch, metrics={"recall": progress})
