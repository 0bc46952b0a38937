"""A platform in memory that gives jobs, and a worker over it that can be killed and started again at any step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from train.world import World

from loopcore.abc import (
    Accepted,
    Backend,
    Job,
    JobState,
    TrainerInfo,
)
from loopcore.files import Disk
from loopcore.testing import FixedBackend
from loopcore.testing.drivers import FixedBackendOptions
from loopcore.train import Desk, JobWorker, Kit, Terms
from loopcore.types import Model

LIMIT_S = 20.0


class Looking:
    """Eyes that find the same box in every image."""

    formats = ("null",)

    def __init__(self, world: World) -> None:
        self._world = world
        self.models: list[Model] = []

    def open(self, model: Model) -> Backend:
        self.models.append(model)
        return FixedBackend(FixedBackendOptions(), model)


class QuickDisk(Disk):
    """Writes, and does not wait for the platters; a test that kills nothing but tasks need not."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Bench:
    """A folder and a platform, and workers over them.

    Attributes:
        disk: What workers write to.
        told: What hooks have heard.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        self.world = world
        self.disk: Disk = QuickDisk()
        self.eyes: Looking | None = Looking(world)
        self.told: list[tuple[str, str, float, dict[str, float]]] = []
        self.terms = Terms(name="gate-3")
        self.kit: dict[str, Any] = {}
        self.pretrained: tuple[str, ...] = ("tiny",)

    def make(self) -> JobWorker:
        info = TrainerInfo(architecture="null", formats=("null", "other"), pretrained=self.pretrained)
        kit = Kit(train=self.world.train, info=info, eyes=self.eyes, disk=self.disk, batch=2, **self.kit)
        return JobWorker(self.folder, kit, self.terms, self._hear)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Desk]:
        """A worker at work; it is killed at the end of the block, as far as a worker can tell."""
        async with anyio.create_task_group() as tasks:
            worker = self.make()
            await tasks.start(worker.run, {"loop": self.world, "second": self.world})
            desk = Desk(worker, "loop")
            yield desk
            tasks.cancel_scope.cancel()

    async def _hear(self, job: str, state: str, progress: float, metrics: dict[str, float]) -> None:
        self.told.append((job, state, progress, metrics))

    def job_folder(self, job: str = "job-1") -> Path:
        return self.folder / "jobs" / job


async def until(desk: Desk, done: Callable[[], bool]) -> None:
    """Wait for something that the worker brings about."""
    with anyio.fail_after(LIMIT_S):
        while not done():
            await desk.changed()


async def until_over(desk: Desk) -> JobState | None:
    """Wait until the job has ended; its state if it has failed."""
    await until(desk, lambda: (state := desk.state()) is None or (state.step == "ended" and bool(state.error)))
    return desk.state()


async def offered(desk: Desk, job: Job) -> None:
    assert await desk.offer(job) == Accepted()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.train.stepping.RETRY_S", 0.001)
    monkeypatch.setattr("loopcore.train.stepping.MAX_RETRY_S", 0.002)
    monkeypatch.setattr("loopcore.train.training.SCORE_EVERY_S", 0.001)
    monkeypatch.setattr("loopcore.train.jobs.SLOT_S", 0.01)
    monkeypatch.setattr("loopcore.train.news.EVERY_S", 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "train", World())
