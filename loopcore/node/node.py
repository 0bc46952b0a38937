"""The composition root: builds the parts of a node and owns its root task group."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, create_task_group

from loopcore.abc import Backend
from loopcore.collect.delivery import Delivery, Lanes
from loopcore.collect.outbox import Outbox
from loopcore.collect.selection import Selection
from loopcore.deploy.conversion import Converters
from loopcore.errors import ConfigError, StorageError
from loopcore.files import locked
from loopcore.infer.threads import Threads
from loopcore.node.annotating import Annotating
from loopcore.node.clerk import Clerk, taker
from loopcore.node.control_socket import LongOperation, Operation, Operations, serve_control
from loopcore.node.converting import Converting
from loopcore.node.feeding import Feed
from loopcore.node.models import Models
from loopcore.node.roles import Role
from loopcore.node.rolling import Rolling
from loopcore.node.state import Settings
from loopcore.node.training import Training
from loopcore.pipeline import Controls, Pipeline
from loopcore.plan import Plan
from loopcore.server import Listener, application, listen

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

_log = logging.getLogger(__name__)

SWEEP_S = 60.0
"""How often the outbox looks for what is too old or was removed by hand."""


class Node:
    """A loopcore process: whatever its plan names, put together. Make it and run it inside an event loop.

    `run` is the only way in; everything that the node starts ends inside it.
    """

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._plan = plan
        self._config = config
        self._data_dir = config.node.data_dir
        self._hooks = plan.hooks
        self._born = time.monotonic()
        self._settings = Settings(self._data_dir)
        self._threads = Threads()
        self._models = Models(plan, self._settings, self._threads, self._swapped)
        self._selection = Selection([(part.table, part.driver) for part in plan.selectors])
        self._outbox = Outbox(self._data_dir / "outbox", config.outbox, [taker(part.table) for part in plan.sinks])
        lanes = Lanes()
        self._deliveries = {
            part.table.name: Delivery(part.driver, part.table, self._outbox, self._hooks, lanes=lanes)
            for part in plan.sinks
        }
        self._feeds = [Feed(part.table.name, part.driver) for part in plan.sources]
        self._pipeline = Pipeline(
            serving=self._models.serving,
            selection=self._selection,
            outbox=self._outbox,
            hooks=self._hooks,
            controls=Controls(
                self._models.set_model, self._models.reload, self._models.hold_updates, self.set_outbox, self.status
            ),
            max_waiting=config.inference.queue,
            max_pixels=config.server.max_pixels,
            threads=self._threads,
            at_once=config.inference.threads or os.cpu_count() or 1,
        )
        self._roles = self._make_roles()

    def _make_roles(self) -> tuple[Role, ...]:
        """What the TOML has this node do besides looking at frames."""
        converters = Converters(self._plan.registry, self._data_dir / "converting")
        roles: list[Role] = []
        if self._config.rollouts:
            roles.append(Rolling(self._plan, self._models, converters, self._threads.run, self.status))
        if self._config.conversions:
            roles.append(Converting(self._plan, converters))
        if self._plan.trainer is not None:
            roles.append(Training(self._plan.trainer, self._plan))
        if self._plan.annotator is not None:
            roles.append(Annotating(self._plan.annotator, self._plan))
        return tuple(roles)

    def _swapped(self, backend: Backend) -> None:
        self._pipeline.fit(backend)

    async def run(self, *, until_done: bool = False, task_status: TaskStatus[str]) -> None:
        """Run until cancelled, or until a role has come to its end; then nothing that was accepted is lost.

        Args:
            until_done: End by itself once the sources have ended and the sinks have everything. A source or sink that
                fails is waited for, however long; a sink that is paused is not.
            task_status: Gets the server's address once the node is up.

        Raises:
            ConfigError: The address cannot be had, a source cannot begin, or a platform lacks a capability.
            PluginError: A driver raised what it may not raise, before the node was up.
            ModelError: The model that the TOML names cannot serve.
            StorageError: The data folder cannot be used, or another process owns it.
        """
        async with AsyncExitStack() as stack:
            _make_folder(self._data_dir)
            stack.enter_context(locked(self._data_dir / "lock"))
            self._settings.load()
            listener = self._listen()
            stack.callback(listener.socket.close)
            for part in (*self._plan.selectors, *self._plan.platforms):
                with self._plan.starting(part):
                    await stack.enter_async_context(part.driver)
            await stack.enter_async_context(self._outbox)
            await self._report_left()
            await stack.enter_async_context(self._threads)
            collecting = await stack.enter_async_context(_owned_tasks())
            await self._start_collecting(collecting)
            async with create_task_group() as feeding:
                await self._start_feeding(feeding, listener)
                task_status.started(listener.url)
                await self._hooks.node_started(self._config.node.name, self._pipeline)
                if until_done:
                    await self._until_done()
                    feeding.cancel_scope.cancel()

    async def _start_collecting(self, tasks: TaskGroup) -> None:
        await tasks.start(self._hooks.run, name="hooks")
        await tasks.start(self._models.serving.run, name="serving")
        for name, delivery in self._deliveries.items():
            if not self._settings.state.sending:
                delivery.pause()
            await tasks.start(delivery.run, name=f"sink {name}")
        tasks.start_soon(self._sweep, name="sweep")

    async def _start_feeding(self, tasks: TaskGroup, listener: Listener) -> None:
        mounts = self._hooks.mounts(self._pipeline, self._plan.drivers())
        app = application(self._pipeline, self._config.server, mounts, is_ready=self._models.is_ready)
        await tasks.start(listener.serve, app, mounts, name="server")
        await tasks.start(serve_control, self._data_dir, self.operations(), name="control")
        await self._models.start()
        tasks.start_soon(self._models.keep, name="keep")
        for role in self._roles:
            await tasks.start(self._play, role, tasks.cancel_scope, name=role.name)
        for part, feed in zip(self._plan.sources, self._feeds, strict=True):
            with self._plan.starting(part):
                await tasks.start(feed.run, self._pipeline, name=f"source {feed.name}")

    async def _play(self, role: Role, node: CancelScope, *, task_status: TaskStatus[None]) -> None:
        await role.run(task_status=task_status)
        _log.info("The node ends, as its role wants role=%s", role.name)
        node.cancel()

    def _listen(self) -> Listener:
        try:
            return listen(self._config.server.host, self._config.server.port)
        except ConfigError as exc:
            raise self._config.located(exc, exc.key or "server") from exc.__cause__

    async def _report_left(self) -> None:
        places = (await self._outbox.status())["sinks"]
        for name in places.keys() - self._deliveries.keys():
            _log.warning(
                "A sink has left the TOML, and its place in the outbox is kept; `loopcore outbox forget` gives it up"
                " sink=%s waiting=%d",
                name,
                places[name]["waiting"],
            )

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(SWEEP_S)
            try:
                await self._outbox.sweep()
            except StorageError:
                _log.exception("The outbox could not be swept")

    async def _until_done(self) -> None:
        for feed in self._feeds:
            await feed.ended.wait()
        for delivery in self._deliveries.values():
            await delivery.drained()
        await self._hooks.drained()

    # What the node can be told: by `Service`, and by commands through the control socket

    def operations(self) -> Operations:
        """What a command may ask of a running node."""
        clerk = Clerk(
            self._outbox,
            self._data_dir / "outbox",
            self._deliveries,
            self._deliveries,
            lambda: self._settings.state.sending,
        )
        operations: dict[str, Operation | LongOperation] = {
            **clerk.operations(),
            "status": self.status,
            **self._models.operations(),
            "set_outbox": self.set_outbox,
        }
        for role in self._roles:
            operations |= role.operations()
        return operations

    async def set_outbox(self, sending: bool) -> None:
        await self._settings.change(sending=sending)
        for delivery in self._deliveries.values():
            if sending:
                delivery.resume()
            else:
                delivery.pause()

    async def status(self) -> dict[str, Any]:
        outbox, places = await self._outbox_status()
        status = {
            "node": self._config.node.name,
            "ready": self._models.is_ready(),
            "uptime_s": round(time.monotonic() - self._born, 3),
            **await self._models.status(),
            "sending": self._settings.state.sending,
            "pipeline": self._pipeline.report(),
            "selection": self._selection.status(),
            "outbox": outbox,
            "sinks": {
                name: places.get(name, {})
                | (self._deliveries[name].status() if name in self._deliveries else {"state": "not in the TOML"})
                for name in sorted({*places, *self._deliveries})
            },
            "sources": {feed.name: feed.status() for feed in self._feeds},
            "hooks": self._hooks.status(),
        }
        for role in self._roles:
            status |= role.status()
        return status

    async def _outbox_status(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The outbox and its sinks; when its disk fails, that is what there is to say, and the rest is still told."""
        try:
            outbox = await self._outbox.status()
        except StorageError as exc:
            return {"error": str(exc)}, {}
        return outbox, outbox.pop("sinks")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot make the data folder {path}: {exc.strerror or exc}") from exc


@asynccontextmanager
async def _owned_tasks() -> AsyncGenerator[TaskGroup]:
    """A task group for those who outlive the feeding, cancelled when that has ended."""
    async with create_task_group() as group:
        yield group
        group.cancel_scope.cancel()
