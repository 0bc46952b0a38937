"""What a node can do besides looking at frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from loopcore.node.control_socket import Operations

if TYPE_CHECKING:
    from anyio.abc import TaskStatus


class Role(Protocol):
    """Rolling models out, converting, training, annotating: each works by itself, and none takes another down.

    Made by the node before anything is entered; run once the sinks and the platforms are, until the node ends.
    """

    @property
    def name(self) -> str:
        """For people: the name of its task."""
        ...

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled. What is raised before `started()` ends the node's start.

        Returns when the node is to end, in good order and with exit code 0: because a platform asks for a restart, or
        because there is nothing left to do.
        """
        ...

    def operations(self) -> Operations:
        """What a command may ask of it."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Its own part of the node's status."""
        ...
