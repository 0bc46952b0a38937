"""What `http` promises of answers that are read piece by piece, of bodies from files, and of the peer's cookies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import anyio
import pytest

from loopcore.errors import AuthError, ConfigError, RejectedError, RemoteError, RetryableError
from loopcore.http import Client, Part, multipart
from loopcore.options import Secret
from loopcore.testing.servers import Application, LoopbackServer, LoseAnswer, Reply, Request, Reset, Stall

pytestmark = pytest.mark.anyio

BODY = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[False, True], ids=["plain", "bulk"])
def bulk(request: pytest.FixtureRequest) -> bool:
    carried: bool = request.param
    return carried


@asynccontextmanager
async def meet(application: Application, **options: Any) -> AsyncGenerator[tuple[LoopbackServer, Client]]:
    async with LoopbackServer(application) as server, Client(server.url, **options) as client:
        yield server, client


def large(request: Request) -> Reply:
    return Reply(body=BODY, headers={"ETag": '"it"', "Content-Type": "application/zip"})


async def test_pieces_are_the_whole_and_headers_have_no_case(bulk: bool) -> None:
    async with meet(large, bulk=bulk, token=Secret("t0k3n")) as (server, client):
        async with client.stream("a%20file?part=1", headers={"Range": "bytes=0-"}) as answer:
            pieces = []
            while piece := await answer.receive():
                pieces.append(piece)
            assert (answer.status, answer.headers["etag"], answer.headers["Etag"]) == (200, '"it"', '"it"')
        (request,) = server.requests
    assert b"".join(pieces) == BODY
    assert len(pieces) > 1
    assert (request.path, request.query) == ("/a file", {"part": "1"})
    assert (request.headers["range"], request.headers["authorization"]) == ("bytes=0-", "Bearer t0k3n")
    assert request.headers["accept-encoding"] == "identity"


async def test_whole_answer_has_a_limit(bulk: bool) -> None:
    async with meet(large, bulk=bulk) as (_, client):
        async with client.stream("it") as answer:
            assert await answer.read(len(BODY)) == BODY
        with pytest.raises(RetryableError, match="more than 1000 bytes"):
            async with client.stream("it") as answer:
                await answer.read(1000)


async def test_stream_that_is_left_early_harms_no_later_one(bulk: bool) -> None:
    async with meet(large, bulk=bulk, connections=1) as (_, client):
        for _ in range(3):
            async with client.stream("it") as answer:
                await answer.receive()
        async with client.stream("it") as answer:
            assert await answer.read(len(BODY)) == BODY


@pytest.mark.parametrize(
    ("status", "error"), [(401, AuthError), (404, RetryableError), (302, RetryableError), (422, RejectedError)]
)
async def test_status_nobody_expects_is_the_same_error_as_ever(
    bulk: bool, status: int, error: type[RemoteError]
) -> None:
    async with meet(lambda _: Reply(status=status, body=b"no \x1b[31mroom"), bulk=bulk) as (_, client):
        with pytest.raises(error, match=rf"GET http://127.*/it answered {status}: no .x1b.31mroom") as caught:
            async with client.stream("it"):
                pass
        assert caught.value.status == status
        async with client.stream("it", expect={status}) as answer:
            assert answer.status == status


async def test_patience_that_a_peer_asks_for_is_handed_on(bulk: bool) -> None:
    async with meet(lambda _: Reply(status=429, headers={"Retry-After": "7"}), bulk=bulk) as (_, client):
        with pytest.raises(RetryableError) as caught:
            async with client.stream("it"):
                pass
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("step", [Reset(received=0), LoseAnswer(), LoseAnswer(sent=300_000)], ids=str)
async def test_stream_that_breaks_means_try_again(bulk: bool, step: Reset | LoseAnswer) -> None:
    async with meet(large, bulk=bulk) as (server, client):
        # An idempotent call may be sent again at once where a kept connection turns out to be dead.
        server.script(step, step)
        with pytest.raises(RetryableError):
            async with client.stream("it") as answer:
                await answer.read(len(BODY))


async def test_stream_that_stalls_is_given_up(bulk: bool) -> None:
    async with meet(large, bulk=bulk, timeout_s=0.1) as (server, client):
        server.script(Stall())
        with anyio.fail_after(5), pytest.raises(RetryableError, match=r"no whole answer within 0\.1 s"):
            async with client.stream("it"):
                pass
        server.script(Stall())
        with anyio.fail_after(5), pytest.raises(RetryableError):
            async with client.stream("it", timeout_s=0.05):
                pass


async def test_failure_of_the_callers_own_is_left_alone(bulk: bool) -> None:
    async with meet(large, bulk=bulk) as (_, client):
        with pytest.raises(OSError, match="disk"):
            async with client.stream("it"):
                raise OSError("the disk is full")


async def test_compressed_answer_that_nobody_asked_for_is_refused(bulk: bool) -> None:
    async with meet(lambda _: Reply(headers={"Content-Encoding": "gzip"}), bulk=bulk) as (_, client):
        with pytest.raises(RetryableError, match="compressed"):
            async with client.stream("it"):
                pass


async def test_form_from_files_arrives_whole_and_can_be_sent_again(bulk: bool, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(BODY)
    (tmp_path / "empty").write_bytes(b"")
    body = multipart(
        [
            Part(name="files", filename='odd "name"\r\nX: 1', content=b"{}", media="application/json"),
            Part(name="files", filename="weights", content=tmp_path / "weights"),
            Part(name="files", filename="empty", content=tmp_path / "empty"),
            Part(name="note", content=b"hello", media="text/plain"),
        ]
    )
    async with meet(lambda _: Reply(), bulk=bulk) as (server, client):
        server.script(Reply(status=503))
        await client.request("PUT", "it", content=body, attempts=2)
        for request in server.requests:
            head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
            parts = list(BytesParser(policy=HTTP).parsebytes(head + request.body).iter_parts())
            assert [part.get_payload(decode=True) for part in parts] == [b"{}", BODY, b"", b"hello"]
            assert [part.get_filename() for part in parts] == ["odd %22name%22%0D%0AX: 1", "weights", "empty", None]
            assert request.headers["content-length"] == str(len(request.body))
        assert len(server.requests) == 2


async def test_file_that_is_gone_or_shrinks_breaks_the_upload_off(bulk: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with pytest.raises(FileNotFoundError):
        multipart([Part(name="files", content=path)])
    path.write_bytes(BODY)
    body = multipart([Part(name="files", content=path)])
    path.write_bytes(BODY[:1000])
    async with meet(lambda _: Reply(), bulk=bulk) as (_, client):
        with pytest.raises(RetryableError):
            await client.request("PUT", content=body)


def session(request: Request) -> Reply:
    if request.path == "/login":
        return Reply(headers={"Set-Cookie": "session=s3ss10n-t0ken; Path=/; HttpOnly"})
    return Reply(status=400, body=b"you are " + request.headers.get("cookie", "nobody").encode())


async def test_cookies_of_the_peer_come_back_to_it_until_forgotten_and_never_show(bulk: bool) -> None:
    async with meet(session, bulk=bulk) as (server, client):
        assert client.cookies == ""
        await client.request("POST", "login")
        assert client.cookies == "session=s3ss10n-t0ken"
        with pytest.raises(RejectedError, match="you are session=…"):
            await client.request("GET", "it")
        with pytest.raises(RejectedError, match="you are session=…"):
            async with client.stream("it"):
                pass
        client.forget_cookies()
        with pytest.raises(RejectedError, match="you are nobody"):
            await client.request("GET", "it")
        with pytest.raises(RejectedError, match="you are nobody"):
            async with client.stream("it"):
                pass
        assert [request.headers.get("cookie") for request in server.requests[1:3]] == ["session=s3ss10n-t0ken"] * 2


async def test_secret_of_a_body_never_shows_and_never_goes_over_plain_http(bulk: bool) -> None:
    password = Secret("k1ll-ngs")
    with pytest.raises(ConfigError, match="unencrypted"):
        Client("http://example.com", secrets=[password])
    async with meet(lambda request: Reply(status=400, body=request.body), bulk=bulk, secrets=[password]) as (_, client):
        with pytest.raises(RejectedError, match=r"password=…"):
            await client.request("POST", data={"password": password.reveal()})
