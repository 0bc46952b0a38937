"""Websocket messages that do not come whole: bytes by hand."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio import fail_after
from anyio.abc import SocketStream

from loopcore.hookspecs import Mount
from loopcore.server import messages, patience

from .conftest import Serve

pytestmark = pytest.mark.anyio

TEXT, BINARY, MORE, PING = 0x1, 0x2, 0x0, 0x9


async def sizes(scope: Any, receive: Any, send: Any) -> None:
    """Answers each message with its size."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": str(len(message.get("bytes") or message["text"]))})


MOUNT = Mount(path="/ws", app=sizes)


@asynccontextmanager
async def upgraded(client: httpx.AsyncClient) -> AsyncIterator[SocketStream]:
    head = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
    )
    with fail_after(10):
        async with await anyio.connect_tcp(client.base_url.host, client.base_url.port or 0) as stream:
            await stream.send(head.encode())
            assert (await stream.receive()).startswith(b"HTTP/1.1 101")
            yield stream


def frame(kind: int, size: int, *, last: bool = True) -> bytes:
    """A frame's head, masked with zeros."""
    return bytes([kind | (0x80 if last else 0), 0x80 | 127]) + struct.pack(">Q", size) + bytes(4)


async def closed(stream: SocketStream) -> None:
    try:
        while True:
            await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        pass


async def send_until_closed(stream: SocketStream, piece: bytes) -> None:
    try:
        while True:
            await stream.send(piece)
    except anyio.BrokenResourceError:
        pass


async def test_messages_come_whole_or_in_pieces_with_pings_between(serve: Serve) -> None:
    async with serve([MOUNT]) as client, upgraded(client) as stream:
        await stream.send(frame(BINARY, 5) + b"12345")
        assert (await stream.receive())[2:] == b"5"
        await stream.send(frame(TEXT, 2, last=False) + b"12" + frame(PING, 0) + frame(MORE, 3) + b"345")
        answer = b""
        while not answer.endswith(b"\x81\x015"):
            answer += await stream.receive()
    assert messages.PatientSocket.held.total == 0


async def test_a_message_that_stands_still_is_hung_up_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STILL_S", 0.05)
    for start in (frame(BINARY, 1000) + b"x", frame(BINARY, 3, last=False) + b"123", b"\x82"):
        async with serve([MOUNT]) as client, upgraded(client) as stream:
            await stream.send(start)
            await closed(stream)
    assert messages.PatientSocket.held.total == 0


async def test_a_client_that_says_nothing_between_messages_may_stay(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STILL_S", 0.02)
    async with serve([MOUNT]) as client, upgraded(client) as stream:
        await anyio.sleep(0.1)  # not to wait for anything: five times the patience must not matter
        await stream.send(frame(BINARY, 1) + b"1")
        assert (await stream.receive())[2:] == b"1"


@pytest.mark.parametrize("whole", [True, False])
async def test_unfinished_messages_of_all_together_have_a_bound(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(messages.PatientSocket, "held", messages.Held(limit=1_000_000))
    start = frame(BINARY, 10_000_000) if whole else frame(BINARY, 1, last=False) + b"x"
    piece = bytes(100_000) if whole else frame(MORE, 100_000, last=False) + bytes(100_000)
    async with serve([MOUNT]) as client, upgraded(client) as first, upgraded(client) as second:
        await first.send(start + piece * 4)
        await second.send(start)
        await send_until_closed(second, piece)
        async with upgraded(client) as third:
            await third.send(frame(BINARY, 1) + b"1")
            assert (await third.receive())[2:] == b"1"
    assert messages.PatientSocket.held.total == 0


async def test_a_message_in_very_many_pieces_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_PIECES", 100)
    async with serve([MOUNT]) as client, upgraded(client) as stream:
        await stream.send(frame(BINARY, 1, last=False) + b"x")
        await send_until_closed(stream, (frame(MORE, 1, last=False) + b"x") * 50)


async def test_a_message_beyond_the_largest_is_refused_by_its_head(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve([MOUNT]) as client, upgraded(client) as stream:
        await stream.send(frame(BINARY, messages.MESSAGE_BYTES + 1))
        assert struct.unpack(">H", (await stream.receive())[2:4]) == (1009,)
