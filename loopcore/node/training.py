"""The trainer at work: platforms give jobs, and one worker does them, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import CancelScope, Event, create_task_group

from loopcore.abc import Backend, JobQueue, JobState, Report, Trainer, TrainerInfo
from loopcore.config import TrainerTable
from loopcore.errors import PluginError, StorageError
from loopcore.node.control_socket import Operations
from loopcore.node.enduring import Enduring
from loopcore.plan import BackendPart, Part, Plan
from loopcore.processes import call_driver
from loopcore.train import Desk, JobWorker, Kit, Terms
from loopcore.types import Model

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

GRACE_S = 30.0
"""How long a trainer may take to end after SIGTERM."""


class Training:
    """The role of a node with a `[trainer]`.

    Args:
        part: The trainer; it is not entered: it works in processes of its own.
        plan: Says which platforms there are; they have been entered when `run` is called.
    """

    name = "training"

    def __init__(self, part: Part[TrainerTable, Trainer], plan: Plan) -> None:
        self._part = part
        self._plan = plan
        self._worker: JobWorker | None = None
        self._queues: dict[str, Enduring] = {}

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Do jobs until cancelled, until a platform asks for the node's restart, or until the table says so.

        Raises:
            ConfigError: No platform gives jobs, or the lock file cannot be used.
            LoopcoreError: The trainer, or a platform, could not begin.
        """
        queues = await self._find_queues()
        worker = self._worker = self._make_worker()
        self._queues = {name: _served(name, queue, Desk(worker, name)) for name, queue in queues.items()}
        async with create_task_group() as tasks:
            await tasks.start(self._work, worker, queues, tasks.cancel_scope, name="trainer")
            for name, queue in self._queues.items():
                await tasks.start(queue.run, tasks.cancel_scope, name=f"jobs of {name}")
            task_status.started()

    def operations(self) -> Operations:
        """None: jobs come by the platforms."""
        return {}

    def status(self) -> Mapping[str, Any]:
        """The job there is, and how the queues are doing, by platform."""
        states = self._worker.states() if self._worker else {}
        return {
            "jobs": [{"platform": name, **_shown(state)} for name, state in states.items()],
            "queues": {name: queue.status() for name, queue in self._queues.items()},
        }

    async def _find_queues(self) -> dict[str, JobQueue]:
        found = {
            name: await self._plan.capability(name, JobQueue)
            for name in (platform.table.name for platform in self._plan.platforms)
        }
        queues = {name: queue for name, queue in found.items() if queue is not None}
        if not queues:
            raise self._plan.config.error(self._part.table.key, "no platform of this file gives jobs")
        return queues

    def _make_worker(self) -> JobWorker:
        config, table, driver = self._plan.config, self._part.table, self._part.driver
        with self._plan.starting(self._part):
            info = TrainerInfo(
                architecture=driver.architecture or table.driver,
                formats=tuple(driver.formats),
                pretrained=tuple(driver.pretrained()),
                node=config.node.name,
            )
        if not info.formats:
            raise PluginError(f"the trainer {table.driver!r} names no format", plugin=table.driver)
        kit = Kit(
            train=self._train,
            info=info,
            eyes=_Eyes(self._plan.eyes) if self._plan.eyes else None,
            batch=table.batch,
            keep_old=table.keep_old,
        )
        terms = Terms(name=config.node.name, slot=table.slot, exit_after=table.exit_after, idle_exit=table.idle_exit)
        return JobWorker(config.node.data_dir / "train", kit, terms, self._plan.hooks.job_progressed)

    async def _work(
        self,
        worker: JobWorker,
        queues: Mapping[str, JobQueue],
        role: CancelScope,
        *,
        task_status: TaskStatus[None],
    ) -> None:
        try:
            await worker.run(queues, task_status=task_status)
        except StorageError as exc:
            raise self._plan.config.error(self._part.table.key, str(exc)) from exc
        role.cancel()

    async def _train(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: Event,
        log: Path,
    ) -> Path:
        """As `loopcore.train.Train`."""
        driver, table = self._part.driver, self._part.table
        what = f"the trainer {table.driver!r}"
        arguments = {"snapshot": snapshot, "base": base, "parameters": dict(parameters), "workdir": workdir}
        left = await call_driver(
            type(driver),
            driver.options,
            "train",
            arguments,
            what=what,
            cwd=workdir,
            report=report,
            stop=stop,
            log=log,
            grace_s=GRACE_S,
        )
        if not isinstance(left, Path):
            raise PluginError(f"{what} returned {left!r}, expected the folder of a package", plugin=table.driver)
        return left


def _shown(state: JobState) -> dict[str, Any]:
    """Without the platform's own words and the trainer's parameters, which nobody has looked at for secrets."""
    shown: dict[str, Any] = msgspec.to_builtins(state)
    return {**shown, "job": state.job.id, "project": state.job.project}


def _served(name: str, queue: JobQueue, desk: Desk) -> Enduring:
    return Enduring("jobs", name, lambda task_status: queue.serve(desk, task_status=task_status))


class _Eyes:
    """As `loopcore.train.Eyes`."""

    def __init__(self, part: BackendPart) -> None:
        self._part = part

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self._part.type.formats)

    def open(self, model: Model) -> Backend:
        return self._part.part(model).driver
