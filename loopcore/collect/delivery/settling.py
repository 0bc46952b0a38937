"""What came of sending is noted in the outbox, and then told: many samples with one write."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeAlias

import anyio
from anyio import Event, create_memory_object_stream, create_task_group
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from loopcore.collect.delivery.suspects import Refusal
from loopcore.collect.outbox import Lease, Outbox
from loopcore.errors import StorageError
from loopcore.types import Delivered, SampleInfo

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 5.0
_AGAIN_S = 5.0
_UNTOLD = 1000

_Call: TypeAlias = Callable[[], Awaitable[None]]


class Events(Protocol):
    """Who wants to hear of it. What these raise ends the node, so they guard what they call."""

    async def sample_delivered(self, sample: SampleInfo, sink: str, remote_id: str | None) -> None: ...

    async def sample_rejected(self, sample: SampleInfo, sink: str, why: str) -> None: ...


class Settler:
    """Notes outcomes in the order in which they came in; telling happens beside, and holds up noting by 1,000 events.

    Args:
        sink: The sink's name.
        outbox: Where to note.
        events: Whom to tell, after it is noted.
        noted: Called after each write.

    Attributes:
        error: Why the outbox could not note the last time it was asked; `None` if it could.
    """

    def __init__(self, sink: str, outbox: Outbox, events: Events | None, noted: Callable[[], None]) -> None:
        self._sink = sink
        self._outbox = outbox
        self._events = events
        self._noted = noted
        self._accepted: list[tuple[Lease, SampleInfo, Delivered]] = []
        self._rejected: list[Refusal] = []
        self._news = Event()
        self.error: str | None = None

    @property
    def waiting(self) -> int:
        """How many outcomes are not noted yet."""
        return len(self._accepted) + len(self._rejected)

    def accept(self, lease: Lease, info: SampleInfo, receipt: Delivered) -> None:
        self._accepted.append((lease, info, receipt))
        self._news.set()

    def reject(self, refusal: Refusal) -> None:
        self._rejected.append(refusal)
        self._news.set()

    async def run(self) -> None:
        """Note until cancelled."""
        send, receive = create_memory_object_stream[_Call](_UNTOLD)
        async with send, receive, create_task_group() as tasks:
            tasks.start_soon(self._tell, receive)
            await self._note_forever(send)

    async def finish(self) -> None:
        """Note what is left, whatever is being cancelled, within seconds; nobody is told of it any more."""
        with anyio.move_on_after(_LAST_WORDS_S, shield=True):
            try:
                await self._note(None)
            except StorageError as exc:
                _log.warning("What was delivered cannot be noted and will be sent again: %s sink=%s", exc, self._sink)

    async def _note_forever(self, told: ObjectSendStream[_Call]) -> None:
        while True:
            await self._news.wait()
            self._news = Event()
            try:
                await self._note(told)
                self.error = None
            except StorageError as exc:
                _log.error("The outbox cannot note what was delivered: %s sink=%s", exc, self._sink)
                self.error = str(exc)
                await anyio.sleep(_AGAIN_S)
                self._news.set()

    async def _note(self, told: ObjectSendStream[_Call] | None) -> None:
        while self._accepted:
            batch = self._accepted[:]
            await self._outbox.delivered(self._sink, [lease for lease, _, _ in batch])
            del self._accepted[: len(batch)]
            self._noted()
            for _, info, receipt in batch:
                if told and self._events:
                    await told.send(partial(self._events.sample_delivered, info, self._sink, receipt.remote_id))
        while self._rejected:
            refusal = self._rejected[0]
            await self._outbox.rejected(self._sink, refusal.lease, refusal.why)
            del self._rejected[0]
            self._noted()
            _log.warning("A sample was refused for good: %s sink=%s id=%s", refusal.why, self._sink, refusal.lease.id)
            if told and self._events:
                await told.send(partial(self._events.sample_rejected, refusal.info, self._sink, refusal.why))

    async def _tell(self, calls: ObjectReceiveStream[_Call]) -> None:
        async for call in calls:
            await call()
