"""Samples, bounds and clocks for the tests of the outbox."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loopcore.config import OutboxTable
from loopcore.files import Disk
from loopcore.options import Size
from loopcore.types import SampleInfo, image_id, sample_id

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture
def sample() -> Callable[..., tuple[SampleInfo, bytes]]:
    """Makes a sample: the same number and size, the same image and id."""

    def make(number: int, size: int = 1000, **known: Any) -> tuple[SampleInfo, bytes]:
        image = random.Random(number).randbytes(size)
        digest = image_id(image)
        info = SampleInfo(
            id=sample_id(digest, "gate", None),
            image_id=digest,
            media="image/jpeg",
            image_bytes=size,
            width=640,
            height=480,
            kept=NOON,
            camera="gate",
            **known,
        )
        return info, image

    return make


@pytest.fixture
def bounds() -> Callable[..., OutboxTable]:
    def make(**keys: Any) -> OutboxTable:
        sizes = {key: Size(value) for key, value in keys.items() if key.endswith(("_bytes", "_free"))}
        return OutboxTable(**{"min_free": Size(0), **keys, **sizes})

    return make


class Clock:
    """A wall clock and an uptime that pass when they are told to, and a wall clock that steps."""

    def __init__(self) -> None:
        self.wall = NOON
        self.up = 1000.0

    def now(self) -> datetime:
        return self.wall

    def uptime(self) -> float:
        return self.up

    def passes(self, seconds: float) -> None:
        self.step(seconds)
        self.up += seconds

    def step(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class FaultyDisk(Disk):
    """Counts syncs, and fails when told to: `fails` maps the name of a step to an error."""

    def __init__(self) -> None:
        self.fails: dict[str, OSError] = {}
        self.syncs = 0
        self.short: int | None = None
        self.room = 1 << 40

    def open(self, path: Any, *, append: bool = False) -> int:
        self._step("open")
        return super().open(path, append=append)

    def write(self, descriptor: int, parts: Any) -> None:
        if self.short is not None:
            super().write(descriptor, [b"".join(parts)[: self.short]])
        self._step("write")
        super().write(descriptor, parts)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        self.syncs += 1
        super().sync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)

    def free(self, path: Any) -> int:
        return self.room

    def _step(self, name: str) -> None:
        if error := self.fails.get(name):
            raise error


@pytest.fixture
def faulty() -> FaultyDisk:
    return FaultyDisk()
