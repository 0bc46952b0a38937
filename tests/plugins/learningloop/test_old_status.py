"""Loops from before 0.16 hear of a detector over its socket, and answer with the target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import fail_after
from loop import DEMO, MODEL_IDS, Answer, LoopServer, Nonsense
from loopcore_learningloop import old_status, sockets
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.platform import Platform

from loopcore import Secret
from loopcore.abc import DeploymentTarget
from loopcore.errors import ConfigError, RetryableError

pytestmark = pytest.mark.anyio

ORGANIZATION, _, PROJECT = DEMO.partition("/")
STATUS = {
    "node": "gate-3",
    "ready": True,
    "uptime_s": 12.5,
    "model": {"name": "m", "version": "1.0", "format": "mocked"},
    "rollouts": [],
}


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "FIRST_S", 0.02)
    monkeypatch.setattr(sockets, "LEAST_UP_S", 0.0)


@pytest.fixture
def old(loop: LoopServer) -> LoopServer:
    """A Loop that has no REST routes for detectors, and no login for them."""
    for call in ("detectors", "target"):
        loop.faults.set(call, Answer(404))
    return loop


@asynccontextmanager
async def platform(loop: LoopServer, **more: Any) -> AsyncIterator[tuple[Platform, DeploymentTarget]]:
    options = PlatformOptions(url=loop.url, organization=ORGANIZATION, project=PROJECT, **more)
    with fail_after(20):
        async with Platform(options) as driver:
            deployment = await driver.capability(DeploymentTarget)
            assert deployment
            yield driver, deployment


async def test_status_goes_over_the_socket_and_the_target_comes_back(old: LoopServer) -> None:
    async with platform(old) as (_, deployment):
        await deployment.report(STATUS)
        await deployment.report(STATUS)
        target = await deployment.target()
    assert target
    assert (target.version, target.extra["learningloop"]["id"]) == ("1.1", MODEL_IDS["1.1"])
    first, second = old.detectors
    assert first.body == second.body
    assert first.event == "update_detector"
    assert first.project == DEMO
    assert first.body | {"id": ""} == {
        "id": "", "name": "gate-3", "state": "online", "uptime": 12, "model_format": "mocked", "current_model": "1.0",
        "target_model": None, "errors": {}, "operation_mode": "idle",
    }  # fmt: skip
    (connection,) = old.connections
    assert (connection.kind, connection.organization, connection.project) == ("detector", ORGANIZATION, PROJECT)
    assert connection.account is None
    assert list(old.complaints) == []


async def test_detector_with_an_account_logs_in(old: LoopServer) -> None:
    async with platform(old, username="ranger", password=Secret("krill")) as (_, deployment):
        await deployment.report(STATUS)
    assert old.connections[0].account == "ranger"


async def test_loop_without_a_target_names_none(old: LoopServer) -> None:
    old.store[DEMO].target = None
    async with platform(old) as (_, deployment):
        await deployment.report(STATUS)
        assert await deployment.target() is None


@pytest.mark.parametrize("fault", [Answer(500), Nonsense()], ids=repr)
async def test_status_that_is_not_heard_is_told_again_on_another_connection(old: LoopServer, fault: Any) -> None:
    old.faults.script("update_detector", fault)
    async with platform(old) as (_, deployment):
        with pytest.raises(RetryableError):
            await deployment.report(STATUS)
        await deployment.report(STATUS)
    assert len(old.detectors) == 1
    assert len(old.connections) == 2


async def test_loop_that_cannot_be_connected_to_is_an_error_that_can_be_tried_again(
    old: LoopServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_status, "CONNECT_S", 0.05)
    old.faults.set("socket", Answer(500))
    async with platform(old) as (_, deployment):
        with pytest.raises(RetryableError, match="has not opened"):
            await deployment.report(STATUS)


async def test_muted_detector_leaves_and_comes_back(old: LoopServer) -> None:
    async with platform(old) as (driver, deployment):
        await deployment.report(STATUS)
        driver.mute(True)
        await old.disconnections.wait(1)
        await deployment.report(STATUS)
        assert len(old.detectors) == 1
        driver.mute(False)
        await old.connections.wait(2)
        await deployment.report(STATUS)
    assert len(old.detectors) == 2


async def test_restart_is_acknowledged_and_passed_on(old: LoopServer) -> None:
    async with platform(old) as (_, deployment), anyio.create_task_group() as tasks:
        tasks.start_soon(deployment.restart_wanted)
        await deployment.report(STATUS)
        ack = await old.sockets.call(await old.sockets.node("detector"), "restart")
    assert ack["success"] is True


async def test_error_in_the_block_comes_out_as_it_is(old: LoopServer) -> None:
    async def fail() -> None:
        async with platform(old) as (_, deployment):
            await deployment.report(STATUS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused_with_a_sentence(old: LoopServer) -> None:
    async with platform(old) as (_, deployment):
        with pytest.raises(ConfigError, match="asyncio"):
            await deployment.report(STATUS)
