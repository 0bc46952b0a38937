"""What plugins mount: what goes on beside their requests, and their bodies and clients."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group, fail_after

from loopcore.config import ServerTable
from loopcore.errors import PluginError
from loopcore.hookspecs import Mount, until_gone
from loopcore.server import application, listen

from .conftest import Double, Serve

pytestmark = pytest.mark.anyio


async def echo(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


class Served:
    """A server with these mounts, by hand: `serve` of the conftest does not run what goes on beside."""

    def __init__(self, *mounts: Mount) -> None:
        self.mounts = mounts
        table = ServerTable(port=0)
        self.listener = listen(table.host, table.port)
        self.app = application(Double(), table, mounts, is_ready=lambda: True)  # type: ignore[arg-type]

    async def run(self, *, task_status: Any) -> None:
        with self.listener.socket:
            await self.listener.serve(self.app, self.mounts, task_status=task_status)


async def test_what_goes_on_beside_begins_before_and_ends_after_the_requests() -> None:
    order: list[str] = []
    answering = anyio.Event()

    async def run(*, task_status: Any) -> None:
        order.append("begins")
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            order.append("ends")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answering.set()
        try:
            await anyio.sleep_forever()
        finally:
            order.append("request")

    served = Served(Mount(path="/a", app=app, run=run))
    with fail_after(10):
        async with httpx.AsyncClient(base_url=served.listener.url, timeout=10) as client, create_task_group() as asking:
            async with create_task_group() as serving:
                await serving.start(served.run)
                order.append("serves")
                asking.start_soon(client.get, "/a")
                await answering.wait()
                serving.cancel_scope.cancel()
            assert order == ["begins", "serves", "request", "ends"]


async def test_what_cannot_begin_ends_the_start() -> None:
    async def run(*, task_status: Any) -> None:
        raise ZeroDivisionError

    served = Served(Mount(path="/a", app=echo, run=run))
    with fail_after(10), pytest.RaisesGroup(pytest.RaisesExc(PluginError, match="/a needs"), flatten_subgroups=True):
        async with create_task_group() as serving:
            await serving.start(served.run)


async def test_what_fails_later_is_logged_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    fail, failed = anyio.Event(), anyio.Event()

    async def run(*, task_status: Any) -> None:
        task_status.started()
        await fail.wait()
        failed.set()
        raise ZeroDivisionError

    served = Served(Mount(path="/a", app=echo, run=run))
    with fail_after(10):
        async with httpx.AsyncClient(base_url=served.listener.url) as client, create_task_group() as serving:
            await serving.start(served.run)
            fail.set()
            await failed.wait()
            assert (await client.post("/a", content=b"abc")).text == "3"
            serving.cancel_scope.cancel()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "What went on beside a plugin's requests has failed path=/a"
    ]


@pytest.mark.parametrize(("size", "status"), [(900, 200), (1100, 413)])
async def test_a_body_for_a_mount_has_an_end_whether_or_not_it_says_its_size(
    serve: Serve, size: int, status: int
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // 100):
            yield b"x" * 100

    async with serve([Mount(path="/a", app=echo)], max_body=1000) as client:
        assert (await client.post("/a", content=b"x" * size)).status_code == status
        assert (await client.post("/a", content=pieces())).status_code == status


async def test_a_block_ends_when_its_client_goes_away_and_only_that_block(serve: Serve) -> None:
    entered, ended, gate, after = anyio.Event(), anyio.Event(), anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/a/whole":
            entered.set()
            await gate.wait()
            after.set()
            return
        try:
            with until_gone(scope):
                entered.set()
                await anyio.sleep_forever()
        finally:
            ended.set()

    async def leave(path: str) -> None:
        nonlocal entered
        entered = anyio.Event()
        async with create_task_group() as group:
            group.start_soon(client.get, path)
            await entered.wait()
            group.cancel_scope.cancel()

    with fail_after(10):
        async with serve([Mount(path="/a", app=app)]) as client:
            await leave("/a")
            await ended.wait()
            await leave("/a/whole")
            assert (await client.get("/health")).status_code == 200
            gate.set()
            await after.wait()


async def test_under_another_server_a_block_is_as_any_other() -> None:
    with until_gone({"type": "http"}):
        await anyio.lowlevel.checkpoint()
