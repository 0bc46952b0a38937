"""The control that tests of a trainer's Loop need besides `/reset` (`learning-loop.md` 9.5)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from loopcore_learningloop.detector.requests import answer_json
from loopcore_learningloop.platform import Platform

PATH = "/force_status_update"


class ForceStatus:
    """`POST /force_status_update`: each trainer tells its Loop at once how it is doing."""

    def __init__(self, platforms: Sequence[Platform]) -> None:
        self._platforms = platforms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - there is no body
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif scope["path"].rstrip("/") != PATH:
            await answer_json({"detail": "Not Found"}, 404).send(send)
        elif scope["method"] != "POST":
            await answer_json({"detail": "Method Not Allowed"}, 405, allow="POST").send(send)
        else:
            for platform in self._platforms:
                platform.refresh()
            await answer_json(True).send(send)
