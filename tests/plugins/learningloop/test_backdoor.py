"""The backdoor (9.5), only where it is wished: who reaches the node resets its trainer, and has it tell its status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import pytest
from anyio import create_task_group, fail_after
from loop import DEMO, LoopServer
from loopcore_learningloop import hooks, jobs, sockets
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.platform import Platform
from workers import ScriptedWorker

from loopcore import Options, Secret
from loopcore.abc import Driver, JobQueue, Trainer
from loopcore.testing import RecordingService

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "FIRST_S", 0.02)
    monkeypatch.setattr(sockets, "LEAST_UP_S", 0.0)
    monkeypatch.setattr(sockets, "CYCLE_S", 3600.0)
    monkeypatch.setattr(jobs, "LEAST_S", 0.0)


class Mount(Protocol):
    path: str
    app: Any


def mounts_of(platform: Platform, *more: Driver) -> dict[str, Any]:
    mounts: Sequence[Mount] = hooks.loopcore_mounts(service=RecordingService(), drivers=[platform, *more])
    return {mount.path: mount.app for mount in mounts}


async def ask(app: Any, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
        return await client.request(method, path)


class Idle(Trainer):
    def train(self, *_: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def platform_at_work(loop: LoopServer, **more: Any) -> AsyncIterator[tuple[Platform, ScriptedWorker]]:
    options = PlatformOptions(url=loop.url, username="ranger", password=Secret("krill"), **more)
    with fail_after(20):
        async with Platform(options) as platform, create_task_group() as tasks:
            queue = await platform.capability(JobQueue)
            assert queue
            worker = ScriptedWorker()
            await tasks.start(queue.serve, worker)
            await loop.trainers.wait(1)
            yield platform, worker
            tasks.cancel_scope.cancel()


async def test_status_is_forced_and_a_trainer_reset_by_the_backdoor(loop: LoopServer) -> None:
    async with platform_at_work(loop, backdoor=True) as (platform, worker):
        mounts = mounts_of(platform, Idle(Options()))
        seen = len(loop.trainers)
        assert (await ask(mounts["/force_status_update"], "POST", "/force_status_update")).json() is True
        await loop.trainers.wait(seen + 1)
        await loop.sockets.begin_training(DEMO, 7)
        connected = len(loop.connections)
        await ask(mounts["/reset"], "POST", "/reset")
        await loop.connections.wait(connected + 1)
        assert worker.told == ["abort zauberzeug.demo.7"]


async def test_backdoor_is_shut_unless_it_is_opened(loop: LoopServer) -> None:
    async with platform_at_work(loop) as (platform, _):
        assert not {"/force_status_update", "/reset"} & mounts_of(platform, Idle(Options())).keys()


async def test_backdoor_refuses_other_verbs_and_paths(loop: LoopServer) -> None:
    async with platform_at_work(loop, backdoor=True) as (platform, _):
        app = mounts_of(platform, Idle(Options()))["/force_status_update"]
        assert (await ask(app, "GET", "/force_status_update")).status_code == 405
        assert (await ask(app, "POST", "/force_status_update/x")).status_code == 404
        assert "/force_status_update" not in mounts_of(platform)
