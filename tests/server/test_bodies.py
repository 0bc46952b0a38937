"""Bodies of many callers at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from anyio import fail_after

from loopcore.hookspecs import Mount
from loopcore.server import bodies

from .conftest import Serve

pytestmark = pytest.mark.anyio

PART = 300_000


class Gatherer:
    """Reads bodies whole; says how many bytes it has."""

    def __init__(self) -> None:
        self.held = 0
        self._more = anyio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        mine = 0
        try:
            while (message := await receive())["type"] == "http.request":
                mine += len(message["body"])
                self.held += len(message["body"])
                self._more.set()
                if not message.get("more_body"):
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": str(mine).encode()})
                    return
        finally:
            self.held -= mine
            self._more.set()

    async def until(self, held: int) -> None:
        while self.held != held:
            self._more = anyio.Event()
            await self._more.wait()


@pytest.mark.parametrize("path", ["/a", "/predict"])
@pytest.mark.parametrize("says_its_size", [True, False])
async def test_bodies_of_all_together_have_a_bound_and_small_ones_pass(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, says_its_size: bool
) -> None:
    monkeypatch.setattr(bodies, "HELD_BYTES", 1_000_000)
    gatherer = Gatherer()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(PART // 4)

    body: Any = bytes(PART) if says_its_size else pieces()
    head = f"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {PART * 2}\r\n\r\n".encode()
    with fail_after(10):
        async with serve([Mount(path="/a", app=gatherer.app)]) as client:
            async with AsyncExitStack() as stack:
                for index in range(3):
                    stream = await stack.enter_async_context(
                        await anyio.connect_tcp(client.base_url.host, client.base_url.port or 0)
                    )
                    await stream.send(head + bytes(PART))
                    await gatherer.until(PART * (index + 1))
                answer = await client.post(path, content=body)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                assert answer.json() == {
                    "error": "Refused", "message": "others are sending too much already; come again",
                }  # fmt: skip
                assert (await client.post("/a", content=b"small")).text == "5"
            await gatherer.until(0)
            answer = await client.post("/a", content=bytes(PART))
            assert (answer.status_code, answer.text) == (200, str(PART))


async def test_a_body_is_counted_for_as_long_as_its_request_lasts(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "HELD_BYTES", 2 * PART)
    async with serve([Mount(path="/a", app=Gatherer().app)]) as client:
        for _ in range(5):
            assert (await client.post("/a", content=bytes(PART))).status_code == 200
