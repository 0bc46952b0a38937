"""A Learning Loop as a platform."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from loopcore import abc
from loopcore.abc import AnnotationDesk, CapabilityT, DeploymentTarget, ImageStore, JobQueue, ModelRegistry
from loopcore.errors import ConfigError
from loopcore.types import Problem
from loopcore_learningloop.client import Loop
from loopcore_learningloop.deployment import Deployment
from loopcore_learningloop.fetching import CONNECTIONS
from loopcore_learningloop.images import Images
from loopcore_learningloop.models import Models
from loopcore_learningloop.old_status import OldStatus
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.projects import Project
from loopcore_learningloop.reaching import problems


class Platform(abc.Platform):
    """One project of a Loop; or, without one, all that the account can see, and no deployment or images."""

    Options = PlatformOptions
    options: PlatformOptions

    def __init__(self, options: PlatformOptions) -> None:
        super().__init__(options)
        if options.project and not options.organization:
            raise ConfigError("a project belongs to an organization; name that too", key="organization")
        self.loop = Loop(options, connections=CONNECTIONS + 8)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        options = self.options
        async with self.loop, OldStatus(self.loop, muted=options.muted) as self._old_status:
            self.project = Project(self.loop, options.organization, options.project) if options.project else None
            self._capabilities: dict[type, Any] = {
                ModelRegistry: Models(self.loop, self.project, limit_s=options.model_timeout)
            }
            self._muted = options.muted
            if self.project is not None:
                self._capabilities[DeploymentTarget] = Deployment(
                    self.project, options, self._old_status, self._old_status.restart_wanted.wait
                )
                self._capabilities[ImageStore] = Images(self.project)
            yield self

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        if kind not in self._capabilities and kind in _ROLES:
            self._capabilities[kind] = role = _ROLES[kind](self.loop, self.options)
            role.mute(self._muted)
        return self._capabilities.get(kind)

    def mute(self, muted: bool) -> None:
        """From now on exchange neither status nor models to run with the Loop; or do again."""
        self._muted = muted
        deployment = self._capabilities.get(DeploymentTarget)
        if isinstance(deployment, Deployment):
            deployment.muted = muted
        for role in (self._old_status, *self._roles()):
            role.mute(muted)

    async def reset(self) -> None:
        """Begin anew as trainer and annotator, as far as this node is one; a detector begins anew by itself (9.5).

        Raises:
            StorageError: A job could not be given up.
        """
        for role in self._roles():
            await role.reset()

    def refresh(self) -> None:
        """Tell the Loop now how the trainer is doing."""
        if JobQueue in self._capabilities:
            self._capabilities[JobQueue].refresh()

    def _roles(self) -> Sequence[Any]:
        return [self._capabilities[kind] for kind in _ROLES if kind in self._capabilities]

    async def check(self) -> Sequence[Problem]:
        return await problems(self.loop, self.project)


def _trainings(loop: Loop, options: PlatformOptions) -> Any:
    from loopcore_learningloop.jobs import Trainings  # brings python-socketio

    return Trainings(loop, options)


def _desk(loop: Loop, options: PlatformOptions) -> Any:
    from loopcore_learningloop.annotation import Desk

    return Desk(loop, options)


_ROLES: dict[type, Callable[[Loop, PlatformOptions], Any]] = {JobQueue: _trainings, AnnotationDesk: _desk}
