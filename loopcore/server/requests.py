"""Running requests, each in a scope of its own, so that the node can end them.

uvicorn would cancel their tasks, which heeds no shield: a thread would still be at work for a request that has ended.
"""

from __future__ import annotations

from anyio import CancelScope, Event
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopcore.hookspecs import LIMIT


class Requests:
    """An ASGI application in front of another, which can end what it does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running: set[CancelScope] = set()
        self._none = Event()
        self._ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        limit = CancelScope()
        scope.setdefault("extensions", {})[LIMIT] = limit
        self._running.add(limit)
        try:
            with limit:
                await self._app(scope, receive, noted)
            if limit.cancelled_caught and not begun:
                answer = {"error": "NotReadyError", "message": "the node stops"}
                await JSONResponse(answer, 503, {"Retry-After": "1"})(scope, receive, send)
        finally:
            self._running.discard(limit)
            if self._ending and not self._running:
                self._none.set()

    async def end(self) -> None:
        """Cancel all, and return when they have ended. No new ones may come."""
        self._ending = True
        for limit in self._running:
            limit.cancel()
        if self._running:
            await self._none.wait()
