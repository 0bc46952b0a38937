"""TRAINING and SCORING: the trainer at work, and the platform kept up to date."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import Event, create_task_group, fail_after

from loopcore.abc import Score
from loopcore.errors import ModelError, PluginError, StorageError, TrainingError, first
from loopcore.train.collecting import recollect, refetch
from loopcore.train.packages import open_packages
from loopcore.train.work import Work

_log = logging.getLogger(__name__)

SCORE_EVERY_S = 5.0
"""How often the platform is told a new score, at most."""

SCORE_LIMIT_S = 60.0
"""How long the platform may take to hear one."""

MAX_FAILURES = 5
"""So many attempts of the trainer may fail in a row, without any progress in between."""

MAX_METRICS = 100
"""Of a trainer's figures, only so many names are kept."""


async def train(work: Work) -> None:
    """Run the trainer.

    Raises:
        TrainingError: It says that it cannot do this, or has made no usable model, or has failed too often.
        PluginError: It has failed.
    """
    await recollect(work)
    await refetch(work)
    scores = _Scores(work)
    work.tell(0.0, "")
    async with create_task_group() as tasks:
        tasks.start_soon(scores.run)
        package = await _run_trainer(work, scores)
        tasks.cancel_scope.cancel()
    place = await work.run(_checked, work, package)
    changes = {} if scores.best is None else {"score": scores.best}
    await work.note(package=place, **changes)


async def score(work: Work) -> None:
    """Tell the platform the figures of the best model; now it must hear them."""
    if work.record.score is not None:
        with fail_after(SCORE_LIMIT_S):
            await work.queue.score(work.state())


async def _run_trainer(work: Work, scores: _Scores) -> Path:
    furthest = work.furthest

    def report(progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        work.furthest = max(work.furthest, progress)
        work.metrics = dict(list((work.metrics | metrics).items())[-MAX_METRICS:])
        if score is not None:
            scores.hear(score)
        work.tell(progress, message)

    parameters = dict(work.job.parameters)
    if work.job.base in work.kit.info.pretrained:
        parameters["pretrained"] = work.job.base
    base = work.base if work.base.exists() else None
    try:
        return await work.kit.train(work.snapshot, base, parameters, work.workdir, report, work.stop, work.log)
    except PluginError as exc:
        work.failures = 1 if work.furthest > furthest else work.failures + 1
        if work.failures < MAX_FAILURES:
            raise
        raise TrainingError(f"the trainer has failed {work.failures} times in a row; the last time: {exc}") from exc


def _checked(work: Work, package: Path) -> str:
    """Where the trainer's model is, as a path from the job's folder; it is whole, and about the job's labels."""
    if not package.resolve().is_relative_to(work.workdir.resolve()):
        raise PluginError(f"the trainer has left its model in {package}, outside its folder {work.workdir}")
    try:
        models = open_packages(package, work.kit.info.formats)
    except ModelError as exc:
        raise TrainingError(f"the trainer has made no usable model: {exc}") from exc
    labels = work.job.labels
    for model in models:
        if labels and model.info.labels and model.info.labels != labels:
            raise TrainingError(
                f"the trainer has made a model of {', '.join(model.info.labels)}, expected {', '.join(labels)}"
            )
    return package.resolve().relative_to(work.folder.resolve()).as_posix()


class _Scores:
    """The best score so far, and its way to the record and the platform."""

    def __init__(self, work: Work) -> None:
        self.best: Score | None = None
        self._work = work
        self._new = Event()
        self._noted = Event()

    def hear(self, score: Score) -> None:
        self.best = score
        self._new.set()

    async def run(self) -> None:
        """Note each new score, and tell the platform the newest from time to time, until cancelled."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._tell)
            while True:
                await self._new.wait()
                self._new = Event()
                with suppress(StorageError):  # the end of the step notes it too
                    await self._work.note(score=self.best)
                self._noted.set()

    async def _tell(self) -> None:
        while True:
            await self._noted.wait()
            self._noted = Event()
            try:
                with fail_after(SCORE_LIMIT_S):
                    await self._work.queue.score(self._work.state())
            except Exception as exc:  # noqa: BLE001 - see below
                # The driver guard: the step SCORING sees to it that the platform hears the score in the end.
                _log.info("The platform was not told a score job=%s error=%s", self._work.job.id, first(exc))
                self._noted.set()
            await anyio.sleep(SCORE_EVERY_S)
