"""What a platform asks of this node, such as jobs: served until it returns, and again when it has failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope

from loopcore.errors import LoopcoreError, first

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0, 30.0, 60.0)
"""How long what has failed is left alone: the first time, the second …"""

STEADY_S = 300.0
"""What was served for so long before it fails counts as failing for the first time."""


class Enduring:
    """One platform's wish, and how serving it goes.

    Args:
        what: What is served, for people, as in `jobs`.
        platform: Whose.
        serve: Serves it until it returns; it gets where to say that it has begun.
    """

    def __init__(
        self, what: str, platform: str, serve: Callable[[TaskStatus[None]], Coroutine[Any, Any, None]]
    ) -> None:
        self._what = what
        self._platform = platform
        self._serve = serve
        self._failures = 0
        self._row = 0
        self._open = False
        self._last_error: str | None = None

    async def run(self, role: CancelScope, *, task_status: TaskStatus[None]) -> None:
        """Serve it until cancelled; where the platform asks for the node's restart, the role is cancelled.

        Raises:
            Exception: What was raised before it had begun for the first time.
        """
        begun = Begun(task_status)
        while True:
            since = anyio.current_time()
            try:
                self._open = True
                await self._serve(begun)
                break
            except Exception as exc:
                # The driver guard: whatever a platform raises once it has begun only means a pause; the node goes on.
                if not begun.happened:
                    raise
                self._row = self._row + 1 if anyio.current_time() - since < STEADY_S else 1
                self._note(first(exc))
            await anyio.sleep(PAUSES_S[min(self._row, len(PAUSES_S)) - 1])
        _log.info("A platform asks this node to start again platform=%s", self._platform)
        role.cancel()

    def status(self) -> dict[str, Any]:
        """How it goes, as plain data."""
        return {"open": self._open, "failures": self._failures, "last_error": self._last_error}

    def _note(self, exc: Exception) -> None:
        self._failures += 1
        self._open = False
        self._last_error = str(exc) or type(exc).__name__
        foreseen = isinstance(exc, LoopcoreError)
        _log.log(
            logging.DEBUG if self._row > 1 else logging.WARNING if foreseen else logging.ERROR,
            "A platform cannot be served and will be again what=%s platform=%s failures=%d error=%s",
            self._what,
            self._platform,
            self._failures,
            self._last_error,
            exc_info=None if foreseen else exc,
        )


class Begun:
    """Passes the first `started()` on; what is served again says it again."""

    def __init__(self, outer: TaskStatus[None]) -> None:
        self._outer = outer
        self.happened = False

    def started(self, value: None = None) -> None:
        if not self.happened:
            self.happened = True
            self._outer.started(value)
