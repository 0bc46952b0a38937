"""python-socketio, fenced in: what a server sends is bounded, and nonsense among it does no harm.

The library starts a task for each message. They are kept account of, so that whoever has done with a client ends them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import engineio
import socketio

MESSAGE_BYTES = 4 << 20
"""Of one message, or one answer when polling: ten thousand categories are a quarter of that."""

MOST_WAITING = 1000
"""Messages under way, both ways: a Loop that sends faster than it listens is left."""

NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What the library raises because it believes what a server says."""

wire = logging.getLogger(f"{__name__}.wire")
"""For the library, which would tell each message, and each loss that we tell of ourselves."""
wire.setLevel(logging.CRITICAL + 1)

_log = logging.getLogger(__name__)
_BINARY = ("5", "6")  # messages whose parts the library collects without bounds


class BoundedResponse(aiohttp.ClientResponse):
    """The library reads all of an answer, however long it is."""

    async def read(self) -> bytes:
        if self._body is None:
            body = bytearray()
            async for piece in self.content.iter_any():
                body += piece
                if len(body) > MESSAGE_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(f"an answer of more than {MESSAGE_BYTES} bytes")
            self._body = bytes(body)
        return self._body


class _Engine(engineio.AsyncClient):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks: set[asyncio.Task[Any]] = set()

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().start_background_task(_guarded, target, *args, **kwargs)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _receive_packet(self, pkt: Any) -> None:
        if len(self.tasks) + self.queue.qsize() > MOST_WAITING:
            raise ValueError("more messages than can be answered")
        await super()._receive_packet(pkt)


class BoundedClient(socketio.AsyncClient):  # type: ignore[misc]
    @property
    def engine(self) -> _Engine:
        engine: _Engine = self.eio
        return engine

    def forget(self, callback: Callable[..., None]) -> None:
        """Wait no longer for an acknowledgement, if it has not come."""
        for waiting in self.callbacks.values():
            for number in [number for number, one in waiting.items() if one == callback]:
                del waiting[number]

    def _engineio_client_class(self) -> type[_Engine]:
        return _Engine

    async def _handle_eio_message(self, data: Any) -> None:
        if not isinstance(data, str) or data[:1] in _BINARY:
            raise ValueError("no event of the Loop carries bytes")
        await super()._handle_eio_message(data)

    async def _handle_ack(self, namespace: str | None, id: int, data: Any) -> None:  # noqa: A002 - theirs
        if id == 0:
            raise ValueError("nobody has asked for this")  # the library keeps its counter there
        await super()._handle_ack(namespace, id, data)

    async def _handle_connect(self, namespace: str | None, data: Any) -> None:
        if namespace in (None, "/"):  # others were not asked for
            await super()._handle_connect(namespace, data)


async def _guarded(target: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
    try:
        return await target(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - the library does not check what a server says
        _log.debug("The Loop sends what makes no sense error=%r", exc)
