"""The node's worker as one of its queues sees it."""

from __future__ import annotations

from loopcore.abc import Accepted, Declined, Job, JobState, TrainerInfo
from loopcore.train.jobs import JobWorker


class Desk:
    """A `Worker`: what one queue gets of the node. Another queue's job is in the way, and not shown."""

    def __init__(self, worker: JobWorker, queue: str) -> None:
        self._worker = worker
        self._queue = queue

    async def offer(self, job: Job) -> Accepted | Declined:
        return await self._worker.offer(self._queue, job)

    async def stop(self, job: str) -> None:
        await self._worker.stop(self._queue, job)

    async def abort(self, job: str) -> None:
        await self._worker.abort(self._queue, job)

    def state(self) -> JobState | None:
        return self._worker.state(self._queue)

    def blocked(self) -> bool:
        return self._worker.is_blocked(self._queue)

    def describe(self) -> TrainerInfo:
        return self._worker.describe()

    async def changed(self) -> None:
        await self._worker.changed()
