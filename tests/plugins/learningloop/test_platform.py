"""The platform `learningloop`: what it can do, and what it says when it cannot."""

from __future__ import annotations

from typing import Any

import pytest
from loop import Answer, LoopServer
from loopcore_learningloop.platform import Platform

from loopcore.abc import DeploymentTarget, ImageStore, ModelRegistry
from loopcore.errors import ConfigError
from loopcore.options import Secret
from loopcore.registry import Registry
from loopcore.testing import PlatformSuite

pytestmark = pytest.mark.anyio


def test_it_is_installed_under_its_name() -> None:
    assert Registry().driver("platform", "learningloop") is Platform
    assert Registry().package("platform", "learningloop") == "loopcore-learningloop"


class TestLearningLoopPlatform(PlatformSuite):
    driver = Platform
    publishes = False  # the Loop takes the models of its trainings: see test_models.py
    assigns = False

    @pytest.fixture
    def table(self, loop: LoopServer) -> dict[str, Any]:
        return table_of(loop)


def table_of(loop: LoopServer) -> dict[str, Any]:
    place = {"organization": "zauberzeug", "project": "demo"}
    return {"url": loop.url, "username": "ranger", "password": "krill", **place}


def platform(loop: LoopServer, **changes: Any) -> Platform:
    table = table_of(loop) | changes
    return Platform(Platform.Options(**(table | {"password": Secret(table["password"])})))


async def test_platform_without_a_project_has_models_and_no_deployment_or_images(loop: LoopServer) -> None:
    async with platform(loop, organization="", project="") as driver:
        assert await driver.capability(ModelRegistry) is not None
        assert await driver.capability(DeploymentTarget) is None
        assert await driver.capability(ImageStore) is None
        assert await driver.check() == []


def test_project_without_an_organization_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="belongs to an organization"):
        Platform(Platform.Options(project="demo"))


async def test_loop_that_is_ready_and_knows_us_has_no_problems(loop: LoopServer) -> None:
    async with platform(loop) as driver:
        assert await driver.check() == []


@pytest.mark.parametrize(
    ("changes", "call", "fault", "words"),
    [
        ({}, "status", Answer(503), "is not ready"),
        ({"password": "squid"}, "", None, "username and password right"),
        ({}, "login", Answer(500), "500"),
        ({"project": "walruses"}, "", None, "no project zauberzeug/walruses"),
        ({}, "project", Answer(403), "403"),
    ],
)
async def test_what_stands_in_the_way_is_said_in_one_sentence(
    loop: LoopServer, changes: dict[str, Any], call: str, fault: Answer | None, words: str
) -> None:
    if fault:
        loop.faults.set(call, fault)
    async with platform(loop, **changes) as driver:
        (problem,) = await driver.check()
    assert words in problem.message
    assert problem.fatal


async def test_loop_that_is_gone_is_a_problem(loop: LoopServer) -> None:
    async with platform(loop) as driver, loop.down():
        (problem,) = await driver.check()
    assert problem.message.startswith("the Learning Loop is not ready")


async def test_loop_whose_projects_only_trainers_may_read_has_the_same_categories(loop: LoopServer) -> None:
    loop.faults.set("project", Answer(404))
    async with platform(loop) as driver:
        assert driver.project is not None
        categories = await driver.project.categories()
        assert categories.knows({"white box", "purple point"})
        assert await driver.check() == []
