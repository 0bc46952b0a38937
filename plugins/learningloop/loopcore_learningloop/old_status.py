"""A detector's status and target over the socket, for Loops from before 0.16 (`learning-loop.md` 3.4, 12)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec
from anyio import AsyncContextManagerMixin, Event, Lock, create_task_group
from msgspec import Struct

from loopcore.errors import RetryableError, first
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.projects import Project

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from loopcore_learningloop.sockets import Socket

STATUS_S = 20.0
"""How long the Loop may take to hear a status."""

CONNECT_S = 10.0
"""How long a status waits for a connection."""


class _Payload(Struct):
    target_model_id: str | None = None
    target_model_version: str | None = None


class OldStatus(AsyncContextManagerMixin):
    """Tells the status of one detector; connects when it is first told one. On asyncio only.

    Args:
        loop: The Loop; entered.
        muted: Stay away until told otherwise.

    Attributes:
        restart_wanted: Set when the Loop asks this node to start again.
    """

    def __init__(self, loop: Loop, *, muted: bool = False) -> None:
        self._loop = loop
        self._muted = muted
        self._socket: Socket | None = None
        self._starting = Lock()
        self.restart_wanted = Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            async with create_task_group() as self._tasks:
                yield self
                self._tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first(group) from None  # whoever has entered us sees his own error

    async def __call__(self, project: Project, status: wire.DetectorStatus) -> wire.Target | None:
        """The target that the Loop answers with.

        Raises:
            RetryableError: It did not hear the status.
            ConfigError: This is not asyncio.
        """
        socket = await self._connected(project)
        told = msgspec.to_builtins(status)
        told["id"] = told.pop("uuid")
        del told["node_version"]
        ack = await socket.report(
            "update_detector", project.organization, project.id, told, limit_s=STATUS_S, strict=True
        )
        return _target(ack.payload if ack else None)

    def mute(self, muted: bool) -> None:
        """Leave the Loop and stay away, or come back."""
        self._muted = muted
        if self._socket is not None:
            self._socket.mute(muted)

    async def _connected(self, project: Project) -> Socket:
        from loopcore_learningloop.sockets import Socket  # brings python-socketio

        async with self._starting:
            if self._socket is None:
                place = wire.Context(project.organization, project.id)
                socket = Socket(self._loop, "detector", place, muted=self._muted)
                await self._tasks.start(self._run, socket)
                self._socket = socket
        with anyio.move_on_after(CONNECT_S):
            await self._socket.connected()
            return self._socket
        raise RetryableError(f"the Loop's socket has not opened within {CONNECT_S:g} s")

    async def _run(self, socket: Socket, *, task_status: TaskStatus[None]) -> None:
        await socket.run(task_status=task_status)
        self.restart_wanted.set()


def _target(payload: Any) -> wire.Target | None:
    try:
        told = msgspec.convert({} if payload is None else payload, _Payload)
    except msgspec.ValidationError as exc:
        raise RetryableError(f"the Loop acknowledges a status without a target: {exc}") from exc
    if not told.target_model_id:
        return None
    return wire.Target(model_uuid=told.target_model_id, version=told.target_model_version or told.target_model_id)
