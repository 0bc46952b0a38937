"""A real server on the loopback, in front of a service that does what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group

from loopcore.config import ServerTable
from loopcore.hookspecs import Mount
from loopcore.server import application, listen
from loopcore.types import Answer, Box, Image, Keep, Prediction


@pytest.fixture
def anyio_backend() -> str:
    """The server is uvicorn's, which knows asyncio alone."""
    return "asyncio"


class Double:
    """Stands for the pipeline: notes what it was asked, and answers, fails or waits as told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.ready = True
        self.begun = anyio.Event()
        self.gate = anyio.Event()
        self.gate.set()
        self.cancelled = anyio.Event()

    async def predict(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        keep: Keep = Keep.SELECTED,
    ) -> Answer:
        self.asked.append(
            {"image": image, "camera": camera, "captured": captured, "tags": tags, "source": source, "keep": keep}
        )
        self.begun.set()
        try:
            await self.gate.wait()
        except BaseException:
            self.cancelled.set()
            raise
        if self.failure:
            raise self.failure
        box = Box(label="cup", confidence=0.5, x=1, y=2, width=3, height=4)
        return Answer(prediction=Prediction(detections=(box,)), width=640, height=480, sample_id="ab", reasons=("why",))

    async def status(self) -> dict[str, Any]:
        return {
            "node": "test",
            "ready": self.ready,
            "uptime_s": 1.5,
            "model": {"name": 'a "model"', "version": "1"},
            "pipeline": {
                "frames": 12_345_678, "kept": 3, "unwanted": 1, "failed": {"BusyError": 2}, "waiting": 0, "running": 0,
            },
            "outbox": {"count": 2, "bytes": 1000, "drops": {"max_age": 1}},
            "sinks": {"folder": {"waiting": 2, "delivered": 1, "rejected": 0}},
        }  # fmt: skip


Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def serve(double: Double) -> Serve:
    @asynccontextmanager
    async def serving(mounts: Sequence[Mount] = (), **keys: Any) -> AsyncIterator[httpx.AsyncClient]:
        table = ServerTable(port=0, **keys)
        listener = listen(table.host, table.port)
        app = application(double, table, mounts, is_ready=lambda: double.ready)  # type: ignore[arg-type]
        async with create_task_group() as group, httpx.AsyncClient(base_url=listener.url, timeout=10) as client:
            await group.start(listener.serve, app)
            yield client
            await client.aclose()
            group.cancel_scope.cancel()

    return serving
