"""A job's steps, one after the other, each tried until it succeeds or cannot."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from loopcore.abc import JobStep
from loopcore.errors import (
    ConfigError,
    LoopcoreError,
    PluginError,
    RejectedError,
    RetryableError,
    StorageError,
    TrainingError,
    first,
)
from loopcore.train.collecting import collect, fetch
from loopcore.train.predicting import predict, report
from loopcore.train.publishing import publish
from loopcore.train.training import score, train
from loopcore.train.work import Work

_log = logging.getLogger(__name__)

RETRY_S = 5.0
"""How long a step that has failed is left alone; each time twice as long …"""

MAX_RETRY_S = 300.0
"""… and no longer than this, give or take a fifth."""

FATAL = (TrainingError, ConfigError)
"""What trying again cannot mend; and, while a model is published, that the platform refuses it. Every other refusal may
be a proxy's, or a person's to mend: until then the job waits, says why, and can be aborted."""

STEPS: dict[JobStep, Callable[[Work], Awaitable[None]]] = {
    JobStep.COLLECTING: collect,
    JobStep.FETCHING: fetch,
    JobStep.TRAINING: train,
    JobStep.SCORING: score,
    JobStep.PUBLISHING: publish,
    JobStep.PREDICTING: predict,
    JobStep.REPORTING: report,
}


async def work_off(work: Work) -> str | None:
    """Do what is left of a job; it is noted as ended on return.

    Returns:
        Why it has failed; `None` if it has not.
    """
    error: str | None = None
    try:
        while (step := work.record.following()) is not JobStep.ENDED:
            work.begin(step)
            await _insist(work, step)
            await _until_noted(work, step, None)
    except (*FATAL, RejectedError) as exc:
        error = str(exc)
    work.fail(error)
    await _until_noted(work, JobStep.ENDED, error)
    return error


async def _insist(work: Work, step: JobStep) -> None:
    fatal = (*FATAL, RejectedError) if step is JobStep.PUBLISHING else FATAL
    failures = 0
    while True:
        try:
            await _attempt(work, STEPS[step])
        except fatal:
            raise
        except LoopcoreError as exc:
            failures += 1
            await _pause(work, exc, failures)
        else:
            return


async def _until_noted(work: Work, step: JobStep, error: str | None) -> None:
    failures = 0
    while True:
        try:
            await work.note(step=step, error=error)
        except StorageError as exc:
            failures += 1
            await _pause(work, exc, failures)
        else:
            work.fail(error)
            return


async def _attempt(work: Work, step: Callable[[Work], Awaitable[None]]) -> None:
    error: Exception | None = None
    try:
        await step(work)
    except* Exception as group:  # noqa: BLE001 - see below
        # The driver guard: what a platform, a trainer or a backend raises unforeseen is its fault. Where the step is
        # being cancelled too, that goes on by itself.
        error = first(group)
    if error is None:
        return
    if isinstance(error, LoopcoreError):
        raise error
    if isinstance(error, TimeoutError):
        raise RetryableError(f"the platform {work.record.queue!r} has not answered in time") from error
    if isinstance(error, OSError):
        raise StorageError(f"the disk refuses: {error}") from error
    raise PluginError(f"the step failed: {type(error).__name__}: {error}") from error


async def _pause(work: Work, error: LoopcoreError, failures: int) -> None:
    work.fail(str(error) or type(error).__name__)
    _log.log(
        logging.DEBUG if failures > 1 else logging.WARNING,
        "A step of a training failed and will be tried again job=%s step=%s failures=%d error=%s",
        work.job.id,
        work.state().step,
        failures,
        error,
        exc_info=error.__cause__ if isinstance(error, PluginError) else None,
    )
    await anyio.sleep(pause_s(error, failures))


def pause_s(error: LoopcoreError, failures: int) -> float:
    """How long a step is left alone that has failed so often in a row, the last time with this error."""
    pause = min(RETRY_S * 2.0 ** min(failures - 1, 20), MAX_RETRY_S) * random.uniform(0.8, 1.2)
    if isinstance(error, RetryableError) and error.retry_after_s is not None:
        return max(pause, min(error.retry_after_s, MAX_RETRY_S))
    return pause
