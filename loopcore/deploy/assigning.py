"""Another platform as the place of a rollout: publish the model there, assign it, and see that it is the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from anyio import to_thread

from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.deploy.bringing import Bringer, Told
from loopcore.deploy.exchange import exchange
from loopcore.deploy.gate import Gate
from loopcore.deploy.identity import same_model
from loopcore.deploy.modelstore import ModelStore
from loopcore.deploy.notes import Notes
from loopcore.deploy.offers import publish, wanted_of
from loopcore.errors import RejectedError, RetryableError
from loopcore.types import Model, ModelInfo


class OtherPlatform:
    """`loopcore.deploy.rollout.Place` of a platform. The model is not loaded here: only its package passes the gate.

    Args:
        name: The name of the platform.
        registry: Takes models.
        target: Is told which one is to be live.
        bringer: Brings models from the other platform.
        store: Where they are on the way.
        formats: The one that is wanted; none: as the other platform has it.
        gate: Looks at packages.
        notes: What this platform calls the models that it was given.
        conditions: See `Place`.
    """

    def __init__(
        self,
        name: str,
        registry: ModelRegistry,
        target: DeploymentTarget,
        *,
        bringer: Bringer,
        store: ModelStore,
        formats: Sequence[str],
        gate: Gate,
        notes: Notes,
        conditions: str,
    ) -> None:
        self.name = name
        self.conditions = conditions
        self._registry = registry
        self._target = target
        self._bringer = bringer
        self._store = store
        self._formats = formats
        self._gate = gate
        self._notes = notes
        self._brought: Model | None = None

    def closed(self) -> Literal["paused", "held"] | None:
        return None

    async def has(self, wanted: ModelInfo) -> bool:
        there = self._notes.published(wanted, self.name)
        return there is not None and await self._is_target(there)

    async def bring(self, wanted: ModelInfo, told: Told) -> None:
        if self._notes.published(wanted, self.name) is None:
            self._brought = await self._bringer.bring(wanted, self._formats, told)

    async def activate(self, wanted: ModelInfo, told: Told) -> bool:
        told("checking")
        there = self._notes.published(wanted, self.name) or await self._publish(wanted)
        try:
            with exchange(self.name):
                await self._target.assign(there)
        except RejectedError:
            await self._notes.publish(wanted, self.name, None)  # it may have lost it: publish anew next time
            raise
        if not await self._is_target(there):
            raise RetryableError(f"{self.name!r} was assigned {there.name} {there.version}, and names another target")
        return True

    async def _publish(self, wanted: ModelInfo) -> ModelInfo:
        if self._brought is None:
            raise RetryableError(f"{wanted.name} {wanted.version} is not at hand to be published")
        await self._gate.look(self._brought)
        there = await publish(self.name, self._registry, self._brought)
        await self._notes.publish(wanted, self.name, there)
        await to_thread.run_sync(self._store.prune, 1)
        return there

    async def _is_target(self, there: ModelInfo) -> bool:
        now = await wanted_of(self.name, self._target)
        return now is not None and same_model(there, now)
