"""Socket.IO for a detector's clients; python-socketio's server is fenced in here.

That library starts tasks of its own, and would gather whatever a client sends. Here its tasks end with the server, and
what clients may have under way is bounded before the library hears of it (`limits.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
import engineio
import socketio
from anyio import CancelScope
from starlette.types import Message, Receive, Scope, Send

from loopcore.forms import read_body
from loopcore_learningloop.detector.events import Events
from loopcore_learningloop.detector.limits import Load, Traffic

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

PATH = "/ws/socket.io"
MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message: a picture of 4K as an array has 25 MB (4.2)."""

MAX_TEXT = 4 * 1024 * 1024
"""Of an event without its pictures, in characters: the library looks for JSON in all that comes."""

MAX_ATTACHMENTS = 1000
"""Of an event; more than one may use, so that a client is told so."""

MAX_CLIENTS = 128

_BETWEEN = b"\x1e"
_LOOKING = frozenset({"detect", "batch_detect"})
_serving: ContextVar[Traffic | None] = ContextVar("_serving", default=None)
_wire = logging.getLogger(f"{__name__}.wire")
_wire.setLevel(logging.CRITICAL)  # the library tells of each message, and of a client's nonsense with a traceback


class Sockets:
    """The ASGI application behind `/ws/socket.io`.

    Args:
        events: What is done on each event.
        load: What all clients together may have under way.
    """

    def __init__(self, events: Events, load: Load | None = None) -> None:
        self._events = events
        self._load = load or Load()
        self._polling = Traffic(self._load)
        self._server = _Server(
            async_mode="asgi",
            cors_allowed_origins=[],  # no headers; the node checks the origin itself
            http_compression=False,
            max_http_buffer_size=MESSAGE_BYTES,
            serializer=_Packet,
            logger=_wire,
            engineio_logger=_wire,
        )
        self._server.on("*", self._answer)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Until cancelled; then what the library has started ends."""
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            with CancelScope(shield=True):
                await self._server.engine.end_tasks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_one_too_many(scope):
            await _refuse(scope, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._serve_poll(scope, receive, send)

    def _is_one_too_many(self, scope: Scope) -> bool:
        return len(self._server.engine.sockets) >= MAX_CLIENTS and not _session(scope)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        traffic = Traffic(self._load)
        token = _serving.set(traffic)

        async def next_message() -> Message:
            if await traffic.has_room():
                message = await receive()
                text, data = message.get("text") or "", message.get("bytes") or b""
                if len(text) <= MAX_TEXT and traffic.gather(len(text) + len(data)):
                    return message
            return {"type": "websocket.disconnect", "code": 1013}

        async def send_message(message: Message) -> None:
            with traffic.sending():
                await send(message)

        try:
            await self._server.handle_request(scope, next_message, send_message)
        finally:
            _serving.reset(token)
            traffic.end()

    async def _serve_poll(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange of a client that has not gone over to websocket; all of these share their bounds."""
        await self._polling.has_room()
        body = await read_body(receive)
        if body is None:
            return
        if not self._polling.gather(len(body)) or _is_wordy(body):
            self._polling.forget()
            await _refuse(scope, send)
            return
        token = _serving.set(self._polling)

        async def whole() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self._server.handle_request(scope, whole, send)
        finally:
            _serving.reset(token)
            self._polling.forget()
            self._server.engine.release(_session(scope))

    async def _answer(self, event: str, _: str, *payload: Any) -> Any:
        traffic = _serving.get()
        if event not in _LOOKING or traffic is None or traffic is self._polling:
            return await self._events.answer(event, *payload)
        with traffic.until_gone():
            return await self._events.answer(event, *payload)


def _session(scope: Scope) -> str:
    """The session that a request belongs to; empty if it begins one."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("sid", [""])[0]


def _is_wordy(body: bytes) -> bool:
    """Whether a packet among those of a poll is too long a text; `b` begins one that is no text."""
    return len(body) > MAX_TEXT and any(
        len(packet) > MAX_TEXT and not packet.startswith(b"b") for packet in body.split(_BETWEEN)
    )


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013})
        return
    headers = [(b"content-type", b"text/plain"), (b"retry-after", b"10")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b"too many clients"})


class _Packet(socketio.packet.Packet):  # type: ignore[misc]
    """A packet of Socket.IO with an end to what a client may announce."""

    def decode(self, encoded_packet: str) -> int:
        announced: int = super().decode(encoded_packet)
        if announced > MAX_ATTACHMENTS:
            raise ValueError("the event has too many attachments")
        return announced


class _Engine(engineio.AsyncServer):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tasks: set[asyncio.Task[Any]] = set()

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().start_background_task(target, *arguments, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def release(self, session: str) -> None:
        """Who says good-bye in one request waits for the answer to another, which would take half a minute."""
        socket = self.sockets.get(session)
        if socket is not None and socket.closed:
            socket.queue.put_nowait(None)

    async def end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Server(socketio.AsyncServer):  # type: ignore[misc]
    @property
    def engine(self) -> _Engine:
        engine: _Engine = self.eio
        return engine

    def _engineio_server_class(self) -> type[_Engine]:
        return _Engine

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """The library does each event in a task of its own."""
        task: asyncio.Task[Any] = super().start_background_task(target, *arguments, **options)
        if traffic := _serving.get():
            traffic.begin(task)
        return task
