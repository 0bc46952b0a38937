"""The `[[conversions]]` of a node at work: models of a platform that lack a format get it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from anyio import CancelScope, Event, create_task_group, move_on_after, to_thread
from msgspec import to_builtins
from msgspec.structs import replace

from loopcore.abc import ModelRegistry
from loopcore.config import ConversionTable
from loopcore.deploy.conversion import Chain, Converters
from loopcore.deploy.exchange import Patience
from loopcore.deploy.fetching import fetch
from loopcore.deploy.identity import made_from, same_model, shown
from loopcore.deploy.modelstore import ModelStore
from loopcore.deploy.notes import Notes, Refusal
from loopcore.deploy.offers import offers, publish
from loopcore.deploy.resting import Resting
from loopcore.errors import LoopcoreError, ModelError, RejectedError, RetryableError
from loopcore.node.control_socket import Operations
from loopcore.plan import Plan
from loopcore.types import Model, ModelInfo

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

UPLOADS = 10
"""How often an upload is tried again; that takes about half an hour."""

SHOWN = 20
"""Of the models that could not be converted, the status shows the newest so many."""

State: TypeAlias = Literal["waiting", "idle", "fetching", "converting", "publishing", "failed"]


class Conversion:
    """One `[[conversions]]` table: looks for models, and converts them one by one.

    Args:
        table: Says from what to what.
        registry: The platform's models.
        converters: What is installed.
        store: Where models are on the way; nobody else's.
        notes: Which conversions have failed.
    """

    def __init__(
        self,
        table: ConversionTable,
        registry: ModelRegistry,
        converters: Converters,
        store: ModelStore,
        notes: Notes,
    ) -> None:
        self._table = table
        self._registry = registry
        self._converters = converters
        self._store = store
        self._notes = notes
        self._patience = Patience()
        self._random = Random()
        self._resting = Resting(float(table.every), self._random)
        self._woken = Event()
        self._state: State = "waiting"
        self._model: dict[str, str] | None = None
        self._progress: float | None = None
        self._error: str | None = None
        self._refused: Sequence[Refusal] = ()

    def wake(self) -> None:
        """Look at once, and try again what has failed."""
        self._resting.clear()
        self._woken.set()

    def status(self) -> dict[str, Any]:
        """As in the node's status."""
        return {
            "platform": self._table.platform,
            "from": self._table.source,
            "to": self._table.target,
            "state": self._state,
            "model": self._model,
            "progress": self._progress,
            "error": self._error,
            "refused": to_builtins(self._refused[:SHOWN]),
        }

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Look and convert until cancelled."""
        task_status.started()
        while True:
            wait_s = await self._attempt()
            await self._rest(wait_s)

    async def _rest(self, wait_s: float) -> None:
        with move_on_after(wait_s):
            await self._woken.wait()
        self._woken = Event()

    async def _attempt(self) -> float:
        try:
            await self._convert_all()
        except LoopcoreError as exc:
            level = logging.DEBUG if self._patience.failures else logging.WARNING
            _log.log(level, "Conversions go on later platform=%s error=%s", self._table.platform, exc)
            self._show("failed")
            self._error = str(exc)
            return self._patience.wait_s(exc, self._random)
        if self._patience.failures:
            _log.info("Conversions go on platform=%s", self._table.platform)
        self._patience.failures = 0
        self._error = None
        self._show("idle")
        return self._table.every

    async def _convert_all(self) -> None:
        """Convert what lacks the format, the newest first.

        Raises:
            LoopcoreError: The platform or the disk fails, so that it makes no sense to go on.
        """
        table = self._table
        chain = await to_thread.run_sync(self._converters.plan, {table.source}, {table.target})
        models = await offers(table.platform, self._registry)
        refused = []
        for model in lacking(models, table.source, table.target):
            refusal = self._notes.refusal(model, str(chain))
            if refusal is None and self._resting.error(model) is None and (fetched := await self._fetched(model)):
                try:
                    await self._convert(model, fetched, chain)
                except (ModelError, RejectedError) as exc:
                    _log.error("A model cannot be converted name=%s version=%s why=%s", model.name, model.version, exc)
                    refusal = await self._notes.refuse(model, str(chain), exc)
            if refusal is not None:
                refused.append(refusal)
        self._refused = refused

    async def _fetched(self, model: ModelInfo) -> Model | None:
        """The model; `None` if the platform does not give it whole: others are not held up, and it may come later."""
        self._show("fetching", model)
        try:
            return await fetch(self._table.platform, self._registry, model, self._store)
        except (ModelError, RejectedError) as exc:
            level = logging.DEBUG if self._resting.failed(model, exc) > 1 else logging.WARNING
            _log.log(level, "A model cannot be had yet name=%s version=%s why=%s", model.name, model.version, exc)
            return None

    async def _convert(self, model: ModelInfo, fetched: Model, chain: Chain) -> None:
        try:
            self._show("converting", model)
            # What the platform says of it goes along: that is how the platform knows the model again.
            source = replace(fetched, info=made_from(fetched.info, [model]))
            async with self._converters.converted(source, chain, self._report) as made:
                self._show("publishing", model)
                await self._publish(made)
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._store.clear, fetched.path)
        _log.info("A model was converted name=%s version=%s to=%s", model.name, model.version, self._table.target)

    async def _publish(self, made: Model) -> None:
        """Upload it; what took an hour to make is not thrown away because the platform is away for a minute."""
        patience = Patience()
        while True:
            try:
                await publish(self._table.platform, self._registry, made)
            except RetryableError as exc:
                if patience.failures >= UPLOADS:
                    raise
                self._error = str(exc)
                await self._rest(patience.wait_s(exc, self._random))
            else:
                self._error = None
                return

    def _report(self, progress: float, message: str) -> None:
        del message
        self._progress = progress

    def _show(self, state: State, model: ModelInfo | None = None) -> None:
        self._state, self._model, self._progress = state, shown(model) if model else None, None


class Converting:
    """The role of a node with `[[conversions]]`.

    Args:
        plan: Says which; its platforms are entered when `run` is called.
        converters: What is installed.
    """

    name = "conversions"

    def __init__(self, plan: Plan, converters: Converters) -> None:
        data_dir = plan.config.node.data_dir
        self._plan = plan
        self._converters = converters
        self._folder = data_dir / "passing"
        self._notes = Notes(data_dir / "conversions.json")
        self._conversions: list[Conversion] = []

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Convert until cancelled.

        Raises:
            ConfigError: A platform keeps no models.
        """
        await to_thread.run_sync(self._notes.load)
        for number, table in enumerate(self._plan.config.conversions):
            registry = await self._plan.capability(table.platform, ModelRegistry)
            if registry is None:
                message = f"the platform {table.platform!r} has no ModelRegistry, which a conversion needs"
                raise self._plan.config.error(table.key, message)
            store = ModelStore(self._folder / f"conversions-{number}")
            self._conversions.append(Conversion(table, registry, self._converters, store, self._notes))
        async with create_task_group() as tasks:
            for conversion in self._conversions:
                await tasks.start(conversion.run, name="conversion")
            task_status.started()

    def operations(self) -> Operations:
        return {"forget_conversions": self._forget}

    def status(self) -> Mapping[str, Any]:
        return {"conversions": [conversion.status() for conversion in self._conversions]}

    async def _forget(self) -> int:
        """Try models again that could not be converted; how many there were."""
        count = await self._notes.forget()
        for conversion in self._conversions:
            conversion.wake()
        return count


def lacking(models: Sequence[ModelInfo], source: str, target: str) -> Sequence[ModelInfo]:
    """The models that are there in one format and not in the other; one without a version is nobody's to choose."""
    there = [model for model in models if model.format == target]
    return [
        model
        for model in models
        if model.format == source and model.version and not any(same_model(model, other) for other in there)
    ]
