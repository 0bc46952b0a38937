"""The job at work: its files, what is known of it, and the means to do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

from anyio import CancelScope, CapacityLimiter, Event, Lock, to_thread
from msgspec import Struct
from msgspec.structs import replace

from loopcore.abc import Backend, Job, JobQueue, JobState, JobStep, Report, TrainerInfo
from loopcore.files import DISK, Disk
from loopcore.train import record as records
from loopcore.train.record import Record
from loopcore.types import Model

ResultT = TypeVar("ResultT")

ANSWER_S = 600.0
"""How long a platform may take for an answer; for pictures and models its driver knows better."""

MAX_MESSAGE = 1_000
"""Of what a trainer says, so many characters are shown."""


class Train(Protocol):
    """Runs the trainer, in a process of its own; the arguments are those of `Trainer.train`.

    Raises:
        LoopcoreError: What the trainer raised.
        PluginError: It broke its contract, or its process has died.
    """

    async def __call__(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: Event,
        log: Path,
    ) -> Path: ...


class Eyes(Protocol):
    """What looks at a platform's images with a new model: the backend of this node."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats it runs, best first."""
        ...

    def open(self, model: Model) -> Backend:
        """A backend for this model, not entered."""
        ...


class Kit(Struct, frozen=True, kw_only=True, eq=False):
    """What jobs are done with.

    Attributes:
        train: Runs the trainer.
        info: What the trainer is.
        eyes: What looks at the platform's images after a training; `None` if nobody does.
        batch: How many images are looked at in one go.
        keep_old: The folders of earlier jobs are kept.
        disk: Where state is written.
    """

    train: Train
    info: TrainerInfo
    eyes: Eyes | None = None
    batch: int = 10
    keep_old: bool = False
    disk: Disk = DISK


class Work:
    """One job at work.

    Attributes:
        record: What is known of it and survives.
        stop: Set once the training is to end soon.
        waiting: The job waits for the GPU slot.
        aborting: The job is to be cleaned up, and nothing else, though that may not have been noted.
        error: Why the last attempt at the step has failed.
        metrics: The trainer's newest figures.
        furthest: The trainer's progress, at its best.
        failures: How often in a row the trainer has failed without coming further.

    Args:
        record: What is known of it.
        queue: Where it comes from.
        folder: Where this node keeps all that belongs to trainings.
        kit: What it is done with.
        changed: Called whenever the state has changed.
    """

    def __init__(
        self, record: Record, queue: JobQueue, folder: Path, kit: Kit, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.record = record
        self.queue = queue
        self.kit = kit
        self.stop = Event()
        self.waiting = False
        self.aborting = False
        self.error: str | None = record.error
        self.metrics: dict[str, float] = {}
        self.furthest = -1.0
        self.failures = 0
        self._folder = folder
        self._changed = changed
        self._step = record.step
        self._progress: float | None = None
        self._message = ""
        self._lock = Lock()
        self._closed = False
        self._limiter = CapacityLimiter(4)
        if record.stopping:
            self.stop.set()

    @property
    def job(self) -> Job:
        return self.record.job

    @property
    def _file(self) -> Path:
        return self._folder / records.FILE

    @property
    def folder(self) -> Path:
        """What belongs to this job alone."""
        return self._folder / "jobs" / self.job.id

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshot"

    @property
    def base(self) -> Path:
        """The package that the training starts from."""
        return self.folder / "base"

    @property
    def workdir(self) -> Path:
        """The trainer's own."""
        return self.folder / "work"

    @property
    def log(self) -> Path:
        """What the trainer writes."""
        return self.folder / "training.log"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"

    @property
    def images(self) -> Path:
        """The pictures of this project, kept from job to job; a platform's words never become a path."""
        whose = sha256(f"{self.record.queue}\0{self.job.project}".encode()).hexdigest()[:16]
        return self._folder / "images" / whose

    def begin(self, step: JobStep) -> None:
        """A step begins; it is noted once it is done."""
        self._step, self._progress, self._message = step, None, ""
        self._changed()

    def tell(self, progress: float | None = None, message: str | None = None) -> None:
        """How far the step is: `progress` is 0 to 1."""
        self._progress = progress
        self._message = self._message if message is None else message[:MAX_MESSAGE]
        self._changed()

    def fail(self, error: str | None) -> None:
        """Why the last attempt at this step has failed; `None` once that is over."""
        self.error = error
        self._changed()

    def wait(self, waiting: bool) -> None:
        """Whether the job waits for the GPU slot."""
        self.waiting = waiting
        self._changed()

    def is_aborted(self) -> bool:
        """Nothing of the job is to be left."""
        return self.aborting or self.record.aborted

    async def note(self, **changes: Any) -> None:
        """Change the record; durable on return. Nothing happens once it has been closed.

        Raises:
            StorageError: The disk refuses; nothing has changed.
        """
        with CancelScope(shield=True):
            async with self._lock:
                if self._closed:
                    return
                changed = replace(self.record, **changes)
                await self.run(self._save, changed)
                self.record = changed
                self._step = changed.step if "step" in changes else self._step
        self._changed()

    async def close(self) -> None:
        """Forget the job.

        Raises:
            StorageError: The disk refuses; the job is still known.
        """
        with CancelScope(shield=True):
            async with self._lock:
                await self.run(partial(records.forget, self._file, disk=self.kit.disk))
                self._closed = True

    async def run(self, work: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run what blocks in a thread."""
        return await to_thread.run_sync(work, *arguments, limiter=self._limiter)

    def state(self) -> JobState:
        """What platforms are shown."""
        return JobState(
            job=self.job,
            step=self._step,
            finished=self._step is self.record.step and self._step is not JobStep.ACCEPTED,
            progress=self._progress,
            message=self._message,
            score=self.record.score,
            images=self.record.images,
            error=self.error,
            waiting=self.waiting,
        )

    def _save(self, record: Record) -> None:
        records.save(self._file, record, disk=self.kit.disk)
