"""How much of websocket messages that are not whole yet is held, in bytes, pieces and time.

uvicorn bounds a single message. But one is gathered in memory until its last byte is there, before an application hears
of it, so a few hundred connections that each send most of a large one would take gigabytes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from loopcore.server import patience

MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message: a 4K picture as an array is 25 MB, and uvicorn's own limit is 16 MiB."""

HELD_BYTES = 4 * MESSAGE_BYTES
"""Of all connections together; who sends more while so much is held is cut off."""

MAX_PIECES = 10_000
"""Of one message; each costs an object, however short it is."""


class Held:
    """The bytes of unfinished messages, of all connections of a server."""

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self.limit = limit
        self.total = 0


class PatientSocket(WebSocketsSansIOProtocol):
    """uvicorn's websocket with an end to its patience."""

    held = Held()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mine = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._hold(0)
        self._stop_waiting()
        super().connection_lost(exc)
        self.conn.reader.buffer.clear()  # the connection is part of a circle, which is found late
        self.frames = []

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._hold(self._mine + len(data) if self.frames else len(self.conn.reader.buffer))
        self._stop_waiting()
        if not self._mine or self.transport.is_closing():
            return
        if self.held.total > self.held.limit or len(self.frames) > MAX_PIECES:
            self.transport.abort()
        else:
            self._wait()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._stop_waiting()
        if self in self.connections:  # what is still to be sent waits for the client to take it
            self._timer = self.loop.call_later(patience.STILL_S, self.transport.abort)

    def _hold(self, count: int) -> None:
        self.held.total += count - self._mine
        self._mine = count

    def _wait(self) -> None:
        self._timer = self.loop.call_later(patience.STILL_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.read_paused:  # it is the application that lets the client wait
            self._wait()
        else:
            self.transport.abort()
