"""An event loop whose clock runs fast: a node in it waits, gives up and tries again as always, only sooner."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal


class _Selector(selectors.DefaultSelector):
    """Waits shorter than it is told to."""

    speed = 1.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout and timeout / self.speed)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, speed: float) -> None:
        self._speed = speed
        selector = _Selector()
        selector.speed = speed
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * self._speed


@contextmanager
def hurried(speed: float) -> Iterator[BlockingPortal]:
    """An event loop in a thread of its own, where a second of waiting takes a second divided by `speed`."""
    options: Mapping[str, Any] = {"loop_factory": partial(_Loop, speed)}
    with start_blocking_portal("asyncio", dict(options)) as portal:
        yield portal
