"""The model that serves: enter, admit, swap, drain.

The old model answers until the new one has shown that it can; no request fails because of a swap. Where a device has no
room for two models, the old one is released first, and comes back if the new one cannot serve.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import anyio
from anyio import CancelScope, Event, Lock, create_task_group

from loopcore.abc import Backend
from loopcore.errors import LoopcoreError, NotReadyError, PluginError, first
from loopcore.types import Model

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

_log = logging.getLogger(__name__)

DRAIN_S = 30.0
"""How long a replaced model may take to finish what it has begun."""

Admit = Callable[[Backend], Awaitable[object]]
"""Called with an entered backend before it serves; raises if it may not."""


class _Served:
    """A model in service, and how many calls it is answering."""

    def __init__(self, backend: Backend, model: Model) -> None:
        self.backend = backend
        self.model = model
        self.retired = Event()
        self.drained = Event()
        self.closed = Event()
        self._calls = 0

    def __enter__(self) -> Backend:
        """Keep the model open for the length of the block. Enter and leave it in the event loop's thread."""
        self._calls += 1
        return self.backend

    def __exit__(self, *_: object) -> None:
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
        activated: Called after each swap, before the old backend closes unless that is closed already.
        exclusive: The old model is released before the new one is loaded.
    """

    def __init__(
        self,
        make: Callable[[Model], Backend],
        swapped: Callable[[Backend], None],
        activated: Callable[[Backend, Model | None], Awaitable[None]],
        *,
        exclusive: bool = False,
    ) -> None:
        self._exclusive = exclusive
        self._make = make
        self._swapped = swapped
        self._activated = activated
        self._current: _Served | None = None
        self._missing = "no model is serving yet"
        self._lock = Lock()
        self._tasks: TaskGroup | None = None

    @property
    def model(self) -> Model | None:
        """The model that serves now."""
        return self._current.model if self._current else None

    def borrow(self) -> AbstractContextManager[Backend]:
        """The backend that serves now; it stays open for the length of the block.

        Raises:
            NotReadyError: Nothing serves.
        """
        if self._current is None:
            raise NotReadyError(self._missing)
        return self._current

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Own the backends; leaves when cancelled, after the running calls have ended."""
        async with create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    async def activate(self, model: Model, admit: Admit | None = None) -> None:
        """Load a model and let it serve in place of the old one.

        Args:
            model: The model.
            admit: Has the last word, once the model is loaded.

        Raises:
            ModelError: It cannot be loaded, or may not serve; what served before still serves, or serves again.
            NotReadyError: The device has no room for it now, likewise.
            PluginError: Its backend breaks its contract, likewise.
        """
        if self._tasks is None:
            raise NotReadyError("the node is not running yet")
        async with self._lock:
            previous = self._current
            if previous and self._exclusive:
                await self._replace(self._tasks, previous, model, admit)
            else:
                await self._start(self._tasks, model, admit)
            try:
                if self._current:
                    await self._activated(self._current.backend, previous.model if previous else None)
            finally:
                if previous:
                    previous.retire()

    async def _start(self, tasks: TaskGroup, model: Model, admit: Admit | None) -> None:
        await tasks.start(self._serve, model, admit, name=f"serve {model.info.name} {model.info.version}")

    async def _replace(self, tasks: TaskGroup, previous: _Served, model: Model, admit: Admit | None) -> None:
        self._missing = f"updating model to version {model.info.version}"
        self._current = None
        previous.retire()
        try:
            await previous.closed.wait()
            await self._start(tasks, model, admit)
        except BaseException:
            with CancelScope(shield=True):
                await self._restore(tasks, previous)
            raise

    async def _restore(self, tasks: TaskGroup, previous: _Served) -> None:
        if tasks.cancel_scope.cancel_called:
            return
        info = previous.model.info
        try:
            await previous.closed.wait()
            await self._start(tasks, previous.model, None)
        except LoopcoreError as exc:
            self._missing = f"no model serves: {exc}"
            _log.error("The old model cannot be loaded again name=%s version=%s why=%s", info.name, info.version, exc)
        else:
            _log.warning("The old model serves again name=%s version=%s", info.name, info.version)

    async def _serve(self, model: Model, admit: Admit | None, *, task_status: TaskStatus[None]) -> None:
        served: _Served | None = None
        try:
            async with self._make(model) as backend:
                if admit:
                    await admit(backend)
                self._swapped(backend)
                served = self._current = _Served(backend, model)
                task_status.started()
                await self._until_retired(served)
        except Exception as exc:
            # The driver guard: what a backend raises unforeseen is its fault, and only this model's end.
            if served is not None:
                _log.exception("A backend failed while it closed model=%s", model.info.name)
                return
            error = first(exc)
            if isinstance(error, MemoryError):
                raise NotReadyError(f"there is no memory for {model.info.name} {model.info.version} now") from exc
            if isinstance(error, LoopcoreError):
                raise error from error.__cause__
            raise PluginError(f"the backend of {model.info.name!r} failed: {error!r}") from exc
        finally:
            if served is not None:
                served.closed.set()

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
