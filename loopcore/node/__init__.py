"""A node: one process that runs what a TOML names. Commands reach a running one through its control socket."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, create_task_group, open_signal_receiver

from loopcore.config import Config
from loopcore.errors import LoopcoreError, first
from loopcore.node.control_socket import ask
from loopcore.node.node import Node
from loopcore.node.offline import Use, reach, reach_models
from loopcore.plan import resolve
from loopcore.registry import Registry

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from loopcore.abc import Control

_log = logging.getLogger(__name__)

__all__ = ["Node", "Use", "control", "reach", "reach_models", "run", "run_config"]


async def run(
    config: Config,
    *,
    registry: Registry | None = None,
    until_done: bool = False,
    up: Callable[[str], None] | None = None,
) -> int | None:
    """Run a node until it is cancelled, told to stop by a signal, or done.

    Args:
        config: What to run.
        registry: Where drivers come from; what is installed if absent.
        until_done: End by itself once the sources have ended and the sinks have everything.
        up: Called with the server's address once the node is up.

    Returns:
        The number of the signal that ended it, if one did.

    Raises:
        LoopcoreError: The node could not start, or could not go on.
    """
    node = Node(resolve(config, registry or Registry()))
    caught: list[int] = []
    stop = CancelScope()
    try:
        async with create_task_group() as group:
            await group.start(_stop_on_signal, caught, stop)
            with stop:
                async with create_task_group() as running:
                    url = await running.start(partial(node.run, until_done=until_done), name="node")
                    if up:
                        up(url)
            group.cancel_scope.cancel()
    except* LoopcoreError as failures:
        failure = first(failures)
        raise failure from failure.__cause__
    return caught[0] if caught else None


def run_config(config: Config, *, until_done: bool = False, up: Callable[[str], None] | None = None) -> int | None:
    """`run` in an event loop of its own: asyncio on uvloop where that is installed."""
    return anyio.run(
        partial(run, config, until_done=until_done, up=up),
        backend="asyncio",
        backend_options={"use_uvloop": find_spec("uvloop") is not None},
    )


def control(data_dir: Path) -> Control:
    """The control of the node that owns a data folder."""
    return _Control(data_dir)


class _Control:
    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    async def call(self, operation: str, **parameters: Any) -> Any:
        return await ask(self._data_dir, operation, parameters)


async def _stop_on_signal(caught: list[int], stop: CancelScope, *, task_status: TaskStatus[None]) -> None:
    """The first signal ends the node in good order, the second only says so, and the third is Python's own affair."""
    with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            stop.cancel()
            if len(caught) > 1:
                _log.warning("The node is ending; once more, and it ends at once, in disorder")
                return
