"""The whole road of a sample, for tests: a real outbox, a real delivery, and a sink under test at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import anyio

from loopcore.abc import Sink
from loopcore.collect.delivery import Backoff, Delivery
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable, SinkTable
from loopcore.options import Size
from loopcore.types import Sample, SampleInfo

_NAME = "it"
_QUICK = Backoff(first_s=0.002, ceiling_s=0.01, open_after=3)


class Road:
    """What waits, what was delivered, what was rejected. Ids are in order of the event.

    Attributes:
        delivery: It runs, and waits milliseconds where a node's waits seconds.
        delivered: The ids of the samples that the sink has accepted.
        rejected: The ids of those that it has refused for good, with the peer's answers.
    """

    def __init__(self, sink: Sink, outbox: Outbox) -> None:
        self.delivered: list[str] = []
        self.rejected: dict[str, str] = {}
        self._outbox = outbox
        self._changed = anyio.Event()
        table = SinkTable(driver=_NAME, name=_NAME, key="sinks[0]", options={})
        self.delivery = Delivery(sink, table, outbox, self, backoff=_QUICK, random=Random(7))

    async def keep(self, *samples: Sample) -> None:
        """Put samples on the road."""
        for sample in samples:
            await self._outbox.accept(sample.info, sample.image)

    async def waiting(self) -> list[str]:
        """The ids of those that wait, in the order in which they came."""
        return [line.id for line in await self._outbox.list(limit=1000)]

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for something that an event brings about."""
        while not fact():
            await self._changed.wait()

    async def arrives(self, samples: Sequence[Sample]) -> None:
        """Wait until all of these are delivered."""
        await self.until(lambda: {sample.info.id for sample in samples} <= set(self.delivered))

    @property
    def state(self) -> str:
        """The first word of the delivery's state: `waiting`, `retrying`, `paused` …"""
        return str(self.delivery.status()["state"]).partition(":")[0]

    async def sample_delivered(self, sample: SampleInfo, sink: str, remote_id: str | None) -> None:
        self.delivered.append(sample.id)
        self._note()

    async def sample_rejected(self, sample: SampleInfo, sink: str, why: str) -> None:
        self.rejected[sample.id] = why
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def delivering(sink: Sink, folder: Path) -> AsyncGenerator[Road]:
    """A road that ends at this sink, which is not entered; its outbox lies in `folder`."""
    bounds = OutboxTable(min_free=Size(0))
    async with Outbox(folder, bounds, [Taker(name=_NAME, start="oldest")]) as outbox:
        road = Road(sink, outbox)
        async with anyio.create_task_group() as tasks:
            await tasks.start(road.delivery.run)
            yield road
            tasks.cancel_scope.cancel()
