"""What is tried: outboxes with two sinks, under any rules, on any disk, and samples for them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from msgspec import Struct

from loopcore.cli.torture.promises import Place
from loopcore.cli.torture.recording import RecordingDisk
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.terms import Taker
from loopcore.config import OutboxTable
from loopcore.files import Disk
from loopcore.options import Duration, Size
from loopcore.types import Box, SampleInfo, image_id, sample_id

_NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
SINKS = ("a", "b")
"""The first wants everything, the second what has an even number as its source."""


class Rules(Struct, frozen=True, kw_only=True):
    """How an outbox is configured; bounds as in `[outbox]`, `max_backlog` for the sink b."""

    max_bytes: int = 1 << 20
    max_count: int | None = None
    max_age: float | None = None
    when_full: Literal["reject", "drop_oldest", "drop_least_valuable"] = "reject"
    rejected_max_bytes: int = 1 << 20
    max_backlog: int | None = None
    segment_bytes: int = 4096


class Clock:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self.wall = _NOON
        self.up = 1000.0

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.up += seconds


class World(Struct, frozen=True, kw_only=True):
    """What an outbox is made of, and how closely it is looked at. Tests of the campaign itself make one with a flaw.

    Attributes:
        disk: The disk.
        store: The outbox.
        share: At which part of the steps of a history the power is cut.
        torn: How often one step is torn at random then, where there is something to tear.
    """

    disk: type[RecordingDisk] = RecordingDisk
    store: type[Store] = Store
    share: float = 1.0
    torn: int = 20

    def outbox(self, folder: Path, disk: Disk, rules: Rules, clock: Clock) -> Store:
        """One of this configuration, not opened."""
        table = OutboxTable(
            max_bytes=Size(rules.max_bytes),
            max_count=rules.max_count,
            max_age=None if rules.max_age is None else Duration(rules.max_age),
            when_full=rules.when_full,
            min_free=Size(0),
            rejected_max_bytes=Size(rules.rejected_max_bytes),
        )
        takers = [Taker(name="a"), Taker(name="b", wants=_even, max_backlog=rules.max_backlog)]
        return self.store(
            folder,
            table,
            takers,
            disk=disk,
            now=lambda: clock.wall,
            uptime=lambda: clock.up,
            segment_bytes=rules.segment_bytes,
        )


def sample(
    number: int,
    *,
    size: int,
    tags: tuple[str, ...] = (),
    truth: bool | None = None,
    urgent: bool = False,
) -> tuple[SampleInfo, bytes]:
    """A sample: the same number and size, the same image and id; annotated with a box (`truth`) or with nothing."""
    image = random.Random(number).randbytes(size)
    digest = image_id(image)
    boxes = (Box(label="p", x=1, y=1, width=1, height=1),) if truth else ()
    info = SampleInfo(
        id=sample_id(digest, None, None),
        image_id=digest,
        media="image/jpeg",
        image_bytes=size,
        width=1,
        height=1,
        kept=_NOON,
        source=str(number),
        tags=tags,
        annotations=None if truth is None else boxes,
        urgent=urgent,
    )
    return info, image


def places_of(info: SampleInfo) -> frozenset[Place]:
    """Where a new sample has a place."""
    sinks = SINKS if _even(info) else SINKS[:1]
    return frozenset([(None, info.id), *((sink, info.id) for sink in sinks)])


def _even(info: SampleInfo) -> bool:
    return int(info.source or 0) % 2 == 0
