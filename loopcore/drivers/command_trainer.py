"""The trainer `command`: any program that reads a snapshot and leaves a model. docs/write-a-trainer.md tells its side.

`train` runs in a process of its own, and starts the program as a child of that one: what the program prints is read
line by line, lines of JSON are reports, and everything goes to the job's log.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import msgspec
from anyio import CancelScope, create_task_group, open_signal_receiver
from msgspec import Meta, Struct, field

from loopcore.abc import Report, Score, Trainer
from loopcore.datasets import Snapshot, read_snapshot
from loopcore.errors import ConfigError, DatasetError, ModelError, PluginError, StorageError, TrainingError, first
from loopcore.files import read_bounded, write_atomic
from loopcore.options import Duration, Options, Size
from loopcore.package import MANIFEST, write_package
from loopcore.processes import Child, Limits, child, ending
from loopcore.types import ModelInfo, Problem

MAX_GRACE_S = 25.0
"""The node gives the whole trainer 30 s to end."""

ASK_S = 0.2
"""How often is asked whether the training is to end soon."""

ERRORS = {
    "CUDA out of memory": "graphics card is out of memory",
    "CUDA error: invalid device ordinal": "graphics card not found",
}
"""What programs print, and what it means; the sentences are those of the Learning Loop's trainers (section 9.3)."""

_KILLED = {128 + signal.SIGKILL, 128 + signal.SIGTERM}
"""What a shell makes of a program that was killed."""

_MAX_SCORE = 4_000_000

_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]


class CommandOptions(Options, frozen=True, kw_only=True):
    """What is run, and what it makes.

    Attributes:
        command: The program and its arguments; there is no shell.
        formats: The formats of the models that it makes, best first.
        folder: Where it starts; by default in the job's work folder.
        architecture: What it trains, for people.
        pretrained: The names of the models that it can start from by itself.
        env: More environment for it; not for secrets.
        errors: If it fails: a text that it may have printed, and the sentence that is shown then.
        stop: How it is told to end soon: by a `signal`, SIGTERM, or by a `file` alone.
        stop_within: How long it may take for that.
        grace: How long it may take to end after SIGTERM when the job is aborted or the node ends.
        max_memory: What each of its processes may take of the machine's memory.
    """

    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    formats: Annotated[tuple[_Word, ...], Meta(min_length=1)] = ("onnx",)
    folder: Path | None = None
    architecture: str = ""
    pretrained: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=lambda: dict(ERRORS))
    stop: Literal["signal", "file"] = "signal"
    stop_within: Duration = Duration(600)
    grace: Duration = Duration(10)
    max_memory: Size | None = None


class Line(Struct, frozen=True, kw_only=True):
    """A line of JSON that the program may print; all of it is optional, and what else stands in it is ignored.

    Attributes:
        progress: 0 to 1.
        message: For people.
        metrics: Figures by name.
        score: Of the best model so far, whenever there is a new best one.
    """

    progress: float | None = None
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    score: Score | None = None


class CommandTrainer(Trainer):
    """Runs a program."""

    Options = CommandOptions
    options: CommandOptions

    def __init__(self, options: CommandOptions) -> None:
        super().__init__(options)
        if options.grace > MAX_GRACE_S:
            raise ConfigError(f"expected at most {MAX_GRACE_S:.0f} s", key="grace")
        if not options.command[0]:
            raise ConfigError("expected a program, this is empty", key="command[0]")
        self.formats = options.formats
        self.architecture = options.architecture

    def pretrained(self) -> Sequence[str]:
        return self.options.pretrained

    async def check(self) -> Sequence[Problem]:
        program, folder = self.options.command[0], self.options.folder
        if folder is not None and not folder.is_dir():
            return [Problem(message=f"there is no folder {folder} to run the trainer's program in")]
        found = (folder or Path()) / program if "/" in program else shutil.which(program)
        if found is None or not os.access(found, os.X_OK):
            return [Problem(message=f"the trainer's program {program!r} is not there, or may not be run")]
        return []

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
            found = read_snapshot(snapshot, pictures=False)
        except DatasetError as exc:
            raise TrainingError(str(exc)) from exc
        package = workdir / "package"
        try:
            package.mkdir(exist_ok=True)
            write_atomic(workdir / "parameters.json", msgspec.json.encode(parameters))
            (workdir / "stop").unlink(missing_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot write to {workdir}: {exc.strerror or exc}") from exc
        env = {
            "LOOPCORE_SNAPSHOT": str(snapshot),
            "LOOPCORE_WORKDIR": str(workdir),
            "LOOPCORE_PARAMETERS": str(workdir / "parameters.json"),
            "LOOPCORE_PACKAGE": str(package),
            "LOOPCORE_STOP": str(workdir / "stop"),
            **({} if base is None else {"LOOPCORE_BASE": str(base)}),
            **self.options.env,
        }
        ear = _Ear(report, self.options.errors, workdir / "score.json")
        ear.recall()
        wish = _Wish(stop, workdir / "stop")
        error: Exception | None = None
        try:
            anyio.run(self._run, env, self.options.folder or workdir, ear, wish)
        except* Exception as group:  # noqa: BLE001 - raised below, out of its group
            error = first(group)
        if error is not None:
            raise error
        _complete(package, self.formats, found)
        return package

    async def _run(self, env: Mapping[str, str], folder: Path, ear: _Ear, wish: _Wish) -> None:
        program = shlex.join(self.options.command)
        async with _ending_in_good_order():
            async with self._started(env, folder, ear) as process, create_task_group() as tasks:
                tasks.start_soon(wish.pass_on, process, self.options)
                code = await process.wait()
                tasks.cancel_scope.cancel()
            if code == 0 or wish.was_passed_on:
                return
            if ear.sentence is not None:
                raise TrainingError(f"{ear.sentence} ({program} {ending(code)})")
            last = f"; its last words: {process.tail[-1]}" if process.tail else ""
            killed = code < 0 or code in _KILLED
            raise (PluginError if killed else TrainingError)(f"{program} {ending(code)}{last}")

    @asynccontextmanager
    async def _started(self, env: Mapping[str, str], folder: Path, ear: _Ear) -> AsyncGenerator[Child]:
        options = self.options
        limits = Limits(memory=options.max_memory)
        try:
            async with child(
                options.command, cwd=folder, env=env, limits=limits, heard=ear.hear, grace_s=options.grace
            ) as process:
                yield process
        except OSError as exc:
            program = shlex.join(options.command)
            raise ConfigError(f"cannot start {program} in {folder}: {exc.strerror or exc}", key="command") from exc


class _Ear:
    """Hears what the program prints."""

    def __init__(self, report: Report, errors: Mapping[str, str], book: Path) -> None:
        self.sentence: str | None = None
        self._report = report
        self._errors = errors
        self._book = book
        self._progress = 0.0

    def recall(self) -> None:
        """Tell the best score of an earlier run again."""
        with suppress(StorageError, msgspec.MsgspecError):
            self._report(0.0, score=msgspec.json.decode(read_bounded(self._book, _MAX_SCORE), type=Score))

    def hear(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        for text, sentence in self._errors.items():
            if self.sentence is None and text in line:
                self.sentence = sentence
        if not line.startswith("{"):
            return
        try:
            told = msgspec.json.decode(line, type=Line)
        except (msgspec.MsgspecError, RecursionError) as exc:
            sys.stdout.write(f"loopcore: this line is no report: {exc}\n")
            return
        if told.progress is not None:
            self._progress = told.progress
        if told.score is not None:
            with suppress(StorageError):
                write_atomic(self._book, msgspec.json.encode(told.score))
        metrics = {name: value for name, value in told.metrics.items() if name not in {"progress", "message", "score"}}
        self._report(self._progress, told.message, score=told.score, **metrics)


class _Wish:
    """That the training is to end soon, on its way to the program."""

    def __init__(self, stop: Callable[[], bool], file: Path) -> None:
        self.was_passed_on = False
        self._stop = stop
        self._file = file

    async def pass_on(self, process: Child, options: CommandOptions) -> None:
        while not self._stop():  # noqa: ASYNC110 - it can only be asked
            await anyio.sleep(ASK_S)
        self.was_passed_on = True
        with suppress(OSError):
            self._file.touch()
        if options.stop == "file":
            with anyio.move_on_after(options.stop_within):
                await process.wait()
                return
            await process.stop()
        else:
            await process.stop(options.stop_within)


@asynccontextmanager
async def _ending_in_good_order() -> AsyncGenerator[None]:
    """SIGTERM ends the block, and then the process; the program gets its grace in between."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = False

    async def watch(scope: CancelScope) -> None:
        nonlocal caught
        with open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                caught = True
                scope.cancel()

    async with create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        yield
        tasks.cancel_scope.cancel()
    if caught:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _complete(folder: Path, formats: Sequence[str], snapshot: Snapshot) -> None:
    """Make a package of what the program has left, where it has not done so itself.

    Raises:
        TrainingError: It has left nothing.
    """
    if (folder / MANIFEST).is_file():
        return
    several = {name: folder / name for name in formats if (folder / name).is_dir()}
    for name, place in (several or {formats[0]: folder}).items():
        if (place / MANIFEST).is_file():
            continue
        info = ModelInfo(name="model", version=snapshot.id[:12], format=name, labels=snapshot.labels)
        try:
            write_package(place, info)
        except ModelError as exc:
            raise TrainingError(f"the program has left no model in {place}: {exc}") from exc
