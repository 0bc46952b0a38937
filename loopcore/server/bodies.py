"""How much of requests' bodies is held, of one and of all together, whatever their heads say.

An application gathers a body before it looks at it, so a few hundred callers could each have the node hold the largest
one. Small ones are not counted: the number of connections bounds them.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALL_BYTES = 256 * 1024
HELD_BYTES = 256 * 1024 * 1024
"""Of all larger bodies together; who sends more while so much is held is refused (503)."""


class Bodies:
    """An ASGI application in front of another, which counts what comes.

    Args:
        app: The other one.
        max_body: The largest body; one that says its size was refused before, if it is larger.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_small(scope):
            await _Counted(self, self._max_body).serve(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Counted:
    """One request."""

    def __init__(self, all_: Bodies, max_body: int) -> None:
        self._all = all_
        self._max_body = max_body
        self._mine = 0
        self._is_answered = False

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            message = await receive()
            self._count(len(message.get("body", b"")))
            return message

        async def noted(message: Message) -> None:
            self._is_answered = True
            await send(message)

        try:
            await app(scope, counted, noted)
        except _RefusedError as exc:
            if self._is_answered:
                raise
            content = {"error": "Refused", "message": exc.detail}
            await JSONResponse(content, exc.status_code, exc.headers)(scope, receive, send)
        finally:
            self._all.held -= self._mine

    def _count(self, size: int) -> None:
        self._mine += size
        self._all.held += size
        if self._mine > self._max_body:
            raise _RefusedError(413, f"the body is larger than {self._max_body} bytes, the limit of [server] max_body")
        if self._all.held > HELD_BYTES:
            raise _RefusedError(503, "others are sending too much already; come again", {"Retry-After": "1"})


class _RefusedError(HTTPException):
    """As an `HTTPException`, so that an application that knows these may answer in its own form."""


def _is_small(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) <= SMALL_BYTES  # the guard has looked at it before
    return scope["method"] in ("GET", "HEAD") and all(name != b"transfer-encoding" for name, _ in scope["headers"])
