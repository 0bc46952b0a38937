"""The `[[rollouts]]` of a node at work: from platforms to this node, and to other platforms."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from anyio import Event, create_task_group, to_thread

from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.config import RolloutTable
from loopcore.deploy.assigning import OtherPlatform
from loopcore.deploy.bringing import Bringer, Doing, Told
from loopcore.deploy.conversion import Converters
from loopcore.deploy.gate import Gate, Run, gate_for
from loopcore.deploy.identity import same_model
from loopcore.deploy.modelstore import ModelStore
from loopcore.deploy.notes import Notes
from loopcore.deploy.reporting import Reporter
from loopcore.deploy.rollout import Place, Rollout
from loopcore.errors import ModelError
from loopcore.node.control_socket import Operations
from loopcore.node.enduring import Enduring
from loopcore.node.models import Models
from loopcore.plan import Plan
from loopcore.types import Model, ModelInfo

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

CapabilityT = TypeVar("CapabilityT")
Status = Callable[[], Awaitable[Mapping[str, Any]]]


class ThisNode:
    """`loopcore.deploy.rollout.Place` of the node itself.

    Args:
        models: The node's.
        bringer: Brings them from the platform.
        formats: In which they may be, best first.
        gate: Which they must pass.
        notes: Which of them took the node down.
        conditions: See `Place`.
    """

    name = "self"

    def __init__(
        self, models: Models, bringer: Bringer, formats: Sequence[str], gate: Gate, notes: Notes, conditions: str
    ) -> None:
        self.conditions = conditions
        self._notes = notes
        self._models = models
        self._bringer = bringer
        self._formats = formats
        self._gate = gate
        self._brought: Model | None = None

    def closed(self) -> Literal["paused", "held"] | None:
        return self._models.closed()

    async def has(self, wanted: ModelInfo) -> bool:
        serving = self._models.serving.model
        return serving is not None and same_model(wanted, serving.info)

    async def bring(self, wanted: ModelInfo, told: Told) -> None:
        self._brought = await self._bringer.bring(wanted, self._formats, told)

    async def activate(self, wanted: ModelInfo, told: Told) -> bool:
        if self._brought is None:
            raise ModelError(f"{wanted.name} {wanted.version} is not here")
        told("checking")
        async with self._notes.trial(wanted, self.conditions):
            return await self._models.follow(self._brought, self._gate)

    async def look_up(self, choice: str) -> Model:
        """The platform's model of a version, in the node's store."""
        return await self._bringer.bring(await self._bringer.meant(choice), self._formats, _nobody)


class Rolling:
    """The role of a node with `[[rollouts]]`.

    Args:
        plan: Says which; its platforms are entered when `run` is called.
        models: The node's.
        converters: What is installed.
        run: Runs what blocks in one of the threads that run models.
        status: The node's status, to be reported.
    """

    name = "rollouts"

    def __init__(self, plan: Plan, models: Models, converters: Converters, run: Run, status: Status) -> None:
        self._plan = plan
        self._models = models
        self._converters = converters
        self._run = run
        self._status = status
        self._notes = Notes(plan.config.node.data_dir / "rollouts.json")
        self._rollouts: list[Rollout] = []
        self._reporters: list[Reporter] = []
        self._restarts: list[Enduring] = []
        self._self: ThisNode | None = None
        self._ready = Event()
        if any(table.target == "self" for table in plan.config.rollouts):
            models.elsewhere = self._look_up
        models.watchers.append(self._woken)
        models.rollouts = self._standing

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Roll out until cancelled, or until a platform asks for the node's restart.

        Raises:
            ConfigError: A platform lacks what a rollout needs.
        """
        await to_thread.run_sync(self._notes.load)
        for table in self._plan.config.rollouts:
            await self._add(table)
        self._ready.set()
        async with create_task_group() as tasks:
            for rollout in self._rollouts:
                await tasks.start(rollout.run, name=f"rollout {rollout.status()['from']}")
            for reporter in self._reporters:
                await tasks.start(reporter.run, name="report")
            for restart in self._restarts:
                await tasks.start(restart.run, tasks.cancel_scope, name="restart")
            task_status.started()

    def operations(self) -> Operations:
        return {"forget_refused": self._forget}

    def status(self) -> Mapping[str, Any]:
        return {"rollouts": self._standing()}

    def _standing(self) -> Sequence[Mapping[str, Any]]:
        return [rollout.status() for rollout in self._rollouts]

    async def _forget(self) -> int:
        """Try models again that were refused; how many there were."""
        count = await self._notes.forget()
        self._woken()
        return count

    async def _add(self, table: RolloutTable) -> None:
        registry = await self._capability(table, table.source, ModelRegistry)
        target = await self._capability(table, table.source, DeploymentTarget)
        make = self._this_node if table.target == "self" else self._other_platform
        place = await make(table, registry)
        rollout = Rollout(table.source, target, place, every_s=table.every, notes=self._notes, changed=self._changed)
        self._rollouts.append(rollout)
        if table.target == "self":
            self._reporters.append(Reporter(table.source, target, self._status, every_s=table.report))
            self._restarts.append(Enduring("restarts", table.source, partial(_heed, target)))

    async def _this_node(self, table: RolloutTable, registry: ModelRegistry) -> Place:
        bringer = self._bringer(table, registry, self._models.store)
        formats = (table.format,) if table.format else self._models.formats
        gate = gate_for(table.gate, self._run)
        self._self = ThisNode(self._models, bringer, formats, gate, self._notes, self._conditions(table))
        return self._self

    async def _other_platform(self, table: RolloutTable, registry: ModelRegistry) -> Place:
        store = ModelStore(self._plan.config.node.data_dir / "passing" / sha256(table.target.encode()).hexdigest()[:16])
        return OtherPlatform(
            table.target,
            await self._capability(table, table.target, ModelRegistry),
            await self._capability(table, table.target, DeploymentTarget),
            bringer=self._bringer(table, registry, store),
            store=store,
            formats=(table.format,) if table.format else (),
            gate=gate_for(table.gate, to_thread.run_sync),
            notes=self._notes,
            conditions=self._conditions(table),
        )

    def _bringer(self, table: RolloutTable, registry: ModelRegistry, store: ModelStore) -> Bringer:
        refused = self._plan.hooks.model_refused
        return Bringer(table.source, registry, store, self._converters, self._notes, refused)

    async def _capability(self, table: RolloutTable, name: str, kind: type[CapabilityT]) -> CapabilityT:
        found = await self._plan.capability(name, kind)
        if found is None:
            message = f"the platform {name!r} has no {kind.__name__}, which a rollout needs"
            raise self._plan.config.error(table.key, message)
        return found

    def _conditions(self, table: RolloutTable) -> str:
        """The gate, the format and what runs the model: others may think better of it."""
        backend = self._plan.backend if table.target == "self" else None
        runs: tuple[Any, ...] = ()
        if backend:
            version = self._plan.registry.version("backend", backend.table.driver)
            runs = (backend.table.driver, version, backend.table.options)
        return sha256(msgspec.json.encode((table.target, table.format, table.gate, runs), enc_hook=str)).hexdigest()

    async def _look_up(self, choice: str) -> Model:
        await self._ready.wait()
        if self._self is None:
            raise ModelError(f"no model of version {choice!r} is here")
        return await self._self.look_up(choice)

    def _changed(self) -> None:
        for reporter in self._reporters:
            reporter.changed()

    def _woken(self) -> None:
        for rollout in self._rollouts:
            rollout.wake()
        self._changed()


async def _heed(target: DeploymentTarget, task_status: TaskStatus[None]) -> None:
    task_status.started()
    await target.restart_wanted()


def _nobody(doing: Doing) -> None:
    del doing
