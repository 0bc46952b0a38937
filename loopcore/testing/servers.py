"""A small real HTTP/1.1 server on loopback, that can be slow, wrong, full or closed.

```python
async with LoopbackServer(application) as server:
    server.script(Reply(status=503), LoseAnswer())      # for the next two requests; after them `application` answers
    ...                                                 # let a client talk to server.url
```

It listens on a port that the system chose, knows keep-alive and chunked bodies, speaks TLS if it gets a context, and
runs under asyncio and trio.
"""

from __future__ import annotations

import ssl
import struct
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET
from typing import Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from anyio import AsyncContextManagerMixin, CancelScope
from anyio.abc import ByteStream, SocketAttribute, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener
from msgspec import Struct, field, structs

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.IncompleteRead, ssl.SSLError)
"""How a client may leave; the last is what TLS makes of one that left without a goodbye."""

_MAX_HEAD_BYTES = 65_536


class Request(Struct, frozen=True, kw_only=True):
    """A request as it came, whole.

    Attributes:
        method: In upper case.
        path: Without the query.
        query: The query's fields; of a repeated one, the last.
        headers: Names in lower case; repeated ones joined by commas.
        body: All of it.
    """

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Reply(Struct, frozen=True, kw_only=True):
    """An answer. As a step of a script: this answer, and the application never hears of the request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Serve(Struct, frozen=True):
    """Step: the application answers. To place a fault behind requests that go well."""


class LoseAnswer(Struct, frozen=True, kw_only=True):
    """Step: the application acts, and the connection is reset when `sent` bytes of its answer are out."""

    sent: int = 0


class Reset(Struct, frozen=True, kw_only=True):
    """Step: the connection is reset when `received` bytes of the body have come; the application does not act."""

    received: int = 1


class Late(Struct, frozen=True, kw_only=True):
    """Step: the application acts at once, and its answer goes out `seconds` later."""

    seconds: float


class Stall(Struct, frozen=True, kw_only=True, eq=False):
    """Step: nothing happens until the event is set, or ever, if there is none; then the application answers."""

    until: anyio.Event | None = None


Step: TypeAlias = Reply | Serve | LoseAnswer | Reset | Late | Stall
"""What is done with one request."""

Application: TypeAlias = Callable[[Request], Reply]
"""What the server is when all goes well. Called in the event loop, one request at a time."""


class LoopbackServer(AsyncContextManagerMixin):
    """The server; listens while its block is open, and forgets its open connections at the end.

    An error in the application ends the block: a bug in a stand-in is not an answer.

    Args:
        application: What answers where the script does not say otherwise.
        tls: To speak HTTPS.

    Attributes:
        requests: All that came whole, in order of arrival; those that a step broke off are missing.
        seen: How many requests have begun to come, broken and stalled ones included.
    """

    def __init__(self, application: Application, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self._application = application
        self._tls = tls
        self._steps: deque[Step] = deque()
        self._treatment: Callable[[Request], Step] = _serve
        self._port = 0
        self.seen = 0
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as self._group:
            self._listening = await self._group.start(self._listen)
            yield self
            self._group.cancel_scope.cancel()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, without a slash at the end; known once entered."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def script(self, *steps: Step) -> None:
        """Say what is done with the next requests, one step for each. Steps that still wait are forgotten."""
        self._steps = deque(steps)

    async def arrived(self, count: int) -> None:
        """Wait until `seen` is at least this."""
        while self.seen < count:
            await self._changed.wait()

    def treat(self, treatment: Callable[[Request], Step] | None) -> None:
        """Say what is done with each request that no step of a script waits for, by what is in it.

        It is asked when the body has come; a `Reset` comes after that. `None`: the application answers again.
        """
        self._treatment = treatment or _serve

    @asynccontextmanager
    async def down(self) -> AsyncGenerator[None]:
        """For the length of the block nobody listens: connections are refused, and open ones are broken."""
        scope, closed = self._listening
        scope.cancel()
        await closed.wait()
        yield
        self._listening = await self._group.start(self._listen)

    async def _listen(self, *, task_status: TaskStatus[tuple[CancelScope, anyio.Event]]) -> None:
        closed = anyio.Event()
        with CancelScope() as scope:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self._port)
            self._port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django
            try:
                task_status.started((scope, closed))
                await (TLSListener(listener, self._tls) if self._tls else listener).serve(self._converse)
            finally:
                with CancelScope(shield=True):  # a cancelled close would take the place of the application's error
                    await listener.aclose()
        closed.set()

    async def _converse(self, stream: ByteStream) -> None:
        with suppress(*_GONE):
            async with stream:
                reader = BufferedByteReceiveStream(stream)
                while await self._exchange(stream, reader):
                    pass

    async def _exchange(self, stream: ByteStream, reader: BufferedByteReceiveStream) -> bool:
        head = await reader.receive_until(b"\r\n\r\n", _MAX_HEAD_BYTES)
        request = _parse_head(head)
        step = self._steps.popleft() if self._steps else None
        self.seen += 1
        self._changed.set()
        self._changed = anyio.Event()
        if isinstance(step, Reset):
            await reader.receive_exactly(min(step.received, int(request.headers.get("content-length", step.received))))
            await _reset(stream)
            return False
        request = structs.replace(request, body=await _read_body(request, stream, reader))
        self.requests.append(request)
        step = step or self._treatment(request)
        if isinstance(step, Reset):
            await _reset(stream)
            return False
        if isinstance(step, Stall):
            await (step.until or anyio.Event()).wait()
        reply = step if isinstance(step, Reply) else self._application(request)
        answer = _render(reply)
        if isinstance(step, Late):
            await anyio.sleep(step.seconds)
        if isinstance(step, LoseAnswer):
            await stream.send(answer[: step.sent])
            await _reset(stream)
            return False
        await stream.send(answer)
        return request.headers.get("connection", "").lower() != "close"


def _serve(_: Request) -> Step:
    return Serve()


def _parse_head(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    parts = urlsplit(target)
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(method=method, path=unquote(parts.path), query=dict(parse_qsl(parts.query)), headers=headers)


async def _read_body(request: Request, stream: ByteStream, reader: BufferedByteReceiveStream) -> bytes:
    if request.headers.get("expect", "").lower() == "100-continue":
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.receive_exactly(int(request.headers.get("content-length", 0)))
    body = bytearray()
    while size := int((await reader.receive_until(b"\r\n", _MAX_HEAD_BYTES)).split(b";")[0], 16):
        body += await reader.receive_exactly(size)
        await reader.receive_exactly(2)
    while await reader.receive_until(b"\r\n", _MAX_HEAD_BYTES):
        pass  # trailers
    return bytes(body)


def _render(reply: Reply) -> bytes:
    phrase = HTTPStatus(reply.status).phrase
    headers = {"content-length": str(len(reply.body)), **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + reply.body


async def _reset(stream: ByteStream) -> None:
    """Close so that the peer gets a reset, not an end."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django
    raw.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    await anyio.aclose_forcefully(stream)
