"""The platform `learningloop` asks its peer whether it is there."""

from __future__ import annotations

import pytest
from loopcore_learningloop.platform import Platform

from loopcore.abc import ModelRegistry
from loopcore.registry import Registry
from loopcore.testing import LoopbackServer, Reply, Request

pytestmark = pytest.mark.anyio


def answer(request: Request) -> Reply:
    return Reply(status=200 if request.path == "/api/status" else 400)


def platform(url: str) -> Platform:
    return Platform(Platform.Options(organization="zoo", project="penguins", url=url))


def test_it_is_installed_under_its_name() -> None:
    assert Registry().driver("platform", "learningloop") is Platform
    assert Registry().package("platform", "learningloop") == "loopcore-learningloop"


async def test_ready_peer_has_no_problems() -> None:
    async with LoopbackServer(answer) as server, platform(server.url) as driver:
        assert await driver.check() == []
        assert await driver.capability(ModelRegistry) is None
        assert [request.method for request in server.requests] == ["GET"]


async def test_peer_that_refuses_or_is_gone_is_a_problem() -> None:
    async with LoopbackServer(answer) as server, platform(server.url + "/elsewhere") as driver:
        (problem,) = await driver.check()
        assert problem.message.startswith("the Learning Loop is not ready")
        async with server.down():
            (problem,) = await driver.check()
            assert problem.fatal
