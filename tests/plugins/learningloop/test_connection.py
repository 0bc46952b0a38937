"""One connection over Socket.IO: verified, told to nobody else, and without anything left when the block is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio import create_task_group, fail_after
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSListener
from engineio.base_client import connected_clients
from loop import Answer, LoopServer, Nonsense, Reset
from loopcore_learningloop import connection
from loopcore_learningloop.connection import connected

from loopcore.errors import RetryableError
from loopcore.http import tls

pytestmark = pytest.mark.anyio

HEADERS = {"organization": "", "project": "", "nodeType": "detector"}


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    yield
    coroutines: list[Any] = [task.get_coro() for task in asyncio.all_tasks()]
    files = [Path(one.cr_code.co_filename) for one in coroutines]
    assert [file for file in files if file.parent.name in {"engineio", "socketio", "aiohttp"}] == []
    assert connected_clients == []


async def ignore(*_: Any) -> None:
    """An event that means nothing."""


@asynccontextmanager
async def open_connection(url: str, ca: Path | None = None) -> AsyncIterator[connection.Connection]:
    with fail_after(20):
        async with connected(url, tls(url, ca), HEADERS, ignore) as opened:
            yield opened


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@asynccontextmanager
async def listening(
    serve: Callable[[ByteStream], Awaitable[None]], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Somebody else's server, for the length of the block; the port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, create_task_group() as tasks:
        tls_listener = TLSListener(listener, context, standard_compatible=False) if context else listener
        tasks.start_soon(tls_listener.serve, serve)
        yield port
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def behind_tls(server: LoopServer, authority: trustme.CA, name: str) -> AsyncIterator[str]:
    """The Loop as others reach it: by https, with a certificate for this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    host, _, port = server.host.rpartition(":")

    async def pipe(source: ByteStream, target: ByteStream, tasks: TaskGroup) -> None:
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            while True:
                await target.send(await source.receive())
        tasks.cancel_scope.cancel()

    async def serve(near: ByteStream) -> None:
        async with near, await anyio.connect_tcp(host, int(port)) as far, create_task_group() as tasks:
            tasks.start_soon(pipe, near, far, tasks)
            tasks.start_soon(pipe, far, near, tasks)

    async with listening(serve, context) as own_port:
        yield f"https://127.0.0.1:{own_port}"


async def test_certificate_of_a_named_authority_is_trusted(loop: LoopServer, authority: trustme.CA, ca: Path) -> None:
    async with behind_tls(loop, authority, "127.0.0.1") as url, open_connection(url, ca):
        await loop.connections.wait(1)


async def test_certificate_of_another_host_is_refused(loop: LoopServer, authority: trustme.CA, ca: Path) -> None:
    async with behind_tls(loop, authority, "elsewhere.example") as url:
        with pytest.raises(RetryableError, match=r"(?i)certificate|mismatch"):
            async with open_connection(url, ca):
                pass
    assert len(loop.connections) == 0


async def test_certificate_of_an_unknown_authority_is_refused(loop: LoopServer, authority: trustme.CA) -> None:
    async with behind_tls(loop, authority, "127.0.0.1") as url:
        with pytest.raises(RetryableError, match=r"(?i)certificate"):
            async with open_connection(url):
                pass


async def test_cookie_follows_no_redirect(loop: LoopServer) -> None:
    loop.faults.set("socket", Answer(307, {"location": f"{loop.url}/api/status"}))
    with pytest.raises(RetryableError, match="elsewhere"):
        async with open_connection(loop.url):
            pass
    assert "status" not in [call.name for call in loop.calls]


async def test_refusal_is_told_in_the_loops_words(loop: LoopServer) -> None:
    with fail_after(20), pytest.raises(RetryableError, match="log in first"):
        async with connected(loop.url, tls(loop.url, None), {"nodeType": "trainer"}, ignore):
            pass


NONSENSE = [
    b"",
    b"0",
    b"0[]",
    b"0{}",
    b'0{"sid":1,"upgrades":null,"pingInterval":"x","pingTimeout":[]}',
    b"1",
    b"2probe",
    b"\xff",
    b"0" * 200,
    b"\x1e\x1e\x1e",
]


@pytest.mark.parametrize("fault", [*map(Nonsense, NONSENSE), Answer(404), Reset()])
async def test_handshake_without_sense_is_an_error_that_can_be_tried_again(loop: LoopServer, fault: Any) -> None:
    loop.faults.set("socket", fault)
    with pytest.raises(RetryableError):
        async with open_connection(loop.url):
            pass


async def test_nobody_there_is_an_error_that_can_be_tried_again(loop: LoopServer) -> None:
    async with loop.down():
        with pytest.raises(RetryableError, match="did not open"):
            async with open_connection(loop.url):
                pass


async def test_handshake_has_a_limit(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.1)

    async def stall(stream: ByteStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with listening(stall) as port:
        with pytest.raises(RetryableError, match="did not open within"):
            async with open_connection(f"http://127.0.0.1:{port}"):
                pass


async def test_end_of_the_loop_ends_the_connection(loop: LoopServer) -> None:
    async with open_connection(loop.url) as opened:
        await loop.connections.wait(1)
        async with loop.down():
            await opened.over.wait()
        with pytest.raises(RetryableError, match="has ended"):
            await opened.call("update_detector", limit_s=1)


async def test_base_path_of_the_loop_counts(loop: LoopServer) -> None:
    with pytest.raises(RetryableError, match="404"):
        async with open_connection(f"{loop.url}/below"):
            pass
    await loop.calls.until(lambda call: call.path == "/below/ws/socket.io/")
    assert len(loop.calls) == 1
