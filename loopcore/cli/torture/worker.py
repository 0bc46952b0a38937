"""A process that accepts and delivers as fast as it can, says so, and waits to be killed."""

from __future__ import annotations

import os
import random
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio

from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable
from loopcore.errors import OutboxFullError
from loopcore.types import SampleInfo, image_id, sample_id

SINK = "a"
TABLE = OutboxTable(max_count=400)
_CALLERS = 4
_IMAGE_BYTES = 20_000


def image_of(number: int) -> bytes:
    """The image of a sample, from its number."""
    return random.Random(number).randbytes(_IMAGE_BYTES)


def _say(word: str, name: str) -> None:
    os.write(1, f"{word} {name}\n".encode())  # at once: what was said before the kill counts


async def _call(outbox: Outbox, number: int) -> None:
    while True:
        image = image_of(number)
        digest = image_id(image)
        info = SampleInfo(
            id=sample_id(digest, None, None),
            image_id=digest,
            media="image/jpeg",
            image_bytes=len(image),
            width=1,
            height=1,
            kept=datetime.now(UTC),
            source=str(number),
        )
        try:
            await outbox.accept(info, image)
        except OutboxFullError:
            await outbox.wait(SINK)
            continue
        _say("accepted", info.id)
        number += _CALLERS


async def _send(outbox: Outbox) -> None:
    while True:
        leases = await outbox.lease(SINK, max_count=8, max_bytes=1 << 30)
        if not leases:
            await outbox.wait(SINK)
            continue
        for lease, sample in zip(leases, await outbox.read(leases), strict=True):
            whole = sample is not None and sample.image == image_of(int(sample.info.source or 0))
            _say("sent" if whole else "half", lease.id)
        await outbox.delivered(SINK, leases)
        for lease in leases:
            _say("delivered", lease.id)


async def work(folder: Path, first: int) -> None:
    """Go on until the end.

    Args:
        folder: The outbox.
        first: The number of the first sample; there are a million of them.
    """
    _say("opens", "it")
    async with Outbox(folder, TABLE, [Taker(name=SINK)]) as outbox, anyio.create_task_group() as group:
        for caller in range(_CALLERS):
            group.start_soon(_call, outbox, first + caller)
        group.start_soon(_send, outbox)


if __name__ == "__main__":
    anyio.run(work, Path(sys.argv[1]), int(sys.argv[2]))
