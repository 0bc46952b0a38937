"""The Loop gives a trainer work over its socket (`learning-loop.md` 3, 9)."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from loopcore.abc import Accepted, Declined, ImageStore, Job, JobQueue, JobState, JobStep, ModelRegistry, Worker
from loopcore.errors import RetryableError
from loopcore.http.meaning import shown
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.deployment import node_id
from loopcore_learningloop.hearing import Listener
from loopcore_learningloop.images import Images
from loopcore_learningloop.models import Models
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.projects import Project
from loopcore_learningloop.sockets import Socket, accepted
from loopcore_learningloop.trainings import categories_of, figures_of, job_of, project_of, starts_otherwise, status_of

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

STATUS_S = 30.0
"""How long the Loop may take to hear a status (3.4)."""

FIGURES_S = 60.0
"""How long it may take to hear a training's figures."""

LEAST_S = 0.25
"""Progress within so long is told in one."""

MOST_PASSED = 64
"""So many states that a job has passed through are told one after the other, however short they were."""

REFUSED = "refused"
"""The payload that tells a busy trainer from a broken one (3.3)."""

_ANY = tuple[Any, ...]


class Trainings(JobQueue):
    """The trainings of a Loop, of all projects that it gives this trainer.

    Args:
        loop: The Loop; entered.
        options: The platform's.
    """

    def __init__(self, loop: Loop, options: PlatformOptions) -> None:
        self._loop = loop
        self._options = options
        self._muted = options.muted
        self._socket: Socket | None = None
        self._worker: Worker | None = None
        self._news = anyio.Event()
        self._passed: deque[wire.TrainerStatus] = deque(maxlen=MOST_PASSED)
        self._state = ""
        self._step = JobStep.TRAINING  # the last one that was seen at work

    async def serve(self, worker: Worker, *, task_status: TaskStatus[None]) -> None:
        """See `JobQueue`. On asyncio only."""
        place = wire.Context(self._options.organization, self._options.project)
        listeners = {
            "begin_training": Listener(tuple[str, str, dict[str, Any]], self._begin),
            "stop_training": Listener(_ANY, self._stop),
            "abort_training": Listener(_ANY, self._abort),
        }
        self._worker = worker
        self._socket = socket = Socket(self._loop, "trainer", place, listeners, muted=self._muted)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, worker)
                tasks.start_soon(self._tell, socket, worker)
                await socket.run(task_status=task_status)
                tasks.cancel_scope.cancel()
        finally:
            self._worker = self._socket = None

    def images(self, job: Job) -> ImageStore:
        """See `JobQueue`."""
        return Images(self._project(job))

    def models(self, job: Job) -> ModelRegistry:
        """See `JobQueue`. A trainer may start from a pickle: it is the operator's own program, in its own process."""
        return Models(
            self._loop,
            self._project(job),
            limit_s=self._options.model_timeout,
            pickles=True,
            categories=categories_of(job),
            training=job.context["training_number"],
        )

    async def score(self, state: JobState) -> None:
        """See `JobQueue`."""
        if self._socket is None or self._worker is None:
            raise RetryableError("the Loop cannot be told a training's figures: there is no connection")
        told = figures_of(state, node_id=self._id(self._worker), node=self._worker.describe().node)
        whose = project_of(state.job)
        event = "update_training"
        accepted(event, await self._socket.call(event, whose.organization, whose.project, told, limit_s=FIGURES_S))

    def mute(self, muted: bool) -> None:
        """Leave the Loop and stay away, or come back; a job at work goes on."""
        self._muted = muted
        if self._socket is not None:
            self._socket.mute(muted)

    def refresh(self) -> None:
        """Tell the status now."""
        self._news.set()

    async def reset(self) -> None:
        """Give up the job at work, and come to the Loop like a new trainer (9.5)."""
        await self._abort()
        if self._socket is not None:
            self._socket.renew("the trainer was reset")

    def status(self, worker: Worker) -> wire.TrainerStatus:
        """What the Loop is told of the trainer."""
        return status_of(
            worker.state(),
            worker.describe(),
            node_id=self._id(worker),
            blocked=worker.blocked(),
            last=self._step,
            now=datetime.now(UTC),
        )

    async def _tell(self, socket: Socket, worker: Worker) -> None:
        def status() -> wire.TrainerStatus:
            return self._passed.popleft() if self._passed else self.status(worker)

        await socket.tell("update_trainer", status, limit_s=STATUS_S, changed=self._changed)

    async def _changed(self) -> None:
        if not self._passed:
            await self._news.wait()
            self._news = anyio.Event()
        if not self._passed:
            await anyio.sleep(LEAST_S)

    async def _watch(self, worker: Worker) -> None:
        while True:
            await worker.changed()
            state = worker.state()
            if state is not None and state.step is not JobStep.ENDED:
                self._step = state.step
            if (status := self.status(worker)).state != self._state:
                self._state = status.state
                self._passed.append(status)
            self._news.set()

    # What the Loop asks for

    async def _begin(self, organization: str, project: str, config: dict[str, Any]) -> wire.Ack:
        worker = self._at_work()
        offered = worker.describe().pretrained
        job = job_of(organization, project, config, pretrained=offered, begun=datetime.now(UTC))
        match await worker.offer(job):
            case Accepted():
                _log.info("The Loop gives a training job=%s labels=%d base=%s", job.id, len(job.labels), job.base)
                if starts_otherwise(job):  # not before: who asks again and again fills no log
                    wanted = shown(job.context["wanted_base"], ())
                    _log.warning("The trainer does not have what the Loop wants it to start from wanted=%s", wanted)
                return wire.Ack(success=True)
            case Declined(why=why):
                return wire.Ack(success=False, error_msg=why, payload=REFUSED)

    async def _stop(self, *_: Any) -> wire.Ack:
        if self._worker is not None and (state := self._worker.state()) is not None:
            await self._worker.stop(state.job.id)
        return wire.Ack(success=True)

    async def _abort(self, *_: Any) -> wire.Ack:
        if self._worker is not None and (state := self._worker.state()) is not None:
            await self._worker.abort(state.job.id)
        return wire.Ack(success=True)

    def _at_work(self) -> Worker:
        if self._worker is None:
            raise RetryableError("the trainer is not at work")
        return self._worker

    def _project(self, job: Job) -> Project:
        whose = project_of(job)
        return Project(self._loop, whose.organization, whose.project)

    def _id(self, worker: Worker) -> str:
        return node_id(self._options, f"{worker.describe().node} trainer")
