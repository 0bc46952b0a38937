"""What must be known of the job at work after a power cut: one small file, written anew at each step."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from loopcore.abc import Job, JobStep, Score
from loopcore.errors import StorageError
from loopcore.files import DISK, Disk, read_bounded, write_atomic
from loopcore.types import ModelInfo

_log = logging.getLogger(__name__)

FILE = "job.json"
_MAX_BYTES = 64_000_000

_ORDER = tuple(JobStep)


class Record(Struct, frozen=True, kw_only=True):
    """A job, and how far it is.

    Attributes:
        queue: The name of the platform that gave the job.
        job: The job.
        step: The last step that is done; `ENDED` if none is left.
        error: Why the job has ended, if it has failed.
        score: Of the best model so far.
        images: How many images are in each set, and under `missing` how many could not be had.
        stopping: The training is to end soon and keep its best model.
        aborted: The job is to be cleaned up, and nothing else.
        package: The folder with the model or models, as a path from the job's folder.
        published: What the platform has taken, by format.
        eyes: The format of the model that looks at the platform's images; `None` if none can here.
        reported: How many files of predictions the platform has.
    """

    queue: str
    job: Job
    step: JobStep = JobStep.ACCEPTED
    error: str | None = None
    score: Score | None = None
    images: dict[str, int] = {}
    stopping: bool = False
    aborted: bool = False
    package: str | None = None
    published: dict[str, ModelInfo] = {}
    eyes: str | None = None
    reported: int = 0
    schema: Literal[1] = 1

    def following(self) -> JobStep:
        """The step to do next; `ENDED` if none is left."""
        return _ORDER[min(_ORDER.index(self.step) + 1, len(_ORDER) - 1)]


def load(path: Path) -> Record | None:
    """The job that was at work when this node ended; `None` if there was none.

    A file that cannot be read any more is set aside.

    Raises:
        StorageError: The disk refuses to read it.
    """
    if not path.exists():
        return None
    data = read_bounded(path, _MAX_BYTES)
    try:
        return msgspec.json.decode(data, type=Record)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        aside = path.with_name(f"{path.name}.damaged")
        with suppress(OSError):
            path.replace(aside)
        _log.error("The record of a job is damaged, and the job is lost file=%s error=%s", aside, exc)
        return None


def save(path: Path, record: Record, *, disk: Disk = DISK) -> None:
    """Write it; durable on return.

    Raises:
        StorageError: The disk refuses.
    """
    write_atomic(path, msgspec.json.encode(record), disk=disk)


def forget(path: Path, *, disk: Disk = DISK) -> None:
    """Remove it; nothing happens if it is not there.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        with suppress(FileNotFoundError):
            disk.unlink(path)
        disk.sync_folder(path.parent)
    except OSError as exc:
        raise StorageError(f"cannot remove {path}: {exc.strerror or exc}") from exc
