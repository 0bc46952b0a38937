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
from anyio import Lock, create_task_group, to_thread
from msgspec.structs import replace

from loopcore.abc import Backend, DeploymentTarget, ModelRegistry, Platform
from loopcore.collect.delivery import Delivery, Lanes
from loopcore.collect.outbox import Outbox
from loopcore.collect.selection import Selection
from loopcore.config import PlatformTable
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import ConfigError, LoopcoreError, ModelError, NotReadyError, StorageError
from loopcore.files import locked
from loopcore.infer.serving import Serving
from loopcore.infer.threads import Threads
from loopcore.node.clerk import Clerk, taker
from loopcore.node.control import Operations, serve_control
from loopcore.node.feeding import Feed
from loopcore.node.state import State, load_state, save_state
from loopcore.package import open_model
from loopcore.pipeline import Controls, Pipeline
from loopcore.plan import Part, Plan
from loopcore.server import Listener, application, listen
from loopcore.types import Model

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

_log = logging.getLogger(__name__)

FOLLOW, PAUSE = "follow", "pause"

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
        self._state = State()
        self._held = False
        self._choosing = Lock()
        self._store = ModelStore(self._data_dir / "models")
        self._threads = Threads()
        self._serving = Serving(self._backend, self._swapped, self._activated, self._threads)
        self._selection = Selection([(part.table, part.driver) for part in plan.selectors])
        self._outbox = Outbox(self._data_dir / "outbox", config.outbox, [taker(part.table) for part in plan.sinks])
        lanes = Lanes()
        self._deliveries = {
            part.table.name: Delivery(part.driver, part.table, self._outbox, self._hooks, lanes=lanes)
            for part in plan.sinks
        }
        self._feeds = [Feed(part.table.name, part.driver) for part in plan.sources]
        self._pipeline = Pipeline(
            serving=self._serving,
            selection=self._selection,
            outbox=self._outbox,
            hooks=self._hooks,
            controls=Controls(self.set_model, self.reload, self.hold_updates, self.set_outbox, self.status),
            max_waiting=config.inference.queue,
            max_pixels=config.server.max_pixels,
            threads=self._threads,
            at_once=config.inference.threads or os.cpu_count() or 1,
        )

    async def run(self, *, until_done: bool = False, task_status: TaskStatus[str]) -> None:
        """Run until cancelled; then nothing that was accepted is lost.

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
            self._state = load_state(self._data_dir)
            listener = self._listen()
            stack.callback(listener.socket.close)
            for part in (*self._plan.selectors, *self._plan.platforms):
                with self._plan.starting(part):
                    await stack.enter_async_context(part.driver)
            await self._check_rollouts()
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
        await tasks.start(self._serving.run, name="serving")
        for name, delivery in self._deliveries.items():
            if not self._state.sending:
                delivery.pause()
            await tasks.start(delivery.run, name=f"sink {name}")
        tasks.start_soon(self._sweep, name="sweep")

    async def _start_feeding(self, tasks: TaskGroup, listener: Listener) -> None:
        mounts = self._hooks.mounts(self._pipeline)
        app = application(self._pipeline, self._config.server, mounts, is_ready=self._is_ready)
        await tasks.start(listener.serve, app, name="server")
        await tasks.start(serve_control, self._data_dir, self.operations(), name="control")
        await self._activate_first()
        for part, feed in zip(self._plan.sources, self._feeds, strict=True):
            with self._plan.starting(part):
                await tasks.start(feed.run, self._pipeline, name=f"source {feed.name}")

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

    # Models

    def _backend(self, model: Model) -> Backend:
        part = self._plan.backend
        if part is None:
            raise NotReadyError("this node has no [backend]")
        if model.info.format not in part.type.formats:
            formats = ", ".join(part.type.formats)
            raise ModelError(f"the backend {part.table.driver!r} runs {formats}, not {model.info.format}")
        return part.type(part.options, model)

    def _swapped(self, backend: Backend) -> None:
        self._pipeline.fit(backend)

    async def _activated(self, backend: Backend, previous: Model | None) -> None:
        info = backend.model.info
        _log.info("A model serves now name=%s version=%s", info.name, info.version)
        await self._hooks.model_activated(backend.model, previous)

    async def _activate_first(self) -> None:
        """Let serve what the TOML names, or a person has chosen since; with `follow` and `pause`, what served last."""
        if self._plan.backend is None:
            return
        try:
            model = await to_thread.run_sync(self._chosen)
            if model is None:
                _log.warning("No model is here yet; frames are refused until one comes")
            else:
                await self._activate(model)
        except ModelError:
            if self._choice() not in (FOLLOW, PAUSE):
                raise
            _log.exception("The model that served last cannot serve again; frames are refused until another one comes")

    @property
    def _configured(self) -> str:
        return self._plan.backend.table.model if self._plan.backend else FOLLOW

    def _choice(self) -> str:
        return self._state.model_choice(self._configured)

    def _chosen(self) -> Model | None:
        """The model that is to serve, looked up and checked anew; `None` if there is none yet. Blocking."""
        choice = self._choice()
        if choice not in (FOLLOW, PAUSE):
            return self._find(choice)
        return self._find(self._configured) if self._state.rests_on_path else self._store.active()

    def _find(self, choice: str) -> Model:
        model = self._plan.open_model(self._open) if choice == self._configured else None
        return model or self._store.get(choice)

    def _open(self, path: Path) -> Model:
        """A model at a path is used where it lies; a zip is unpacked into the store, where nothing changes it."""
        if path.is_file() and path.suffix.lower() == ".zip":
            return self._store.stage(path)
        return open_model(path, self._data_dir)

    async def _activate(self, model: Model) -> None:
        try:
            await self._serving.activate(model)
        except LoopcoreError as exc:
            _log.error("A model was refused name=%s version=%s why=%s", model.info.name, model.info.version, exc)
            await self._hooks.model_refused(model.info, str(exc))
            raise
        if model.path.parent == self._store.folder:
            await to_thread.run_sync(self._store.activate, model)

    async def _check_rollouts(self) -> None:
        platforms = {part.table.name: part for part in self._plan.platforms}
        for rollout in self._config.rollouts:
            ends = {rollout.source: ModelRegistry, rollout.target: DeploymentTarget}
            for name, capability in ends.items():
                if name in platforms and not await self._has(platforms[name], capability):
                    message = f"the platform {name!r} has no {capability.__name__}, which a rollout needs"
                    raise self._config.error(rollout.key, message)

    async def _has(self, platform: Part[PlatformTable, Platform], capability: type[Any]) -> bool:
        with self._plan.starting(platform):
            return await platform.driver.capability(capability) is not None

    # What the node can be told: by `Service`, and by commands through the control socket

    def operations(self) -> Operations:
        """What a command may ask of a running node."""
        clerk = Clerk(
            self._outbox, self._data_dir / "outbox", self._deliveries, self._deliveries, lambda: self._state.sending
        )
        return {
            **clerk.operations(),
            "status": self.status,
            "set_model": self.set_model,
            "reload": self.reload,
            "hold_updates": self.hold_updates,
            "set_outbox": self.set_outbox,
        }

    async def set_model(self, choice: str) -> None:
        if self._plan.backend is None:
            raise NotReadyError("this node has no [backend]")
        async with self._choosing:
            if choice not in (FOLLOW, PAUSE):
                await self._activate(await to_thread.run_sync(self._find, choice))
            serving = self._serving.model
            state = replace(
                self._state,
                model=choice,
                configured_model=self._configured,
                rests_on_path=serving is not None and serving.path.parent != self._store.folder,
            )
            await self._save(state)

    async def reload(self) -> None:
        async with self._choosing:
            model = await to_thread.run_sync(self._chosen)
            if model is None:
                raise NotReadyError("there is no model here yet")
            await self._activate(model)

    async def hold_updates(self, hold: bool) -> None:
        self._held = hold

    async def set_outbox(self, sending: bool) -> None:
        await self._save(replace(self._state, sending=sending))
        for delivery in self._deliveries.values():
            if sending:
                delivery.resume()
            else:
                delivery.pause()

    def _is_ready(self) -> bool:
        return self._serving.model is not None or self._plan.backend is None

    async def status(self) -> dict[str, Any]:
        model = self._serving.model
        outbox, places = await self._outbox_status()
        return {
            "node": self._config.node.name,
            "ready": self._is_ready(),
            "uptime_s": round(time.monotonic() - self._born, 3),
            "model": _summary(model) if model else None,
            "model_choice": self._choice() if self._plan.backend else None,
            "updates_held": self._held,
            "sending": self._state.sending,
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

    async def _outbox_status(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The outbox and its sinks; when its disk fails, that is what there is to say, and the rest is still told."""
        try:
            outbox = await self._outbox.status()
        except StorageError as exc:
            return {"error": str(exc)}, {}
        return outbox, outbox.pop("sinks")

    async def _save(self, state: State) -> None:
        await to_thread.run_sync(save_state, self._data_dir, state)
        self._state = state


def _summary(model: Model) -> dict[str, Any]:
    info = model.info
    return {"name": info.name, "version": info.version, "format": info.format, "id": info.id, "labels": info.labels}


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
