"""What every call to a Loop does about logging in, and about a Loop that wants patience."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from loop import Answer, LoopServer, Nonsense, Reset, Stall, too_many
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.options import LoopOptions

from loopcore.errors import AuthError, ConfigError, RejectedError, RemoteError, RetryableError
from loopcore.options import Duration, Secret
from loopcore.testing.servers import LoopbackServer, Reply, Request

pytestmark = pytest.mark.anyio

MODELS = "zauberzeug/projects/demo/models"


@asynccontextmanager
async def reach(server: LoopServer, *, known: bool = True, tries: int = 4, **options: Any) -> AsyncGenerator[Loop]:
    account = {"username": "ranger", "password": Secret("krill")} if known else {}
    async with Loop(LoopOptions(url=server.url, **(account | options)), tries=tries) as client:
        yield client


def counted(server: LoopServer) -> Counter[str]:
    return Counter(call.name for call in server.arrivals)


async def test_login_happens_with_the_first_call_and_once(loop: LoopServer) -> None:
    async with reach(loop) as client:
        assert len(loop.arrivals) == 0
        for _ in range(3):
            await client.call("GET", MODELS)
        assert list(loop.logins) == ["ranger"]
        assert counted(loop) == {"login": 1, "models": 3}


async def test_many_first_calls_share_one_login(loop: LoopServer) -> None:
    async with reach(loop) as client, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(client.call, "GET", MODELS)
    assert counted(loop) == {"login": 1, "models": 10}


async def test_many_calls_that_meet_the_end_of_a_session_share_one_login(loop: LoopServer) -> None:
    async with reach(loop) as client:
        await client.login()
        loop.expire_sessions()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(client.call, "GET", MODELS)
        assert list(loop.logins) == ["ranger", "ranger"]
        assert counted(loop)["models"] <= 20


async def test_call_is_repeated_once_and_no_more(loop: LoopServer) -> None:
    loop.faults.set("models", Answer(401))
    async with reach(loop) as client:
        with pytest.raises(AuthError, match="401"):
            await client.call("GET", MODELS)
    assert counted(loop) == {"login": 2, "models": 2}


async def test_end_of_a_session_is_mended_in_a_stream_and_in_an_upload(loop: LoopServer) -> None:
    image = next(iter(loop.store[loop.demo].images.values()))
    async with reach(loop) as client:
        await client.login()
        loop.expire_sessions()
        async with client.stream(f"zauberzeug/projects/demo/images/{image.id}/main") as answer:
            assert await answer.read(1_000_000) == image.jpeg
        loop.expire_sessions()
        await client.call("POST", "zauberzeug/projects/demo/detections", json=[])
    assert len(loop.detections) == 1
    assert counted(loop)["login"] == 3


async def test_wrong_password_is_told_to_everybody_who_waits_without_a_storm(loop: LoopServer) -> None:
    failures: list[RemoteError] = []

    async def ask(client: Loop) -> None:
        with pytest.raises(AuthError, match="does not let 'ranger' in") as caught:
            await client.call("GET", MODELS)
        failures.append(caught.value)

    async with reach(loop, password=Secret("squid-squid")) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask, client)
        assert len(failures) == 10
        assert counted(loop) == {"login": 1}
        with pytest.raises(AuthError):
            await client.call("GET", MODELS)
        assert counted(loop) == {"login": 2}
    assert not any("squid" in str(failure) for failure in failures)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Answer(400), AuthError),
        (Answer(403), AuthError),
        (Answer(422), AuthError),
        (Answer(404), RetryableError),
        (Answer(500), RetryableError),
        (Reset(), RetryableError),
    ],
)
async def test_login_that_fails_is_tried_again_by_the_next_call(
    loop: LoopServer, fault: Answer | Reset, error: type[RemoteError]
) -> None:
    loop.faults.script("login", fault)
    async with reach(loop) as client:
        with pytest.raises(error):
            await client.call("GET", MODELS)
        assert "models" not in counted(loop)
        await client.call("GET", MODELS)


async def test_without_an_account_what_takes_no_login_works_and_the_rest_says_what_to_do(loop: LoopServer) -> None:
    async with reach(loop, known=False) as client:
        await client.ready()
        await client.login()
        assert counted(loop) == {"status": 1}
        for _ in range(2):
            with pytest.raises(AuthError, match="set username and password"):
                await client.call("GET", MODELS)
        await client.call("GET", "zauberzeug/projects/demo/models/00000000-0000-0000-0000-000000000011/mocked/file")


async def test_loop_that_knows_guests_lets_them_in() -> None:
    async with LoopServer(guests=True) as loop, reach(loop, known=False) as client:
        await client.call("GET", MODELS)
        await client.call("GET", MODELS)
        assert list(loop.logins) == [""]


async def test_login_without_a_cookie_is_no_login() -> None:
    def forgetful(request: Request) -> Reply:
        return Reply(status=200 if request.path == "/api/login" else 401)

    async with LoopbackServer(forgetful) as server:
        options = LoopOptions(url=server.url, username="ranger", password=Secret("krill"))
        async with Loop(options) as client:
            with pytest.raises(RetryableError, match="without a cookie"):
                await client.call("GET", MODELS)
        assert [request.path for request in server.requests] == ["/api/login"]


async def test_renewal_logs_in_anew(loop: LoopServer) -> None:
    async with reach(loop) as client:
        await client.login()
        before = client.cookies
        await client.renew()
        assert client.cookies != before
        assert client.cookies.startswith("session=")


async def test_cancelled_login_leaves_the_next_call_to_log_in(loop: LoopServer) -> None:
    loop.faults.script("login", Stall())
    async with reach(loop) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, "GET", MODELS)
            await loop.arrivals.until(lambda call: call.name == "login")
            tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            await client.call("GET", MODELS)


async def test_loop_that_asks_for_patience_gets_it(loop: LoopServer) -> None:
    loop.faults.script("models", too_many(0), too_many(0))
    async with reach(loop) as client:
        await client.call("GET", MODELS)
    assert counted(loop)["models"] == 3


@pytest.mark.parametrize(("fault", "tries", "asked"), [(0, 3, 3), (0, 1, 1), (600, 4, 1)])
async def test_patience_has_an_end(loop: LoopServer, fault: float, tries: int, asked: int) -> None:
    loop.faults.set("models", too_many(fault))
    async with reach(loop, tries=tries) as client:
        with pytest.raises(RetryableError) as caught:
            await client.call("GET", MODELS)
    assert (caught.value.status, caught.value.retry_after_s) == (429, fault)
    assert counted(loop)["models"] == asked


async def test_call_has_a_limit(loop: LoopServer) -> None:
    loop.faults.set("models", Stall())
    async with reach(loop, timeout=Duration(0.2)) as client:
        with anyio.fail_after(10), pytest.raises(RetryableError, match=r"within 0\.2 s"):
            await client.call("GET", MODELS)


@pytest.mark.parametrize("body", [b"[]", b'{"models": [{"version": "1"}]}', b"<html>", b"\xff", b"[" * 100_000])
async def test_answer_of_another_shape_is_no_answer(loop: LoopServer, body: bytes) -> None:
    loop.faults.script("models", Nonsense(body))
    async with reach(loop) as client:
        with pytest.raises(RetryableError, match="answered what no Learning Loop answers"):
            await client.get(MODELS, wire.ListedModels)


@pytest.mark.parametrize(("status", "error"), [(403, AuthError), (409, RejectedError), (422, RejectedError)])
async def test_refusals_come_out_at_once(loop: LoopServer, status: int, error: type[RemoteError]) -> None:
    loop.faults.set("models", Answer(status))
    async with reach(loop) as client:
        with pytest.raises(error):
            await client.call("GET", MODELS)
    assert counted(loop) == {"login": 1, "models": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "learning-loop.ai"}, "expected an http or https URL"),
        ({"url": "http://loop.example", "username": "u", "password": Secret("p")}, "unencrypted"),
        ({"username": "u"}, "belong together"),
        ({"password": Secret("p")}, "belong together"),
    ],
)
def test_options_that_cannot_mean_anything_are_refused_before_anybody_is_asked(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Loop(LoopOptions(**options))


def test_any_host_may_speak_tls_and_a_password_over_plain_http_needs_consent() -> None:
    account: dict[str, Any] = {"username": "u", "password": Secret("p")}
    Loop(LoopOptions(url="https://loop.example:8443", **account))
    Loop(LoopOptions(url="http://localhost:8080", **account))
    Loop(LoopOptions(url="http://loop.example", insecure=True, **account))
    Loop(LoopOptions(url="http://loop.example"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certified(authority: trustme.CA) -> Callable[[str], Any]:
    def context(host: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(made)
        return made

    return context


async def test_own_certificates_are_trusted_and_the_host_name_counts(
    authority: trustme.CA, certified: Callable[[str], Any], tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    for host, trusted in (("127.0.0.1", True), ("other.example", False)):
        async with LoopbackServer(lambda _: Reply(body=b"{}"), tls=certified(host)) as server:
            async with Loop(LoopOptions(url=server.url, ca=ca)) as client:
                if trusted:
                    await client.ready()
                else:
                    with pytest.raises(RetryableError, match=r"(?i)certificate"):
                        await client.ready()
            assert bool(server.requests) is trusted
