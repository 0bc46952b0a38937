"""A platform hears of changes, and a failing one disturbs nobody."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore.deploy.reporting import Reporter
from loopcore.errors import RetryableError
from loopcore.testing.platform import MemoryDeployment, MemoryModels

pytestmark = pytest.mark.anyio


class Desk:
    """A reporter at work; each report has a number."""

    def __init__(self, every_s: float) -> None:
        self.target = MemoryDeployment(MemoryModels())
        self.reporter = Reporter("acme", self.target, self._status, every_s)
        self.count = 0

    async def _status(self) -> dict[str, Any]:
        self.count += 1
        return {"number": self.count}

    async def next(self) -> Any:
        await self.target.reported.wait()
        self.target.reported = anyio.Event()
        return self.target.reports[-1]["number"]


@asynccontextmanager
async def reporting(every_s: float = 3600, *errors: Exception) -> AsyncGenerator[Desk]:
    desk = Desk(every_s)
    desk.target.errors.extend(errors)
    with fail_after(10):
        async with create_task_group() as tasks:
            await tasks.start(desk.reporter.run)
            yield desk
            tasks.cancel_scope.cancel()


async def test_the_first_report_comes_at_once_and_the_next_with_a_change() -> None:
    async with reporting() as desk:
        assert await desk.next() == 1
        await anyio.wait_all_tasks_blocked()
        assert desk.count == 1
        desk.reporter.changed()
        assert await desk.next() == 2


async def test_reports_come_when_nothing_changes() -> None:
    async with reporting(0.001) as desk:
        while await desk.next() < 4:
            pass


async def test_changes_during_a_report_are_in_the_next_one_together() -> None:
    async with reporting() as desk:
        for _ in range(5):
            desk.reporter.changed()
        await desk.next()
        await anyio.wait_all_tasks_blocked()
        assert desk.count <= 2


@pytest.mark.parametrize("error", [RetryableError("away"), KeyError("x"), RetryableError("busy", retry_after_s=0.001)])
async def test_reports_that_fail_are_logged_once_and_so_is_their_end(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with reporting(0.001, error, error) as desk:
        assert await desk.next() == 3
        await desk.next()
    assert len([record for record in caplog.records if "takes no report" in record.message]) == 1
    assert len([record for record in caplog.records if "takes reports again" in record.message]) == 1
