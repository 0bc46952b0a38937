"""What `http` promises of every exchange with a peer."""

from __future__ import annotations

import gzip
import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from loopcore.errors import AuthError, ConfigError, RejectedError, RemoteError, RetryableError
from loopcore.http import Client, redacted, retry_after
from loopcore.options import Secret
from loopcore.testing.servers import Application, LoopbackServer, LoseAnswer, Reply, Request, Reset, Stall

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry-s3cret"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[False, True], ids=["plain", "bulk"])
def bulk(request: pytest.FixtureRequest) -> bool:
    carried: bool = request.param
    return carried


@asynccontextmanager
async def meet(
    application: Application, *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncGenerator[tuple[LoopbackServer, Client]]:
    async with LoopbackServer(application, tls=tls) as server, Client(server.url, **options) as client:
        yield server, client


def echo(request: Request) -> Reply:
    return Reply(
        body=request.body or request.path.encode(), headers={"x-auth": request.headers.get("authorization", "")}
    )


async def test_answer_of_a_good_exchange_comes_back_whole(bulk: bool) -> None:
    async with meet(echo, token=Secret(CANARY), bulk=bulk) as (server, client):
        response = await client.request("POST", "samples", content=b"body")
        assert (response.content, server.requests[0].path) == (b"body", "/samples")
        assert response.headers["x-auth"] == f"Bearer {CANARY}"


async def test_body_larger_than_a_megabyte_arrives_whole(bulk: bool) -> None:
    body = bytes(range(256)) * 5000
    async with meet(lambda request: Reply(), bulk=bulk) as (server, client):
        await client.request("POST", content=body)
        assert server.requests[0].body == body
        assert server.requests[0].headers["content-length"] == str(len(body))


async def test_request_without_a_path_goes_to_the_url_itself_and_others_below_it() -> None:
    async with LoopbackServer(echo) as server:
        async with Client(f"{server.url}/in?site=3") as client:
            await client.request("POST")
            await client.request("GET", "/status?full=1")
        assert [(seen.path, seen.query) for seen in server.requests] == [
            ("/in", {"site": "3"}),
            ("/in/status", {"full": "1"}),
        ]


@pytest.mark.parametrize(
    ("status", "error"),
    [(status, AuthError) for status in (401, 403, 407)]
    + [(status, RetryableError) for status in (301, 404, 405, 408, 421, 425, 429, 500, 502, 503, 507)]
    + [(status, RejectedError) for status in (400, 409, 410, 413, 415, 422)],
)
async def test_every_status_has_its_place_in_the_error_tree(status: int, error: type[RemoteError]) -> None:
    async with meet(lambda request: Reply(status=status, body=b"no \x1b[31mroom\n")) as (_, client):
        with pytest.raises(RemoteError) as caught:
            await client.request("POST", content=b"x")
    assert type(caught.value) is error
    assert caught.value.status == status
    assert "no \\x1b[31mroom" in str(caught.value)


async def test_status_that_the_caller_expects_is_no_error() -> None:
    async with meet(lambda request: Reply(status=409)) as (_, client):
        assert (await client.request("POST", expect={409})).status_code == 409


async def test_retry_after_of_the_peer_is_handed_on() -> None:
    async with meet(lambda request: Reply(status=429, headers={"Retry-After": "7"})) as (_, client):
        with pytest.raises(RetryableError) as caught:
            await client.request("POST")
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("12", 12),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
        ("999999999", 3600),
        ("9" * 400, 3600),
        ("-5", None),
        ("nan", None),
        ("soon", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_and_has_a_ceiling(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=datetime(2015, 10, 21, 7, 28, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("step", [Reset(), LoseAnswer(), LoseAnswer(sent=40)], ids=["reset", "lost", "broken off"])
async def test_connection_that_breaks_means_try_again(bulk: bool, step: Reset | LoseAnswer) -> None:
    async with meet(lambda request: Reply(body=b"y" * 1000), bulk=bulk) as (server, client):
        server.script(step)
        with pytest.raises(RetryableError):
            await client.request("POST", content=b"x" * 100_000)
        assert (await client.request("POST", content=b"x")).content == b"y" * 1000


async def test_peer_that_stalls_is_given_up_in_time(bulk: bool) -> None:
    async with meet(echo, bulk=bulk, timeout_s=0.05) as (server, client):
        server.script(Stall())
        with anyio.fail_after(5), pytest.raises(RetryableError, match=r"no answer within 0\.05 s"):
            await client.request("POST", content=b"x")


async def test_nobody_listening_and_no_such_host_mean_try_again(bulk: bool) -> None:
    async with LoopbackServer(echo) as server, server.down(), Client(server.url, bulk=bulk) as client:
        with pytest.raises(RetryableError):
            await client.request("GET")
    async with Client("http://nowhere.invalid", bulk=bulk) as client:
        with pytest.raises(RetryableError, match=r"nowhere\.invalid"):
            await client.request("GET")


async def test_answer_that_never_ends_is_broken_off(bulk: bool) -> None:
    async with meet(lambda request: Reply(body=b"y" * 200_000), bulk=bulk) as (_, client):
        with pytest.raises(RetryableError, match="more than 1000 bytes"):
            await client.request("GET", limit=1000)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(status=429, headers={"Retry-After": "9" * 5000}),
        Reply(status=503, headers={"Content-Type": "text/plain; charset=undefined"}, body=b"\xff\xfe"),
        Reply(status=503, headers={"Content-Type": "text/plain; charset=punycode"}, body=b"\xff\xfe"),
        Reply(status=307, headers={"Location": "http://[::1"}),
        Reply(status=307, headers={"Location": "gopher://elsewhere/"}),
        Reply(status=307, headers={"Location": ""}),
        Reply(status=200, headers={"Content-Encoding": "gzip"}, body=b"no gzip"),
        Reply(status=200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(10_000_000))),
    ],
)
async def test_nonsense_of_the_peer_means_try_again(bulk: bool, answer: Reply) -> None:
    async with meet(lambda request: answer, bulk=bulk) as (_, client):
        with pytest.raises(RetryableError):
            await client.request("POST", content=b"x")


async def test_redirects_stay_with_the_peer_and_take_no_secret_elsewhere(bulk: bool) -> None:
    async with LoopbackServer(echo) as other, meet(echo, token=Secret(CANARY), bulk=bulk) as (server, client):
        server.script(Reply(status=307, headers={"Location": "/there"}))
        assert (await client.request("POST", content=b"again")).content == b"again"
        server.script(Reply(status=307, headers={"Location": f"{other.url}/?t=1"}))
        with pytest.raises(RetryableError, match="is the URL right"):
            await client.request("POST", content=b"again")
        server.script(Reply(status=302, headers={"Location": "/there"}))
        with pytest.raises(RetryableError):
            await client.request("POST", content=b"would become a GET")
    assert other.requests == []


async def test_redirects_in_a_circle_end(bulk: bool) -> None:
    async with meet(lambda request: Reply(status=308, headers={"Location": "/"}), bulk=bulk) as (server, client):
        with pytest.raises(RetryableError):
            await client.request("POST", content=b"x")
        assert len(server.requests) == 6


async def test_attempts_repeat_what_may_be_repeated() -> None:
    async with meet(echo) as (server, client):
        server.script(Reply(status=503))
        assert (await client.request("GET", "it", attempts=2)).content == b"/it"
        server.script(Reply(status=400))
        with pytest.raises(RejectedError):
            await client.request("GET", attempts=3)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def certified(authority: trustme.CA, host: str, not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, not_after=not_after).configure_cert(context)
    return context


async def test_named_certificates_are_trusted_over_tls(bulk: bool, authority: trustme.CA, ca_file: Path) -> None:
    async with meet(echo, tls=certified(authority, "127.0.0.1"), ca=ca_file, bulk=bulk) as (_, client):
        assert (await client.request("POST", content=b"x")).content == b"x"


@pytest.mark.parametrize(
    "flaw",
    [
        lambda authority: certified(authority, "elsewhere.example"),
        lambda authority: certified(authority, "127.0.0.1", datetime.now(UTC) - timedelta(days=1)),
        lambda authority: certified(trustme.CA(), "127.0.0.1"),
    ],
    ids=["wrong host", "expired", "unknown authority"],
)
async def test_certificate_that_does_not_fit_means_nothing_is_sent(
    bulk: bool, authority: trustme.CA, ca_file: Path, flaw: Callable[[trustme.CA], ssl.SSLContext]
) -> None:
    async with meet(echo, tls=flaw(authority), ca=ca_file, insecure=True, bulk=bulk) as (server, client):
        with pytest.raises(RetryableError, match=r"(?i)certificate"):
            await client.request("POST", content=b"x")
        assert server.requests == []


async def test_certificates_that_cannot_be_read_are_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        async with Client("https://127.0.0.1", ca=tmp_path / "absent.pem"):
            pass


def test_secret_over_plain_http_needs_loopback_or_consent() -> None:
    for headers in ({"X-Mine": Secret(CANARY)}, {"Authorization": CANARY}):
        with pytest.raises(ConfigError, match="unencrypted") as caught:
            Client("http://example.com", headers=headers)
        assert CANARY not in str(caught.value)
    with pytest.raises(ConfigError, match="unencrypted"):
        Client("http://127.0.0.1.example.com", token=Secret(CANARY))
    Client("http://example.com", headers={"X-Site": "north"})
    Client("http://example.com", token=Secret(CANARY), insecure=True)
    for host in ("localhost", "127.0.0.9", "[::1]"):
        Client(f"http://{host}:8000", token=Secret(CANARY))


@pytest.mark.parametrize(
    "url", ["", "example.com", "ftp://example.com", "http://", "http://a:b", f"https://u:{CANARY}@h"]
)
def test_url_that_is_none_or_holds_credentials_is_refused_without_showing_them(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(url)
    assert CANARY not in str(caught.value)


def test_header_that_would_split_the_request_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Client("https://example.com", headers={"X-Key": Secret(f"{CANARY}\r\nX-More: 1")})
    assert CANARY not in str(caught.value)


async def test_secrets_never_show_in_errors_or_logs(bulk: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen = []

    def parrot(request: Request) -> Reply:
        return Reply(status=400, body=f"bad {request.headers['authorization']} {request.headers['x-mine']}".encode())

    async with meet(parrot, token=Secret(CANARY), headers={"X-Mine": Secret(f"{CANARY}2")}, bulk=bulk) as (
        server,
        client,
    ):
        with pytest.raises(RejectedError, match="bad … …") as caught:
            await client.request("POST", params={"q": CANARY}, content=b"x")
        seen.append(str(caught.value))
        server.script(Reset())
        with pytest.raises(RetryableError) as broken:
            await client.request("POST", params={"q": CANARY}, content=b"x")
        seen.append(str(broken.value))
    assert CANARY not in "".join(seen)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("loopcore")]
    assert CANARY not in "".join(ours)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:1/a/b?key=1", "https://host:1/a/b?…"),
        ("https://me:p/w@host", "https://host"),
        ("//me@host/x", "//host/x"),
        ("/only/a/path", "/only/a/path"),
    ],
)
def test_shown_urls_have_neither_credentials_nor_query(url: str, shown: str) -> None:
    assert redacted(url) == shown
