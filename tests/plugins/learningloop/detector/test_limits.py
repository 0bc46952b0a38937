"""What Socket.IO clients may not do to a node (S19): bytes, events, clients and time are bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from io import BytesIO
from typing import Any

import aiohttp
import anyio
import pytest
import socketio
from anyio import create_task_group, fail_after
from loopcore_learningloop.detector import limits, sockets
from loopcore_learningloop.detector.events import Events
from loopcore_learningloop.detector.limits import Load
from loopcore_learningloop.detector.sockets import PATH, Sockets

from loopcore.config import ServerTable
from loopcore.hookspecs import Mount
from loopcore.options import Secret
from loopcore.server import application, listen, patience

pytestmark = pytest.mark.anyio


class Gated(Events):
    """Answers `detect` and `slow` when the gate is open, and all else at once."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.cancelled = anyio.Event()
        self.gate = anyio.Event()
        self._more = anyio.Event()

    async def answer(self, event: str, *payload: Any) -> dict[str, Any]:
        self.begun.append(payload[0] if payload else None)
        self._more.set()
        if event in ("detect", "slow"):
            try:
                await self.gate.wait()
            except BaseException:
                self.cancelled.set()
                raise
        return {"size": len(payload[0]) if payload else 0}

    async def until_begun(self, count: int) -> None:
        while len(self.begun) < count:
            self._more = anyio.Event()
            await self._more.wait()


Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def events() -> Gated:
    return Gated()


@pytest.fixture
def serve(events: Gated) -> Serve:
    @asynccontextmanager
    async def serving(load: Load | None = None, **keys: Any) -> AsyncIterator[str]:
        app = Sockets(events, load)
        mounts = [Mount(path=PATH, app=app, run=app.run)]
        listener = listen("127.0.0.1", 0)
        whole = application(None, ServerTable(port=0, **keys), mounts, is_ready=lambda: True)  # type: ignore[arg-type]
        with fail_after(30):
            async with create_task_group() as group:
                await group.start(listener.serve, whole, mounts)
                yield listener.url
                group.cancel_scope.cancel()

    return serving


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[socketio.AsyncClient]:
    async with aiohttp.ClientSession() as http:  # the library does not close its own when it is refused
        client = socketio.AsyncClient(reconnection=False, handle_sigint=False, http_session=http)
        await client.connect(url, socketio_path=PATH, **options)
        try:
            yield client
        finally:
            await client.disconnect()


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client that has said hello, and speaks the protocol itself."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}{PATH}/?EIO=4&transport=websocket", max_msg_size=0) as socket,
    ):
        await socket.receive_str()
        await socket.send_str("40")
        await socket.receive_str()
        yield socket


async def ended(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Until the server closes."""
    while (await socket.receive()).type not in (
        aiohttp.WSMsgType.CLOSED,
        aiohttp.WSMsgType.CLOSE,
        aiohttp.WSMsgType.ERROR,
    ):
        pass


async def test_a_picture_of_4k_as_an_array_passes(serve: Serve, events: Gated) -> None:
    async with serve() as url, connected(url) as client:
        assert await client.call("upload", bytes(3840 * 2160 * 3), timeout=20) == {"size": 3840 * 2160 * 3}


async def test_a_client_that_only_polls_is_served(serve: Serve, events: Gated) -> None:
    async with serve() as url, connected(url, transports=["polling"]) as client:
        for size in (10, 70_000, 700_000):
            assert await client.call("upload", bytes(size), timeout=20) == {"size": size}


async def test_a_token_is_asked_for_before_a_session_begins(serve: Serve, events: Gated) -> None:
    async with serve(token=Secret("open sesame")) as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for transport in ("polling", "websocket"):
                with pytest.raises(socketio.exceptions.ConnectionError):
                    async with connected(url, transports=[transport], headers=headers):
                        pass
        async with connected(url, headers={"Authorization": "Bearer open sesame"}) as client:
            assert await client.call("about", timeout=20) == {"size": 0}


async def test_a_message_beyond_the_largest_ends_the_connection(serve: Serve, events: Gated) -> None:
    async with serve() as url, by_hand(url) as socket:
        with suppress(ConnectionError):  # the server does not wait for the end of it
            await socket.send_bytes(bytes(sockets.MESSAGE_BYTES + 1))
        await ended(socket)
    assert not events.begun


async def test_events_beyond_the_number_wait_and_none_is_lost(serve: Serve, events: Gated) -> None:
    async with serve() as url, by_hand(url) as socket:
        for number in range(20):
            await socket.send_str(f'42{number}["slow",[]]')
        await events.until_begun(limits.MAX_EVENTS)
        async with connected(url) as other:
            assert await other.call("about", timeout=20) == {"size": 0}  # by now more of the first would have begun
        assert len(events.begun) == limits.MAX_EVENTS + 1
        events.gate.set()
        acks = {(await socket.receive_str()).partition("[")[0] for _ in range(20)}
    assert acks == {f"43{number}" for number in range(20)}


async def test_who_sends_more_than_all_together_may_hold_is_cut_off(serve: Serve, events: Gated) -> None:
    load = Load(limit=1_000_000)
    async with serve(load) as url, connected(url) as good:
        async with by_hand(url) as socket:
            for number in range(4):
                await socket.send_str(f'451-{number}["slow",{{"_placeholder":true,"num":0}}]')
                await socket.send_bytes(bytes(300_000))
            await ended(socket)
        events.gate.set()
        assert await good.call("upload", bytes(300_000), timeout=20) == {"size": 300_000}
        while load.pending:
            await anyio.lowlevel.checkpoint()
    assert len(events.begun) == 4


async def test_pictures_of_an_event_that_never_comes_whole_are_counted_too(serve: Serve, events: Gated) -> None:
    load = Load(limit=1_000_000)
    async with serve(load) as url:
        async with by_hand(url) as socket:
            await socket.send_str('45900-["upload",{"_placeholder":true,"num":0}]')
            with suppress(ConnectionError):
                for _ in range(10):
                    await socket.send_bytes(bytes(300_000))
            await ended(socket)
        while load.pending:
            await anyio.lowlevel.checkpoint()
    assert not events.begun


async def test_a_text_has_an_end_whatever_the_transport(serve: Serve, events: Gated) -> None:
    text = '42["upload","' + "x" * sockets.MAX_TEXT + '"]'
    async with serve() as url:
        async with by_hand(url) as socket:
            await socket.send_str(text)
            await ended(socket)
        async with connected(url, transports=["polling"]) as client, aiohttp.ClientSession() as session:
            poll = f"{url}{PATH}/?EIO=4&transport=polling&sid={client.eio.sid}"
            async with session.post(poll, data=BytesIO(text.encode())) as answer:
                assert answer.status == 503
            assert await client.call("upload", "x", timeout=20) == {"size": 1}
    assert events.begun == ["x"]


@pytest.mark.parametrize(
    "packet",
    [
        "45" + "9" * 9 + '-["upload"]',
        '451001-["upload"]',
        "42" + "[" * 100_000,
        "42" + json.dumps({"upload": 1}),
        "42[]", '42[null]', "42", "4", "44", "47", "49", "x", '451-["upload",{"_placeholder":true,"num":7}]',
        "42" + "1" * 200 + '["upload"]',
    ],
)  # fmt: skip
async def test_nonsense_harms_nobody_else(serve: Serve, events: Gated, packet: str) -> None:
    async with serve() as url, connected(url) as good, by_hand(url) as socket:
        await socket.send_str(packet)
        await socket.send_bytes(b"attachment")
        assert await good.call("about", timeout=20) == {"size": 0}


async def test_clients_beyond_the_number_are_refused_and_places_come_free(
    serve: Serve, events: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_CLIENTS", 2)
    async with serve() as url:
        async with connected(url), connected(url):
            for transport in ("polling", "websocket"):
                with pytest.raises(socketio.exceptions.ConnectionError):
                    async with connected(url, transports=[transport]):
                        pass
        async with connected(url) as client:
            assert await client.call("about", timeout=20) == {"size": 0}


async def test_a_client_that_does_not_take_its_answers_is_cut_off(
    serve: Serve, events: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STILL_S", 0.1)
    monkeypatch.setattr(patience, "STILL_S", 0.1)
    events.answer = lambda event, *payload: _long_answer()  # type: ignore[method-assign, assignment, misc]
    head = (
        f"GET {PATH}/?EIO=4&transport=websocket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
    )
    async with serve() as url, await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        await stream.send(head.encode())
        assert (await stream.receive()).startswith(b"HTTP/1.1 101")
        await stream.send(frame(b"40"))
        with suppress(anyio.BrokenResourceError):
            while True:  # each asks for an answer of a megabyte, and none is read
                await stream.send(frame(b'421["big"]'))


def frame(text: bytes) -> bytes:
    """A short text as a client sends it, masked with zeros."""
    return bytes([0x81, 0x80 + len(text), 0, 0, 0, 0]) + text


async def _long_answer() -> str:
    return "x" * 1_000_000


async def test_a_client_that_has_gone_is_looked_for_no_longer_but_its_uploads_are_kept(
    serve: Serve, events: Gated
) -> None:
    async with serve() as url:
        async with by_hand(url) as socket:
            await socket.send_str('421["detect",[]]')
            await events.until_begun(1)
        await events.cancelled.wait()
        events.cancelled = anyio.Event()
        async with by_hand(url) as socket:
            await socket.send_str('421["slow",[]]')
            await events.until_begun(2)
        async with connected(url) as other:
            await other.call("about", timeout=20)
        assert not events.cancelled.is_set()
        events.gate.set()


async def test_what_the_library_has_started_ends_with_the_server(serve: Serve, events: Gated) -> None:
    import asyncio

    before = asyncio.all_tasks()
    async with serve() as url, by_hand(url) as socket:
        await socket.send_str('421["slow",[]]')
        await events.until_begun(1)
    assert asyncio.all_tasks() == before
