"""How much a connection may take before it is served, in time, bytes and number; uvicorn would wait for ever.

All of this comes before the token is asked for, and descriptors and memory are what the outbox needs, too.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from anyio import CancelScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from loopcore.hookspecs import GONE

HEAD_BYTES = 64_000
"""The first line and the headers of a request, beyond what arrives in one piece."""

STILL_S = 20.0
"""How long a client may take for a head, and how long its body may stand still."""

MAX_CONNECTIONS = min(400, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""At a time; one more is closed as it comes."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with an end to its patience."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone: set[CancelScope] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)
        for limit in self._gone:
            limit.cancel()

    def data_received(self, data: bytes) -> None:
        went_on = self._in_head
        super().data_received(data)
        if went_on and self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")
        elif self._deadline is None and self._is_idle() and self.transport.get_protocol() is self:
            self._wait()  # uvicorn has dropped its own timer, and these bytes may be the last

    def handle_websocket_upgrade(self) -> None:
        self._end_waiting()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {GONE: self._gone}  # type: ignore[dict-item]
        self._in_head, self._head_bytes = True, 0
        self._wait()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._wait()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.time() + STILL_S
        if self._timer is None:
            self._timer = self.loop.call_later(STILL_S, self._look)

    def _stop_waiting(self) -> None:
        self._deadline = None

    def _end_waiting(self) -> None:
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """One timer looks now and then; one for each piece that comes would cost more than the rest of this class."""
        self._timer = None
        if self._deadline is None:
            return
        if self.flow.read_paused:  # it is the application that lets the client wait
            self._wait()
        elif self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._look)
        else:
            self.transport.abort()
