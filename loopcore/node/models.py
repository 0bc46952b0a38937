"""Which model serves: what the TOML says, a person has chosen since, or a platform wants."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Literal

import anyio
from anyio import CancelScope, Event, Lock, to_thread

from loopcore.abc import Backend
from loopcore.deploy.exchange import Patience
from loopcore.deploy.gate import Gate, WarmUp
from loopcore.deploy.modelstore import ModelStore, one_of
from loopcore.errors import IntegrityError, LoopcoreError, ModelError, NotReadyError, StorageError
from loopcore.infer.serving import Serving
from loopcore.infer.threads import Threads
from loopcore.node.catalogue import listed, summary
from loopcore.node.control_socket import LongOperation, Operation, Tell
from loopcore.node.state import Settings
from loopcore.package import open_model
from loopcore.plan import Plan
from loopcore.types import Model

_log = logging.getLogger(__name__)

FOLLOW, PAUSE = "follow", "pause"
LOAD = "load"
"""The name of the rule that a model passes by being loaded."""

RESTORE_S = 5.0
"""How long to wait at most, the first time, before what should serve and cannot is tried again."""


def _nothing() -> None:
    pass


class Models:
    """The models of a node: those in its store, the one that serves, and the choice between them.

    Args:
        plan: Says what runs models, and which one the TOML names.
        settings: Where a person's choice is kept.
        threads: Where a model is warmed up: those that run it later, so that its buffers are made once.
        swapped: Called with the new backend at each swap, in the same step of the event loop.

    Attributes:
        elsewhere: Brings a version that the store lacks; set by who knows platforms.
        watchers: Called when another model serves or another choice is made.
        rollouts: Where each rollout stands; set by who knows them.
    """

    def __init__(self, plan: Plan, settings: Settings, threads: Threads, swapped: Callable[[Backend], None]) -> None:
        self.elsewhere: Callable[[str], Awaitable[Model]] | None = None
        self.watchers: list[Callable[[], None]] = []
        self.rollouts: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._plan = plan
        self._settings = settings
        self._data_dir = plan.config.node.data_dir
        self._held = False
        self._wishes = 0
        self._persons = 0
        self._choosing = Lock()
        self._vacant = Event()
        self._gate = Gate([WarmUp()], threads.run)
        self.store = ModelStore(self._data_dir / "models")
        exclusive = plan.backend is not None and plan.backend.table.exclusive
        self.serving = Serving(self._backend, swapped, self._activated, exclusive=exclusive)

    @property
    def choice(self) -> str:
        """What is to serve: `follow`, `pause`, a version or a path."""
        return self._settings.state.model_choice(self._configured)

    @property
    def formats(self) -> tuple[str, ...]:
        """What the backend runs, best first."""
        return tuple(self._plan.backend.type.formats) if self._plan.backend else ()

    def closed(self) -> Literal["paused", "held"] | None:
        """Why no rollout may change the model now; `None` if one may."""
        if self.choice != FOLLOW:
            return "paused"
        return "held" if self._held else None

    async def start(self) -> None:
        """Let serve what the TOML names, or a person has chosen since; with `follow` and `pause`, what served last.

        Raises:
            ConfigError: The model that the TOML names cannot serve.
            ModelError: The version that was chosen cannot serve, and no platform may have it.
        """
        if self._plan.backend is None:
            return
        if not self._plan.backend.table.remember:
            await self._settings.change(model=None, configured_model=None, rests_on_path=False)
        if self.elsewhere is None:
            await to_thread.run_sync(self.store.give_up)  # nobody will go on with it
        async with self._choosing:  # a command may be there already
            if self.serving.model is None:
                await self._begin()

    async def _begin(self) -> None:
        chosen = self.choice not in (FOLLOW, PAUSE)
        try:
            model = await to_thread.run_sync(self._chosen_here)
            if model is not None:
                await self._activate(model)
            elif chosen and self.elsewhere is None:
                raise await to_thread.run_sync(self._unknown, self.choice)
            else:
                _log.warning("No model is here yet; frames are refused until one comes choice=%s", self.choice)
                self._vacant.set()
        except ModelError:
            if chosen:
                raise
            _log.exception("The model that served last cannot serve again; frames are refused until another one comes")

    async def keep(self) -> None:
        """Have something serve where something should, until cancelled: once it is there, or there is room for it."""
        random = Random()
        while True:
            await self._vacant.wait()
            self._vacant = Event()
            patience = Patience(first_s=RESTORE_S)
            while self.serving.model is None:
                try:
                    await self._catch_up()
                    break
                except LoopcoreError as exc:
                    level = logging.DEBUG if patience.failures else logging.WARNING
                    _log.log(level, "No model serves, and none can yet choice=%s error=%s", self.choice, exc)
                    await anyio.sleep(patience.wait_s(exc, random))

    async def _catch_up(self) -> None:
        """Let the chosen model serve, from elsewhere if need be; what a person chooses meanwhile goes first."""
        wish, choice, model = self._wishes, self.choice, None
        if choice not in (FOLLOW, PAUSE):
            model = await self._look_up(choice)
        async with self._choosing:
            if wish != self._wishes or self.serving.model is not None:
                return
            if model := model or await to_thread.run_sync(self._chosen_here):
                await self._activate(model)

    async def set_model(self, choice: str) -> None:
        """See `loopcore.abc.Service`."""
        if self._plan.backend is None:
            raise NotReadyError("this node has no [backend]")
        wish = self._wish()
        model = None if choice in (FOLLOW, PAUSE) else await self._look_up(choice)
        async with self._decision(wish):
            if model is not None:
                await self._activate(model)
            await self._note(choice)

    async def reload(self) -> None:
        """See `loopcore.abc.Service`."""
        wish, came = self._wish(), None
        if self.choice not in (FOLLOW, PAUSE) and await to_thread.run_sync(self._chosen_here) is None:
            came = await self._look_up(self.choice)
        async with self._choosing:
            self._check_wish(wish)
            # Only now: a rollout may have let another model serve meanwhile.
            model = came or await to_thread.run_sync(self._chosen_here)
            if model is None:
                raise NotReadyError("there is no model here yet")
            await self._activate(model)

    async def back(self) -> None:
        """Let the model serve that served before, and stay with it: one step back, and `follow` is left.

        Raises:
            ModelError: There is none, or it cannot serve; nothing has changed.
            StorageError: It serves, and that could not be noted for the next start.
        """
        async with self._decision(self._wish()):
            serving = self.serving.model
            stored = serving is not None and serving.path.parent == self.store.folder
            model = await to_thread.run_sync(self.store.previous if stored else self.store.active)
            if model is None:
                raise ModelError("no model has served before this one")
            await self._activate(model)
            await self._note(PAUSE)

    async def follow(self, model: Model, gate: Gate) -> bool:
        """Let a rollout's model serve if it passes the gate, unless rollouts may not change the model; whether it does.

        Raises:
            ModelError: It was refused, and `rule` says by what; what served before still serves.
            LoopcoreError: It could not be tried, or the choice could not be noted.
        """
        async with self._choosing:
            if self.closed():
                return False
            try:
                with CancelScope(shield=True):
                    await self._activate(model, gate, self._give_way)
                    if self._settings.state.rests_on_path:
                        await self._settings.change(rests_on_path=False)
            except NotReadyError:
                if self._gives_way():
                    return False
                raise
        return True

    def _gives_way(self) -> bool:
        return self.closed() is not None or self._persons > 0

    def _give_way(self) -> None:
        """Loading takes its time: does it still suit those who have a say here?"""
        if self._gives_way():
            raise NotReadyError("another model was chosen meanwhile, or updates are held")

    async def hold_updates(self, hold: bool) -> None:
        """See `loopcore.abc.Service`. A rollout that is loading a model then gives way."""
        self._held = hold
        self._tell()

    def operations(self) -> dict[str, Operation | LongOperation]:
        """What a command may ask: a model may have to be downloaded, and to be built for the device."""
        return {
            "set_model": LongOperation(_quiet(self.set_model)),
            "reload": LongOperation(_quiet(self.reload)),
            "previous_model": LongOperation(_quiet(self.back)),
            "hold_updates": self.hold_updates,
            "models": self.overview,
        }

    async def overview(self) -> dict[str, Any]:
        """The models that are here, and what is to serve, for a person."""
        rows = await to_thread.run_sync(listed, self.store, self.serving.model)
        choice = self.choice if self._plan.backend else None
        return {"models": rows, "choice": choice, "held": self._held, "rollouts": self.rollouts()}

    def is_ready(self) -> bool:
        """Whether a model serves, or none is meant to."""
        return self.serving.model is not None or self._plan.backend is None

    async def status(self) -> dict[str, Any]:
        """Its part of the node's status."""
        model = self.serving.model
        here = await to_thread.run_sync(self.store.list)
        return {
            "model": summary(model) if model else None,
            "model_choice": self.choice if self._plan.backend else None,
            "models": list(dict.fromkeys(model.info.version for model in here)),
            "updates_held": self._held,
        }

    @property
    def _configured(self) -> str:
        return self._plan.backend.table.model if self._plan.backend else FOLLOW

    def _backend(self, model: Model) -> Backend:
        part = self._plan.backend
        if part is None:
            raise NotReadyError("this node has no [backend]")
        if model.info.format not in part.type.formats:
            formats = ", ".join(part.type.formats)
            raise ModelError(f"the backend {part.table.driver!r} runs {formats}, not {model.info.format}")
        return part.type(part.options, model)

    def _wish(self) -> int:
        """A person's wish, which a later one supersedes."""
        self._wishes += 1
        return self._wishes

    def _check_wish(self, wish: int) -> None:
        if wish != self._wishes:
            raise ModelError("another model was chosen meanwhile; nothing has changed")

    async def _note(self, choice: str) -> None:
        serving = self.serving.model
        await self._settings.change(
            model=choice,
            configured_model=self._configured,
            rests_on_path=serving is not None and serving.path.parent != self.store.folder,
        )
        self._tell()

    @asynccontextmanager
    async def _decision(self, wish: int) -> AsyncGenerator[None]:
        """A person's turn: a rollout that is loading a model gives way, and what is begun is not left half done."""
        self._persons += 1
        try:
            async with self._choosing:
                self._check_wish(wish)
                with CancelScope(shield=True):
                    yield
        finally:
            self._persons -= 1

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher()

    async def _look_up(self, choice: str) -> Model:
        """What a person means, from the store or a platform."""
        try:
            model = await to_thread.run_sync(self._find, choice)
        except IntegrityError:
            if self.elsewhere is None:
                raise
            model = None
        if model is not None:
            return model
        if self.elsewhere is None:
            raise await to_thread.run_sync(self._unknown, choice)
        return await self.elsewhere(choice)

    def _unknown(self, choice: str) -> ModelError:
        known = ", ".join(f"{one.info.name} {one.info.version}" for one in self.store.list()) or "none"
        hint = f"; if a path is meant, write './{choice}'"
        return ModelError(f"no model of version {choice!r} is in the store (there: {known}){hint}")

    def _chosen_here(self) -> Model | None:
        """The model that is to serve, looked up and checked anew; `None` if it is not here. Blocking."""
        if self.choice in (FOLLOW, PAUSE):
            return self._find(self._configured) if self._settings.state.rests_on_path else self.store.active()
        if self._plan.config.model_path is None or self.choice != self._configured:
            with suppress(ModelError):
                active = self.store.active()
                if active and one_of(self.choice, [active.info]):
                    return active  # of several of this version the one that served
        return self._find(self.choice)

    def _find(self, choice: str) -> Model | None:
        model = self._plan.open_model(self._open) if choice == self._configured else None
        return model or self.store.get(choice, self.formats)

    def _open(self, path: Path) -> Model:
        """A model at a path is used where it lies; a zip is unpacked into the store, where nothing changes it."""
        if path.is_file() and path.suffix.lower() == ".zip":
            return self.store.stage(path)
        return open_model(path, self._data_dir)

    async def _activate(self, model: Model, gate: Gate | None = None, last: Callable[[], None] = _nothing) -> None:
        """Swap to a model that passes the gate, and raises nothing when `last` is called, just before the swap."""
        before = self.serving.model
        with CancelScope(shield=True):  # a command that goes away, or the node's end, must not leave half a swap
            try:
                await self._swap(model, gate or self._gate, last)
            finally:
                if self.serving.model is None:
                    self._vacant.set()
                if self.serving.model is not before:
                    self._tell()

    async def _swap(self, model: Model, gate: Gate, last: Callable[[], None]) -> None:
        async def admit(backend: Backend) -> None:
            await gate.test(backend)
            last()

        try:
            await gate.look(model)
            await self.serving.activate(model, admit)
        except IntegrityError:
            raise  # the disk's fault, and not the model's
        except ModelError as exc:
            exc.rule = exc.rule or LOAD
            _log.error("A model was refused name=%s version=%s why=%s", model.info.name, model.info.version, exc)
            await self._plan.hooks.model_refused(model.info, str(exc))
            raise
        if model.path.parent == self.store.folder:
            await to_thread.run_sync(self.store.activate, model)
            await to_thread.run_sync(self._prune)

    def _prune(self) -> None:
        try:
            self.store.prune()
        except (ModelError, StorageError):
            _log.exception("Old models could not be removed")

    async def _activated(self, backend: Backend, previous: Model | None) -> None:
        info = backend.model.info
        _log.info("A model serves now name=%s version=%s", info.name, info.version)
        await self._plan.hooks.model_activated(backend.model, previous)


def _quiet(operation: Operation) -> Operation:
    """An operation that takes its time and has nothing to say meanwhile."""

    async def run(tell: Tell, **parameters: Any) -> None:
        del tell
        await operation(**parameters)

    return run
