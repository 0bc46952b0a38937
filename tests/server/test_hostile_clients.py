"""What reaches the server before anybody has shown a token: bytes by hand, over a plain socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from anyio import fail_after
from anyio.abc import SocketStream

from loopcore.hookspecs import Mount
from loopcore.options import Secret
from loopcore.server import patience

from .conftest import Double, Serve

pytestmark = pytest.mark.anyio

HEAD = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@asynccontextmanager
async def connected(client: httpx.AsyncClient) -> AsyncIterator[SocketStream]:
    with fail_after(10):
        async with await anyio.connect_tcp(client.base_url.host, client.base_url.port or 0) as stream:
            yield stream


async def read(stream: SocketStream) -> bytes:
    """Until the server closes."""
    answer = b""
    try:
        async for part in stream:
            answer += part
    except anyio.BrokenResourceError:
        pass
    return answer


async def ask(client: httpx.AsyncClient, *parts: bytes) -> bytes:
    """The status line of the answer; empty if the server hung up without one."""
    async with connected(client) as stream:
        try:
            for part in parts:
                await stream.send(part)
        except anyio.BrokenResourceError:
            pass
        return (await read(stream)).partition(b"\r\n")[0]


async def test_a_head_that_lies_is_4xx(serve: Serve) -> None:
    lies = {
        b"Content-Length: abc\r\n": b"400",
        b"Content-Length: -1\r\n": b"400",
        b"Content-Length: 5\r\nContent-Length: 6\r\n": b"400",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n": b"400",
        b"Content-Length: " + b"9" * 19 + b"\r\n": b"413",
        b"Content-Length: " + b"0" * 5000 + b"5\r\n": b"413",
        b"Host: evil.example\r\n": b"400",
        b"Host: localhost\r\n": b"400",
        b"Origin: http://localhost\r\nOrigin: http://evil.example\r\n": b"403",
        b"Origin: http://127.0.0.1:9\r\n": b"403",
        b"Origin: http://[::1\r\n": b"403",
        b"\0: x\r\n": b"400",
    }
    async with serve() as client:
        assert {lie: (await ask(client, HEAD + lie + b"\r\n")).split()[1] for lie in lies} == lies


@pytest.mark.parametrize("piece", [b"x: y\r\n" * 10_000, b"x" * 60_000])
async def test_a_head_without_end_is_refused_soon(serve: Serve, piece: bytes) -> None:
    async with serve() as client:
        answer = await ask(client, HEAD, *[piece] * 100)
    assert answer in (b"HTTP/1.1 400 Bad Request", b"")


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /health HT",
        HEAD + b"x: ",
        HEAD + b"Content-Length: 10\r\n\r\n12345",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345",
    ],
)
async def test_a_client_that_stands_still_is_hung_up_on(
    serve: Serve, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STILL_S", 0.05)
    async with serve() as client, connected(client) as stream:
        await stream.send(start or b"\r\n")
        await read(stream)


async def test_an_answer_may_take_longer_than_a_request(
    serve: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STILL_S", 0.05)
    double.gate = anyio.Event()
    async with serve() as client, anyio.create_task_group() as group:

        async def open_later() -> None:
            await double.begun.wait()
            await anyio.sleep(0.15)  # not to wait for anything: three times the patience must not matter
            double.gate.set()

        group.start_soon(open_later)
        answer = await client.post("/predict", content=b"x", headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200


async def test_connections_beyond_the_number_are_closed_and_places_come_free(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_CONNECTIONS", 2)
    async with serve() as client, connected(client) as first:
        async with connected(client) as second:
            for stream in (first, second):
                await stream.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 200")
            assert await ask(client, HEAD + b"\r\n") == b""
        with fail_after(5):
            while not await ask(client, HEAD + b"\r\n"):
                await anyio.lowlevel.checkpoint()


async def test_no_spelling_of_a_path_goes_round_the_token(serve: Serve) -> None:
    async def teapot(scope: object, receive: object, send: object) -> None:
        raise AssertionError("a mount was reached without the token")

    paths = [
        b"/detect/..%2fstatus", b"/detect%2f..%2fstatus", b"//status", b"/health/../status", b"/health%00", b"/HEALTH",
        b"/%2e", b"http://localhost/status",
    ]  # fmt: skip
    async with serve([Mount(path="/detect", app=teapot)], token=Secret("t")) as client:
        answers = [await ask(client, HEAD.replace(b"/status", path) + b"\r\n") for path in paths]
    assert [answer.split()[1] for answer in answers] == [b"401"] * len(paths)


async def test_the_clients_word_on_who_it_is_is_not_taken(serve: Serve) -> None:
    seen: list[object] = []

    async def note(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serve([Mount(path="/who", app=note)]) as client:
        await client.get("/who", headers={"X-Forwarded-For": "10.9.8.7"})
    assert seen == ["127.0.0.1"]
