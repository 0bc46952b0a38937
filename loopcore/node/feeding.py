"""Sources at work: each in its own task, started again when it fails, and none takes another down."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from loopcore.abc import Service, Source
from loopcore.errors import LoopcoreError, first
from loopcore.node.enduring import Begun

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0, 30.0, 60.0)
"""How long a source that has failed is left alone: the first time, the second …"""

STEADY_S = 300.0
"""A source that has run for so long before it fails counts as failing for the first time."""


class Feed:
    """One source of the node, and how it is doing.

    Args:
        name: The name of its table.
        source: The source, not entered.
    """

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.ended = anyio.Event()
        self._source = source
        self._state = "waiting"
        self._failures = 0
        self._row = 0
        self._last_error: str | None = None

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        """Run the source until its input ends.

        Raises:
            Exception: What the source raised before it had begun for the first time; it has not been entered again.
        """
        begun = Begun(task_status)
        while True:
            entered = anyio.current_time()
            try:
                self._state = "running"
                async with self._source as source:
                    await source.run(service, task_status=begun)
                break
            except Exception as exc:
                # The driver guard: whatever a source raises once it has begun pauses it, and the node goes on.
                if not begun.happened:
                    raise
                self._row = self._row + 1 if anyio.current_time() - entered < STEADY_S else 1
                self._note(first(exc))
            await anyio.sleep(PAUSES_S[min(self._row, len(PAUSES_S)) - 1])
        begun.started()
        self._state = "ended"
        self.ended.set()
        _log.info("A source has come to its end name=%s", self.name)

    def status(self) -> dict[str, Any]:
        """Its state as plain data."""
        return {"state": self._state, "failures": self._failures, "last_error": self._last_error}

    def _note(self, exc: Exception) -> None:
        self._failures += 1
        self._state = "failed"
        self._last_error = str(exc) or type(exc).__name__
        foreseen = isinstance(exc, LoopcoreError)
        level = logging.DEBUG if self._row > 1 else logging.WARNING if foreseen else logging.ERROR
        _log.log(
            level,
            "A source failed and will be started again name=%s failures=%d error=%s",
            self.name,
            self._failures,
            self._last_error,
            exc_info=None if foreseen else exc,
        )
