"""How commands reach what a node owns: through the node or, where none runs, on the files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

from anyio import create_task_group, to_thread

from loopcore.abc import Control
from loopcore.collect.delivery import Delivery, Lanes
from loopcore.collect.outbox import Outbox
from loopcore.config import Config, OutboxTable
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import ConfigError, LoopcoreError, StorageError
from loopcore.files import locked
from loopcore.node.catalogue import listed
from loopcore.node.clerk import Clerk, taker
from loopcore.node.control_socket import SOCKET, LongOperation, Operations, Progress, Tell, ask
from loopcore.node.state import load_state
from loopcore.options import Size
from loopcore.plan import resolve
from loopcore.registry import Registry

_NO_BOUND = Size(1 << 62)
_NO_BOUNDS = OutboxTable(max_bytes=_NO_BOUND, min_free=Size(0), rejected_max_bytes=_NO_BOUND)


class Use(Enum):
    """What an outbox is opened for where no node runs.

    `LOOK`: without bounds and without the TOML's sinks, so that nothing is dropped, and no sink begins or ends.
    `TAKE`: as a node would take samples in. `SEND`: and as it would send them.
    """

    LOOK = auto()
    TAKE = auto()
    SEND = auto()


async def _nobody(progress: Progress) -> None:
    del progress


@asynccontextmanager
async def reach(
    data_dir: Path, config: Config | None = None, use: Use = Use.LOOK, tell: Tell = _nobody
) -> AsyncGenerator[Control]:
    """A control for the `outbox_…` operations on a data folder. Where no node runs, none can start meanwhile.

    Args:
        data_dir: The folder.
        config: The TOML, where there is one.
        use: What for.
        tell: Hears the progress of what takes its time.

    Raises:
        ConfigError: No node runs, and this needs the TOML.
        StorageError: There is no outbox, or another process has the folder and does not answer.
    """
    if use is Use.LOOK and not (data_dir / "outbox").is_dir():
        raise StorageError(f"there is no outbox in {data_dir}")
    with ExitStack() as held:
        if not _owned(data_dir, held):
            yield _Asking(data_dir, tell)
            return
        async with _opened(data_dir, config, use) as operations:
            yield _Doing(data_dir, operations, tell)


@asynccontextmanager
async def reach_models(data_dir: Path, config: Config | None = None) -> AsyncGenerator[Control]:
    """A control for the operations on models. Where no node runs, `models` alone is answered.

    Args:
        data_dir: The folder.
        config: The TOML, where there is one.

    Raises:
        StorageError: There is no such folder, or another process has it and does not answer.
    """
    _check_folder(data_dir)
    with ExitStack() as held:
        if not _owned(data_dir, held):
            yield _Asking(data_dir, _nobody)
            return

        async def models() -> dict[str, Any]:
            return await to_thread.run_sync(_models, data_dir, config)

        yield _Doing(data_dir, {"models": models}, _nobody)


def _check_folder(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise StorageError(f"there is no data folder {data_dir}")


def _models(data_dir: Path, config: Config | None) -> dict[str, Any]:
    state = load_state(data_dir)
    choice = state.model
    if config is not None:
        choice = state.model_choice(config.backend.model) if config.backend else None
    rows = listed(ModelStore(data_dir / "models"), None)
    return {"models": rows, "choice": choice, "held": False, "rollouts": []}


def _owned(data_dir: Path, held: ExitStack) -> bool:
    """Take the folder's lock, unless a node has it."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.enter_context(locked(data_dir / "lock"))
    except OSError as exc:
        raise StorageError(f"cannot make the data folder {data_dir}: {exc.strerror or exc}") from exc
    except StorageError:
        if not (data_dir / SOCKET).exists():
            raise
        return False
    return True


@asynccontextmanager
async def _opened(data_dir: Path, config: Config | None, use: Use) -> AsyncGenerator[Operations]:
    folder = data_dir / "outbox"
    if use is Use.LOOK:
        configured = None if config is None else [table.name for table in config.sinks]
        async with Outbox(folder, _NO_BOUNDS) as outbox:
            yield Clerk(outbox, folder, configured).operations()
        return
    if config is None:
        raise ConfigError("no node runs here, so this needs the TOML file, which says what the sinks are")
    names = [table.name for table in config.sinks]
    async with Outbox(folder, config.outbox, [taker(table) for table in config.sinks]) as outbox:
        if use is Use.TAKE:
            yield Clerk(outbox, folder, names).operations()
            return
        async with _delivering(config, outbox, sending=load_state(data_dir).sending) as deliveries:
            yield Clerk(outbox, folder, names, deliveries).operations()


@asynccontextmanager
async def _delivering(config: Config, outbox: Outbox, *, sending: bool) -> AsyncGenerator[Mapping[str, Delivery]]:
    plan, lanes = resolve(config, Registry()), Lanes()
    deliveries = {
        part.table.name: Delivery(part.driver, part.table, outbox, plan.hooks, lanes=lanes) for part in plan.sinks
    }
    failed: LoopcoreError | None = None
    async with create_task_group() as tasks:
        await tasks.start(plan.hooks.run)
        for delivery in deliveries.values():
            if not sending:
                delivery.pause()
            await tasks.start(delivery.run)
        try:
            yield deliveries
        except LoopcoreError as exc:  # or the group would wrap it
            failed = exc
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


class _Asking:
    """`loopcore.abc.Control` of the node that owns a folder."""

    def __init__(self, data_dir: Path, tell: Tell) -> None:
        self._data_dir = data_dir
        self._tell = tell

    async def call(self, operation: str, **parameters: Any) -> Any:
        return await ask(self._data_dir, operation, parameters, self._tell)


class _Doing:
    """`loopcore.abc.Control` of a folder that no node owns."""

    def __init__(self, data_dir: Path, operations: Operations, tell: Tell) -> None:
        self._data_dir = data_dir
        self._operations = operations
        self._tell = tell

    async def call(self, operation: str, **parameters: Any) -> Any:
        found = self._operations.get(operation)
        if found is None:
            raise StorageError(f"no node runs on {self._data_dir}")
        if isinstance(found, LongOperation):
            return await found.run(self._tell, **parameters)
        return await found(**parameters)
