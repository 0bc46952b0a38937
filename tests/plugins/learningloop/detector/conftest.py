"""A node with the detector's API: real HTTP, real Socket.IO, a backend that finds one of each kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
import socketio
from anyio import create_task_group, fail_after
from loopcore_learningloop import hooks, packages, wire

from loopcore import config
from loopcore.abc import Driver
from loopcore.deploy.modelstore import ModelStore
from loopcore.hooks import Hooks
from loopcore.node.node import Node
from loopcore.package import write_package
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import MemorySink, NullBackend
from loopcore.types import (
    Box,
    Classification,
    FrameInfo,
    Model,
    ModelInfo,
    Point,
    Prediction,
    Receipt,
    Sample,
    Segmentation,
)

CATEGORIES = [wire.Category(id=f"id of {name}", name=name) for name in ("cup", "dot", "shape", "scene")]
LOOP = {"driver": "learningloop", "url": "http://127.0.0.1:1", "organization": "zoo", "project": "penguins"}


class Finder(NullBackend):
    """Finds one of each kind, with edges between pixels and beyond the picture."""

    def _found(self, info: FrameInfo) -> Prediction:
        detections = (
            Box(label="cup", confidence=0.45, x=-3.2, y=10.4, width=20.0, height=7.3),
            Point(label="dot", confidence=0.9, x=5.25, y=info.height + 1.0),
            Segmentation(label="shape", confidence=0.9, points=((1.2, 2.6), (9.5, 2.0), (5.0, 8.0))),
            Classification(label="unheard of", confidence=0.9),
        )
        model = self.model.info
        return Prediction(detections=detections, model=model.name, model_version=model.version, infer_ms=0.0)


class Receiver(MemorySink):
    """Takes note of what is delivered, in order."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.taken: list[Sample] = []
        self._more = anyio.Event()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        receipts = await super().send(samples)
        self.taken += samples
        self._more.set()
        return receipts

    async def take(self, count: int) -> list[Sample]:
        """So many samples, once they are there."""
        with fail_after(10):
            while len(self.taken) < count:
                self._more = anyio.Event()
                await self._more.wait()
        return self.taken


class Rig:
    """A node at work, and its clients."""

    def __init__(self, node: Node, http: httpx.AsyncClient, drivers: Sequence[Driver]) -> None:
        self.node = node
        self.http = http
        self.drivers = drivers
        (self.receiver,) = [driver for driver in drivers if isinstance(driver, Receiver)]

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncGenerator[socketio.AsyncClient]:
        """A client as the reference's are."""
        client = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        await client.connect(self.url, socketio_path="/ws/socket.io", wait_timeout=3, **options)
        try:
            yield client
        finally:
            await client.disconnect()


Start = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def anyio_backend() -> str:
    """The server is uvicorn's, which knows asyncio alone."""
    return "asyncio"


def make_model(folder: Path, version: str) -> Model:
    folder.mkdir()
    (folder / "weights").write_text(version)
    told = wire.ModelInformation(
        id=f"uuid of {version}", organization="zoo", project="penguins", version=version, categories=CATEGORIES
    )
    extra = {packages.EXTRA: msgspec.to_builtins(told)}
    return write_package(folder, ModelInfo(name="penguins", version=version, format="null", extra=extra))


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def starting(
        *, versions: Sequence[str] = ("1.0", "1.1"), backend: type[NullBackend] = Finder, **tables: Any
    ) -> AsyncIterator[Rig]:
        store = ModelStore(tmp_path / "data" / "models")
        for version in versions:
            store.activate(store.stage(make_model(tmp_path / f"model-{version}", version).path))
        table = {
            "node": {"name": "test", "data_dir": str(tmp_path / "data")},
            "server": {"port": 0},
            "backend": {"driver": "finder"},
            "platforms": [LOOP],
            "selectors": [{"driver": "uncertain"}],
            "sinks": [{"driver": "receiver"}],
            "outbox": {"min_free": 0},
        } | tables
        drivers: Any = {"backend": {"finder": backend}, "sink": {"receiver": Receiver}}
        plan = resolve(config.parse(table), Registry(drivers))
        plan = msgspec.structs.replace(plan, hooks=Hooks({"learningloop": hooks}))
        node = Node(plan)
        with fail_after(60):
            async with create_task_group() as group:
                url = await group.start(node.run)
                async with httpx.AsyncClient(base_url=url, timeout=20) as http:
                    yield Rig(node, http, plan.drivers())
                group.cancel_scope.cancel()

    return starting
