"""The platform `edgeimpulse` asks Studio whether it takes the key."""

from __future__ import annotations

import pytest
from loopcore_edgeimpulse.platform import Platform

from loopcore.abc import ModelRegistry
from loopcore.options import Secret
from loopcore.registry import Registry
from loopcore.testing import LoopbackServer, Reply, Request

pytestmark = pytest.mark.anyio


def answer(request: Request) -> Reply:
    if request.path == "/other/api/projects/api-key-info":
        return Reply(body=b"<html>")
    if request.headers["x-api-key"] != "ei_good":
        return Reply(body=b'{"success": false, "error": "Invalid API key"}')
    return Reply(body=b'{"success": true, "projectId": 1, "role": "admin"}')


def platform(url: str, key: str = "ei_good") -> Platform:
    return Platform(Platform.Options(url=url, api_key=Secret(key)))


def test_it_is_installed_under_its_name() -> None:
    assert Registry().driver("platform", "edgeimpulse") is Platform
    assert Registry().package("platform", "edgeimpulse") == "loopcore-edgeimpulse"


async def test_good_key_has_no_problems() -> None:
    async with LoopbackServer(answer) as server, platform(server.url + "/v1") as driver:
        assert await driver.check() == []
        assert await driver.capability(ModelRegistry) is None
        assert [request.path for request in server.requests] == ["/v1/api/projects/api-key-info"]


async def test_refusal_with_status_200_is_a_problem_that_does_not_show_the_key() -> None:
    async with LoopbackServer(answer) as server, platform(server.url + "/v1", "ei_canary") as driver:
        (problem,) = await driver.check()
    assert problem.message == "Edge Impulse refuses the key: Invalid API key"


async def test_peer_that_is_another_or_gone_is_a_problem() -> None:
    async with LoopbackServer(answer) as server, platform(server.url + "/other") as driver:
        (problem,) = await driver.check()
        assert "is the URL right?" in problem.message
        async with server.down():
            (problem,) = await driver.check()
            assert "does not answer" in problem.message
