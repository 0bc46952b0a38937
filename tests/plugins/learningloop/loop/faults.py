"""What a call is told to answer instead of the truth, and the record of all calls."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loop.books import Book
from loop.calls import name_of

NONSENSE = b'\x1f\x8b{"\xff<html>[502'
"""Neither JSON, nor a zip, nor a picture, nor text."""


@dataclass(frozen=True)
class Answer:
    """This answer, and the server does not act. For a socket event: an acknowledgement with `success` false."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"detail":"so it was told"}'


def too_many(retry_after: float | None = None) -> Answer:
    """429, with a `Retry-After` in seconds or without."""
    return Answer(429, {} if retry_after is None else {"retry-after": f"{retry_after:g}"})


@dataclass(frozen=True)
class Nonsense:
    """200 with a body that means nothing, and the server does not act. For a socket event: such an acknowledgement."""

    body: bytes = NONSENSE


@dataclass(frozen=True)
class Stall:
    """No answer until the fault is lifted; the server does not act, and ends the connection then."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset without an answer, when the request has been read; the server does not act."""


@dataclass(frozen=True)
class LoseAnswer:
    """The server acts, and the connection is reset after so many bytes of the answer's body."""

    sent: int = 0


Fault: TypeAlias = Answer | Nonsense | Stall | Reset | LoseAnswer


@dataclass
class Call:
    """A request, or an event of a socket.

    Attributes:
        name: Which one (`loop.calls`).
        path: Of a request, without the query.
        account: Who is logged in, by the cookie; `None`: nobody.
        status: What was answered; 0 as long as nothing was, or for good.
        fault: What the server was told to do instead.
    """

    name: str
    method: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    account: str | None = None
    status: int = 0
    fault: Fault | None = None

    @property
    def cookies(self) -> dict[str, str]:
        return {name: morsel.value for name, morsel in SimpleCookie(self.headers.get("cookie", "")).items()}


class Faults:
    """The script: for each call, what is answered next."""

    def __init__(self) -> None:
        self._scripts: dict[str, deque[Fault | None]] = {}
        self._standing: dict[str, tuple[Fault, Callable[[Call], bool]]] = {}
        self._lifted: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def script(self, call: str, *faults: Fault | None) -> None:
        """What the next calls of this name get, in this order; `None`: the truth. It replaces an earlier script."""
        self._scripts[call] = deque(faults)

    def set(self, call: str, fault: Fault, *, when: Callable[[Call], bool] = lambda _: True) -> None:
        """What each call of this name gets, until `lift`; `"*"` is all calls."""
        self._standing[call] = (fault, when)

    def lift(self) -> None:
        """The truth again for all; connections that stall are ended."""
        self._scripts.clear()
        self._standing.clear()
        if self._loop is not None and self._lifted is not None:
            self._loop.call_soon_threadsafe(self._lifted.set)
            self._lifted = asyncio.Event()

    def enter(self) -> None:
        """Belong to the running loop; called by the server at each start."""
        self._loop, self._lifted = asyncio.get_running_loop(), asyncio.Event()

    def take(self, call: Call) -> Fault | None:
        script = self._scripts.get(call.name)
        if script:
            return script.popleft()
        for name in (call.name, "*"):
            if name in self._standing:
                fault, when = self._standing[name]
                return fault if when(call) else None
        return None

    async def lifted(self) -> None:
        assert self._lifted is not None
        await self._lifted.wait()


class Desk:
    """The outermost application: names each request, notes it, and does what the script says.

    Args:
        app: The server when all goes well.
        arrivals: Where requests are noted as they begin.
        calls: Where they are noted when they are answered or broken off.
        account: Who is behind a request's cookies.
    """

    def __init__(
        self,
        app: ASGIApp,
        faults: Faults,
        arrivals: Book[Call],
        calls: Book[Call],
        account: Callable[[Call], str | None],
    ) -> None:
        self._app = app
        self._faults = faults
        self._arrivals = arrivals
        self._calls = calls
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(
            name=name_of(scope["method"], scope["path"]),
            method=scope["method"],
            path=scope["path"],
            query=dict(parse_qsl(scope["query_string"].decode("latin-1"))),
            headers={key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]},
        )
        call.account = self._account(call)
        call.fault = self._faults.take(call)
        scope["state"]["call"] = call
        self._arrivals.add(call)
        try:
            await self._treat(call, scope, receive, send)
        finally:
            self._calls.add(call)

    async def _treat(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            await send(message)

        match call.fault:
            case None:
                await self._app(scope, receive, noted)
            case Answer(status, headers, body):
                await _drain(receive)
                await _answer(noted, status, headers, body)
            case Nonsense(body):
                await _drain(receive)
                await _answer(noted, 200, {"content-type": "application/json"}, body)
            case Stall():
                await self._faults.lifted()
                await _reset(scope)
            case Reset():
                await _drain(receive)
                await _reset(scope)
            case LoseAnswer(sent):
                await self._app(scope, receive, _cut(scope, send, sent))


def _cut(scope: Scope, send: Send, sent: int) -> Send:
    left = sent

    async def cut(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body[:left]:
                await send({"type": "http.response.body", "body": body[:left], "more_body": True})
            left -= len(body)
            if left <= 0 or not message.get("more_body"):
                await _reset(scope)
        elif left:
            await send(message)

    return cut


async def _drain(receive: Receive) -> None:
    """Read the request to its end, so that the answer does not meet a client that still writes."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass


async def _answer(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(key.encode(), value.encode()) for key, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


class Protocol(HttpToolsProtocol):
    """HTTP whose application can lay hands on the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope["transport"] = self.transport


async def _reset(scope: Scope) -> None:
    transport: asyncio.Transport = scope["transport"]
    raw = transport.get_extra_info("socket")
    if raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await asyncio.sleep(0)  # a turn of the loop, in which the connection is lost
