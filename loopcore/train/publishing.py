"""PUBLISHING: the platform gets the model, format by format."""

from __future__ import annotations

import logging

from loopcore.errors import ModelError, TrainingError
from loopcore.train.packages import open_packages
from loopcore.train.work import Work

_log = logging.getLogger(__name__)


async def publish(work: Work) -> None:
    """Hand over each format that the platform does not have yet.

    Raises:
        TrainingError: The model has been damaged since it was made.
        RejectedError: The platform does not want it.
        RemoteError: It cannot be handed over now.
    """
    try:
        models = await work.run(open_packages, work.folder / (work.record.package or ""), work.kit.info.formats)
    except ModelError as exc:
        raise TrainingError(f"the trainer's model cannot be published: {exc}") from exc
    registry = work.queue.models(work.job)
    for index, model in enumerate(models):
        work.tell(index / len(models))
        if model.info.format in work.record.published:
            continue
        known = await registry.publish(model, work.job.id)
        await work.note(published={**work.record.published, model.info.format: known})
        _log.info("A model is published job=%s format=%s version=%s", work.job.id, model.info.format, known.version)
