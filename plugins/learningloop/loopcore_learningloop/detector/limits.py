"""What Socket.IO clients may have under way.

- So many events of a client; reading from it waits until one of them is done.
- So many bytes of pictures, of all clients together, whose events are not done; who sends more is cut off.
- A client that does not take its answers is not read from meanwhile, and is cut off after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio import CancelScope
from msgspec import Struct

MAX_EVENTS = 8
MAX_PENDING = 256 * 1024 * 1024
STILL_S = 20.0
"""How long an answer may wait for its client to take it."""


class Load(Struct):
    """The bytes of pictures that wait for their events, of all clients."""

    limit: int = MAX_PENDING
    pending: int = 0


class Traffic:
    """What one client has under way.

    Args:
        load: Of all.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._gathered = 0
        self._events = 0
        self._blocked = 0
        self._is_over = False
        self._less = anyio.Event()
        self._looking: set[CancelScope] = set()

    async def has_room(self) -> bool:
        """Wait until the client may send more; `False`: it may not at all any more."""
        while not self._is_over and (self._events >= MAX_EVENTS or self._blocked):
            self._less = anyio.Event()
            await self._less.wait()
        return not self._is_over

    def gather(self, count: int) -> bool:
        """Note that so many bytes have come for the next event; `False`: that is too much."""
        self._gathered += count
        self._load.pending += count
        return self._load.pending <= self._load.limit

    def forget(self) -> None:
        """What was gathered belongs to no event."""
        self._load.pending -= self._gathered
        self._gathered = 0

    def begin(self, task: asyncio.Task[object]) -> None:
        """What was gathered belongs to the event that is done in this task."""
        size, self._gathered = self._gathered, 0
        self._events += 1

        def end(_: object) -> None:
            self._events -= 1
            self._load.pending -= size
            self._less.set()

        task.add_done_callback(end)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around the sending of an answer."""
        self._blocked += 1
        try:
            with anyio.fail_after(STILL_S):
                yield
        except TimeoutError:
            self._is_over = True
            raise
        finally:
            self._blocked -= 1
            self._less.set()

    @contextmanager
    def until_gone(self) -> Iterator[None]:
        """Around what is not worth doing for a client that has gone."""
        with CancelScope() as limit:
            self._looking.add(limit)
            try:
                yield
            finally:
                self._looking.discard(limit)

    def end(self) -> None:
        """The client has gone."""
        self._is_over = True
        self.forget()
        for limit in self._looking:
            limit.cancel()
