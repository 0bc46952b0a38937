"""One connection over Socket.IO: verified, told to nobody else, and without anything left when the block is."""

from __future__ import annotations

import asyncio
import gc
import logging
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
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener
from engineio.base_client import connected_clients
from loop import Answer, LoopServer, Nonsense, Reset
from loopcore_learningloop import connection, fence
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
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LEAVE_S", 0.1)


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
async def open_connection(
    url: str, ca: Path | None = None, hear: connection.Hear = ignore
) -> AsyncIterator[connection.Connection]:
    with fail_after(20):
        async with connected(url, tls(url, ca), HEADERS, hear) as opened:
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


# A Loop that means ill

OPEN = b'0{"sid":"1","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'
IN = b'40{"sid":"2"}'


@asynccontextmanager
async def polled(*answers: bytes, again: bytes = b"", deaf: bool = False) -> AsyncIterator[str]:
    """A Loop without websockets.

    Args:
        answers: To GET, one after the other.
        again: To every GET after them; by default they are not answered.
        deaf: From the second POST on there is no answer to any.
    """
    left, heard = list(answers), 0

    async def answer(reader: BufferedByteReceiveStream) -> bytes:
        nonlocal heard
        head = await reader.receive_until(b"\r\n\r\n", 10_000)
        if not head.startswith(b"POST"):
            return left.pop(0) if left else again
        await reader.receive_exactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        heard += 1
        return b"" if deaf and heard > 1 else b"ok"

    async def serve(stream: ByteStream) -> None:
        reader = BufferedByteReceiveStream(stream)
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead):
                while body := await answer(reader):
                    await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await anyio.sleep_forever()

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}"


async def test_loop_that_floods_and_does_not_listen_is_left() -> None:
    flood = b"\x1e".join([b'420["begin_training"]'] * 16)
    async with polled(OPEN, IN, again=flood, deaf=True) as url, open_connection(url) as opened:
        with fail_after(5):
            await opened.over.wait()


async def test_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "MESSAGE_BYTES", 1000)
    async with polled(OPEN + b" " * 1000) as url:
        with pytest.raises(RetryableError, match="more than 1000 bytes"):
            async with open_connection(url):
                pass
    async with polled(OPEN, IN, b"6" * 1001) as url, open_connection(url) as opened:
        await opened.over.wait()


MESSAGES = [
    b"4",
    b"42",
    b"42{}",
    b"42[]",
    b"42[{}]",
    b"42" + b"[" * 100_000,
    b'42["x",' + b"9" * 5000 + b"]",
    b"41/elsewhere,",
    b'40/elsewhere,{"sid":[]}',
    b'451-["begin_training",{"_placeholder":true,"num":0}]',
    b"bAAAA",
    b'461-0[{"_placeholder":true,"num":9}]',
    b"430[]",
    b"437[]",
    b"43",
    b"49",
]


@pytest.mark.parametrize("payload", [b"\x1e".join(MESSAGES), b"3\x1e5\x1e9", b"b!!!"], ids=lambda one: repr(one[-9:]))
async def test_messages_without_sense_are_left_and_neither_told_nor_in_the_way(
    payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    untold: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: untold.append(context))
    heard: list[Any] = []

    async def hear(*event: Any) -> None:
        heard.append(event)

    async with polled(OPEN, IN, payload) as url, open_connection(url, hear=hear) as opened:
        with pytest.raises(RetryableError):
            await opened.call("update_trainer", limit_s=0.05)
        with pytest.raises(RetryableError):
            await opened.call("update_trainer", limit_s=0.05)
    del opened
    gc.collect()
    assert untold == heard == []
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.INFO] == []


async def test_namespace_that_nobody_has_asked_for_is_no_obstacle() -> None:
    async with polled(OPEN, b'40/elsewhere,{"sid":"3"}\x1e' + IN) as url, open_connection(url) as opened:
        assert not opened.over.is_set()


@pytest.mark.parametrize("interval", [b"1e400", b"1" + b"0" * 400, b"-1", b"NaN", b"[" * 100_000])
async def test_beat_without_sense_is_an_error_that_can_be_tried_again(
    interval: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.3)
    async with polled(OPEN.replace(b"25000", interval)) as url:
        with pytest.raises(RetryableError):
            async with open_connection(url) as opened:
                await opened.call("update_trainer", limit_s=0.05)


async def test_acknowledgement_that_never_comes_is_forgotten() -> None:
    async with polled(OPEN, IN) as url, open_connection(url) as opened:
        for _ in range(3):
            with suppress(RetryableError):
                await opened.call("update_trainer", limit_s=0.01)
        gc.collect()
        assert sum(isinstance(one, connection._Answer) for one in gc.get_objects()) <= 1


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
