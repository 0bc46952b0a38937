"""The model that serves: enter, warm up, swap, drain.

The old model answers until the new one has shown that it can; no request fails because of a swap.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
from anyio import Event, Lock, create_task_group

from loopcore.abc import Backend
from loopcore.errors import BackendError, LoopcoreError, ModelError, NotReadyError, PluginError
from loopcore.infer.threads import Threads
from loopcore.types import Box, Classification, Detection, Frame, FrameInfo, Model, Point, Segmentation

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

_log = logging.getLogger(__name__)

DRAIN_S = 30.0
"""How long a replaced model may take to finish what it has begun."""


class _Served:
    """A model in service, and how many calls it is answering."""

    def __init__(self, backend: Backend, model: Model) -> None:
        self.backend = backend
        self.model = model
        self.retired = Event()
        self.drained = Event()
        self._calls = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep the model open for the length of the block. Enter and leave it in the event loop's thread."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._settle()

    def retire(self) -> None:
        """No new calls come; when the running ones have ended, the model may close."""
        self.retired.set()
        self._settle()

    def _settle(self) -> None:
        if self.retired.is_set() and not self._calls:
            self.drained.set()


class Serving:
    """Holds the model that serves and swaps it for another.

    Args:
        make: Constructs the backend for a model.
        swapped: Called at each swap, in the same step of the event loop, so that no call comes between the two.
        activated: Called after each swap, before the old backend closes.
        threads: Where a model is warmed up: those that run it later, so that its buffers are made once.
    """

    def __init__(
        self,
        make: Callable[[Model], Backend],
        swapped: Callable[[Backend], None],
        activated: Callable[[Backend, Model | None], Awaitable[None]],
        threads: Threads,
    ) -> None:
        self._threads = threads
        self._make = make
        self._swapped = swapped
        self._activated = activated
        self._current: _Served | None = None
        self._lock = Lock()
        self._tasks: TaskGroup | None = None

    @property
    def model(self) -> Model | None:
        """The model that serves now."""
        return self._current.model if self._current else None

    @contextmanager
    def borrow(self) -> Iterator[Backend]:
        """The backend that serves now; it stays open for the length of the block.

        Raises:
            NotReadyError: Nothing serves.
        """
        served = self._current
        if served is None:
            raise NotReadyError("no model is serving yet")
        with served.call():
            yield served.backend

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Own the backends; leaves when cancelled, after the running calls have ended."""
        async with create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    async def activate(self, model: Model) -> None:
        """Load a model, warm it up and let it serve in place of the old one.

        Raises:
            ModelError: It cannot be loaded or fails its warm-up; what served before still serves.
            PluginError: Its backend breaks its contract, likewise.
        """
        if self._tasks is None:
            raise NotReadyError("the node is not running yet")
        async with self._lock:
            previous = self._current
            await self._tasks.start(self._serve, model, name=f"serve {model.info.name} {model.info.version}")
            try:
                if self._current:
                    await self._activated(self._current.backend, previous.model if previous else None)
            finally:
                if previous:
                    previous.retire()

    async def _serve(self, model: Model, *, task_status: TaskStatus[None]) -> None:
        served: _Served | None = None
        try:
            async with self._make(model) as backend:
                await self._threads.run(_warm_up, backend)
                self._swapped(backend)
                served = self._current = _Served(backend, model)
                task_status.started()
                await self._until_retired(served)
        except Exception as exc:
            # The driver guard: what a backend raises unforeseen is its fault, and only this model's end.
            if served:
                _log.exception("A backend failed while it closed model=%s", model.info.name)
                return
            if isinstance(exc, LoopcoreError):
                raise
            raise PluginError(f"the backend of {model.info.name!r} failed: {exc!r}") from exc

    async def _until_retired(self, served: _Served) -> None:
        try:
            await served.retired.wait()
        finally:
            if self._current is served:
                self._current = None
                served.retire()
            with anyio.move_on_after(DRAIN_S, shield=True) as limit:
                await served.drained.wait()
            if limit.cancelled_caught:
                _log.error("A replaced model still answers after %s s and is closed all the same", DRAIN_S)


def _warm_up(backend: Backend) -> None:
    """One grey picture through the model: it must answer once, with finite numbers.

    Raises:
        ModelError: It does not.
    """
    import numpy as np

    info = FrameInfo(width=640, height=480, time=datetime.now(UTC))
    frame = Frame(info=info, pixels=np.full((480, 640, 3), 127, np.uint8))
    try:
        predictions = backend.infer([frame])
    except BackendError as exc:
        raise ModelError(f"the model fails its warm-up: {exc}") from exc
    if len(predictions) != 1:
        raise PluginError(f"the backend gave {len(predictions)} predictions for one frame")
    if not all(_is_finite(found) for found in predictions[0].detections):
        raise ModelError("the model's warm-up gives boxes that are not finite")


def _is_finite(found: Detection) -> bool:
    return math.isfinite(found.confidence) and all(map(math.isfinite, _coordinates(found)))


def _coordinates(found: Detection) -> tuple[float, ...]:
    match found:
        case Box():
            return (found.x, found.y, found.width, found.height)
        case Point():
            return (found.x, found.y)
        case Segmentation():
            return tuple(value for point in found.points for value in point)
        case Classification():
            return ()
