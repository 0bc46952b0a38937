"""Tell a platform how the node is doing: at once when something has changed, and every half minute."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from anyio import Event, move_on_after

from loopcore.abc import DeploymentTarget
from loopcore.deploy.exchange import MOST_ASKED_S, exchange
from loopcore.errors import LoopcoreError, RetryableError

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

EVERY_S = 30.0


class Reporter:
    """Reports to one platform. What changes while a report is under way is in the next one; a failure disturbs nobody.

    Args:
        platform: Its name.
        target: Takes the reports.
        status: The node's status.
        every_s: How often to report when nothing changes.
    """

    def __init__(
        self,
        platform: str,
        target: DeploymentTarget,
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        every_s: float = EVERY_S,
    ) -> None:
        self._platform = platform
        self._target = target
        self._status = status
        self._every_s = every_s
        self._changed = Event()
        self._failing = False

    def changed(self) -> None:
        """Report soon."""
        self._changed.set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Report until cancelled."""
        task_status.started()
        while True:
            self._changed = Event()
            await anyio.sleep(await self._report())
            with move_on_after(self._every_s):
                await self._changed.wait()

    async def _report(self) -> float:
        """Report once; for how long the platform wants to hear nothing more."""
        try:
            status = await self._status()
            with exchange(self._platform):
                await self._target.report(status)
        except LoopcoreError as exc:
            level = logging.DEBUG if self._failing else logging.WARNING
            _log.log(
                level, "A platform takes no report and is told again later platform=%s error=%s", self._platform, exc
            )
            self._failing = True
            return min((exc.retry_after_s if isinstance(exc, RetryableError) else None) or 0.0, MOST_ASKED_S)
        if self._failing:
            _log.info("A platform takes reports again platform=%s", self._platform)
        self._failing = False
        return 0.0
