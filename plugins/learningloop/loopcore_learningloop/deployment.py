"""Which model is to be live, and how this node is doing (`learning-loop.md` 3.5, 8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeAlias
from uuid import NAMESPACE_URL, uuid5

from anyio import sleep_forever
from msgspec import Struct

from loopcore.abc import DeploymentTarget
from loopcore.errors import RejectedError, RetryableError
from loopcore.types import ModelInfo
from loopcore_learningloop import packages, wire
from loopcore_learningloop.client import decoded
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.projects import Project

StatusOverSocket: TypeAlias = Callable[[Project, wire.DetectorStatus], Awaitable[wire.Target | None]]
"""Tells a Loop from before 2025 the status, over its socket; the answer names the target (3.4)."""

_NOT_FOUND = 404
_NO_ROUTE = frozenset({_NOT_FOUND, 405})


class _Answer(Struct):
    """The target; both are empty where nobody has chosen one."""

    model_uuid: str | None
    version: str | None


class Deployment(DeploymentTarget):
    """The deployment of one project.

    Args:
        project: The project.
        options: The platform's.
        over_socket: The way of Loops that have no REST routes for this; `None`: there is none.
        restart_wanted: Returns when such a Loop asks for this node's restart.
    """

    def __init__(
        self,
        project: Project,
        options: PlatformOptions,
        over_socket: StatusOverSocket | None = None,
        restart_wanted: Callable[[], Awaitable[None]] = sleep_forever,
    ) -> None:
        self.muted = options.muted
        self._project = project
        self._options = options
        self._over_socket = over_socket
        self._restart_wanted = restart_wanted
        self._is_old = False
        self._told: wire.Target | None = None

    async def target(self) -> ModelInfo | None:
        """See `DeploymentTarget`. Its format is open: the model's registry has it in one or several."""
        if self.muted:
            return None
        path = self._project.path("deployment", "target")
        answer = await self._project.loop.call("GET", path, expect=_NO_ROUTE)
        if answer.status_code in _NO_ROUTE:
            if self._is_old:
                return self._info(self._told)
            if "json" in answer.headers.get("content-type", ""):
                return None  # the Loop's own words: nobody has chosen; `check` finds a project that is not there
            raise RetryableError(f"{self._project} has no deployment target; is the URL right?", status=_NOT_FOUND)
        target = decoded(f"GET {path}", answer.content, _Answer)
        if not target.model_uuid:
            return None
        return self._info(wire.Target(model_uuid=target.model_uuid, version=target.version or target.model_uuid))

    async def assign(self, model: ModelInfo) -> None:
        """See `DeploymentTarget`. The protocol has no call for it."""
        raise RejectedError(f"which model is live is chosen by people at the Loop; choose {model.version} there")

    async def report(self, status: Mapping[str, Any]) -> None:
        """See `DeploymentTarget`."""
        if self.muted:
            return
        told = detector_status(status, self._options)
        answer = await self._project.loop.call("POST", self._project.path("detectors"), json=told, expect=_NO_ROUTE)
        self._is_old = answer.status_code in _NO_ROUTE
        if not self._is_old:
            return
        if self._over_socket is None:
            raise RetryableError(f"the Loop takes no status for {self._project}; is there such a project?")
        self._told = await self._over_socket(self._project, told)

    async def restart_wanted(self) -> None:
        """See `DeploymentTarget`."""
        await self._restart_wanted()

    def _info(self, target: wire.Target | None) -> ModelInfo | None:
        if target is None:
            return None
        model = wire.ModelInformation(
            id=target.model_uuid,
            organization=self._project.organization,
            project=self._project.id,
            version=target.version,
        )
        return packages.info_of(model, "")


def node_id(options: PlatformOptions, name: str) -> str:
    """The id under which the Loop lists a node: the same after each start, and another one for each project."""
    return options.node_id or str(uuid5(NAMESPACE_URL, f"loopcore:{name}/{options.organization}/{options.project}"))


def node_version(options: PlatformOptions) -> str:
    """What the Loop shows as the node's version."""
    return options.node_version or f"loopcore {version('loopcore')}"


def detector_status(status: Mapping[str, Any], options: PlatformOptions) -> wire.DetectorStatus:
    """A node's status in the Loop's words (3.5)."""
    name = str(status.get("node", ""))
    model = status.get("model") or {}
    rollouts = [one for one in status.get("rollouts", ()) if one.get("to") == "self"]
    targets = [one["target"]["version"] for one in rollouts if one.get("target")]
    errors = [str(one["error"]) for one in rollouts if one.get("error")]
    mode = "detecting" if status.get("updates_held") else "idle" if status.get("ready") else "startup"
    return wire.DetectorStatus(
        uuid=node_id(options, name),
        name=name,
        uptime=int(status.get("uptime_s", 0)),
        model_format=str(model.get("format") or "onnx"),
        current_model=model.get("version"),
        target_model=targets[0] if targets else None,
        errors={"update_model": "; ".join(errors)} if errors else {},
        operation_mode=mode,
        node_version=node_version(options),
    )
