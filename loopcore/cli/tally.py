"""What `loopcore detect` shows: a bar while it works, JSON lines as frames come, tables at the end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from loopcore.cli.console import Console
from loopcore.cli.frames import Looked
from loopcore.cli.text import visible, visible_json
from loopcore.types import Detection

if TYPE_CHECKING:
    from rich.progress import Progress

_MAX_ROWS = 40


class Line(Struct, frozen=True, kw_only=True):
    """One line of `--json`: one frame.

    Attributes:
        source: The file, as it was named or found.
        index: Which frame of it, from 0; a picture has one.
    """

    source: str
    index: int
    width: int
    height: int
    detections: tuple[Detection, ...]
    infer_ms: float | None


class _File(Struct):
    frames: int = 0
    labels: Counter[str] = msgspec.field(default_factory=Counter)


class Tally:
    """Shows each frame as it comes, and counts for the tables at the end.

    Attributes:
        failed: How many pictures, clips and names were of no use.
    """

    def __init__(self, *, json: bool, progress: Progress | None = None) -> None:
        self.failed = 0
        self._json = json
        self._progress = progress
        self._files: dict[str, _File] = {}
        self._times: list[float] = []
        self._begun = 0

    def begin(self, path: Path) -> None:
        """A file is being read now; called in a worker thread."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=self._begun, description=visible(path.name))
        self._begun += 1

    def fail(self, name: str, why: str) -> None:
        """Something could not be looked at."""
        self.failed += 1
        sentence = why if name in why else f"{name}: {why}"
        print(visible(sentence), file=sys.stderr)

    def show(self, looked: Looked) -> None:
        """One frame's outcome, in order."""
        name = str(looked.input.path)
        prediction = looked.prediction
        if prediction is None:
            self.fail(name, looked.error or "no answer")
            return
        file = self._files.setdefault(name, _File())
        file.frames += 1
        file.labels.update(found.label for found in prediction.detections)
        if prediction.infer_ms is not None:
            self._times.append(prediction.infer_ms)
        if self._json:
            line = Line(
                source=name.encode("utf-8", "backslashreplace").decode(),
                index=looked.input.index,
                width=looked.width,
                height=looked.height,
                detections=prediction.detections,
                infer_ms=prediction.infer_ms,
            )
            print(visible_json(msgspec.json.encode(line).decode()), flush=True)

    def print_tables(self) -> None:
        """What was found in each file, if they are not too many, and of each label."""
        console = Console()
        if 0 < len(self._files) <= _MAX_ROWS:
            rows = [(name, file.frames, _words(file.labels)) for name, file in self._files.items()]
            console.table(["file", "frames", "found"], rows)
            console.print("")
        total = sum((file.labels for file in self._files.values()), Counter[str]())
        if total:
            places = Counter(label for file in self._files.values() for label in file.labels)
            console.table(["label", "found", "files"], [(label, n, places[label]) for label, n in total.most_common()])
            console.print("")
        frames = sum(file.frames for file in self._files.values())
        speed = f", {median(self._times):.1f} ms a frame in the model" if self._times else ""
        failed = f", {self.failed} failed" if self.failed else ""
        seen = f"{_count(frames, 'frame')} of {_count(len(self._files), 'file')}"
        console.print(f"{seen}, {total.total()} found{speed}{failed}")


def _words(labels: Counter[str]) -> str:
    """Such as `2x person, 1x dog`; without the x, labels that are numbers could not be told from how many there are."""
    return ", ".join(f"{count}x {label}" for label, count in labels.most_common()) or "nothing"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def progress_bar(files: int, *, json: bool) -> Iterator[Progress | None]:
    """A bar on stderr, where that is a terminal and nothing else is written to it meanwhile."""
    if not sys.stderr.isatty() or (json and sys.stdout.isatty()):
        yield None
        return
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Terminal(stderr=True), redirect_stdout=False, transient=True) as progress:
        progress.add_task("", total=files)
        yield progress
