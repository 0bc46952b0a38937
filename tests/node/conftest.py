"""Whole nodes with drivers from memory, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group, fail_after

from loopcore import config
from loopcore.abc import Driver
from loopcore.deploy.modelstore import ModelStore
from loopcore.node import Node
from loopcore.package import write_package
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import AlwaysSelector, FixedBackend, MemorySink, MemorySource
from loopcore.types import Model, ModelInfo

Drivers = Mapping[str, Mapping[str, type[Driver]]]

DRIVERS: Drivers = {
    "backend": {"fixed": FixedBackend},
    "selector": {"always": AlwaysSelector},
    "sink": {"memory": MemorySink},
    "source": {"memory": MemorySource},
}


class Running:
    """A node at work."""

    def __init__(self, node: Node, client: httpx.AsyncClient, stop: Callable[[], None], ended: anyio.Event) -> None:
        self.node = node
        self.client = client
        self.stop = stop
        self.ended = ended


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def anyio_backend() -> str:
    """A node is served by uvicorn, which knows asyncio alone."""
    return "asyncio"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder whose model store has `fixed 1`, active, and `fixed 2`."""
    store = ModelStore(tmp_path / "data" / "models")
    for version in ("2", "1"):
        model = store.stage(make_model(tmp_path / f"model-{version}", version).path)
    store.activate(model)
    return tmp_path / "data"


def make_model(folder: Path, version: str, format: str = "null") -> Model:
    folder.mkdir()
    (folder / "weights").write_text(version)
    return write_package(folder, ModelInfo(name="fixed", version=version, format=format))


def table(data_dir: Path, **tables: Any) -> dict[str, Any]:
    """A node with everything from memory; tables replace those of the same name."""
    base: dict[str, Any] = {
        "node": {"name": "test", "data_dir": str(data_dir)},
        "server": {"port": 0},
        "backend": {"driver": "fixed"},
        "selectors": [{"driver": "always"}],
        "sinks": [{"driver": "memory"}],
        "outbox": {"min_free": 0},
    }
    return {name: value for name, value in (base | tables).items() if value is not None}


@pytest.fixture
def start(data_dir: Path) -> Start:
    @asynccontextmanager
    async def starting(
        drivers: Drivers | None = None, *, until_done: bool = False, **tables: Any
    ) -> AsyncIterator[Running]:
        merged = {kind: {**named, **(drivers or {}).get(kind, {})} for kind, named in DRIVERS.items()}
        merged |= {kind: named for kind, named in (drivers or {}).items() if kind not in merged}
        plan = resolve(config.parse(table(data_dir, **tables)), Registry(merged, installed=False))
        node = Node(plan)
        ended = anyio.Event()

        async def run(*, task_status: Any) -> None:
            await node.run(until_done=until_done, task_status=task_status)
            ended.set()

        with fail_after(30):
            async with create_task_group() as group:
                url = await group.start(run)
                async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                    yield Running(node, client, group.cancel_scope.cancel, ended)
                group.cancel_scope.cancel()

    return starting
