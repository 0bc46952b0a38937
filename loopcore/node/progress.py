"""Progress of a long operation, told not too often."""

from __future__ import annotations

from anyio import current_time

from loopcore.node.control_socket import Tell

_EVERY_S = 0.25


class Steps:
    """Tells how many steps are done.

    Args:
        tell: Whom.
        total: How many there are to do, as far as known.
    """

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell = tell
        self._total = total
        self._told = -_EVERY_S

    async def done(self, count: int) -> None:
        now = current_time()
        if now - self._told >= _EVERY_S:
            self._told = now
            await self._tell({"done": count, "total": max(count, self._total)})
