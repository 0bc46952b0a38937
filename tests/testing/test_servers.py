"""The loopback server does what its script says, to a real client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import suppress

import anyio
import httpx
import pytest
import trustme

from loopcore.testing.servers import Late, LoopbackServer, LoseAnswer, Reply, Request, Reset, Serve, Stall, Step

pytestmark = pytest.mark.anyio


def echo(request: Request) -> Reply:
    return Reply(headers={"x-path": request.path}, body=request.body)


@pytest.fixture
async def server() -> AsyncGenerator[LoopbackServer]:
    async with LoopbackServer(echo) as server:
        yield server


@pytest.fixture
async def client(server: LoopbackServer) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        yield client


async def test_application_answers_where_no_step_waits(server: LoopbackServer, client: httpx.AsyncClient) -> None:
    for body in (b"", b"x", bytes(300_000)):
        answer = await client.post("/a b?c=d", content=body)
        assert answer.status_code == 200
        assert answer.content == body
    assert [request.path for request in server.requests] == ["/a b"] * 3
    assert server.requests[0].query == {"c": "d"}
    assert server.requests[0].method == "POST"


async def test_body_in_chunks_arrives_whole(server: LoopbackServer, client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncGenerator[bytes]:
        for part in (b"one", b"two" * 1000, b"three"):
            yield part

    answer = await client.post("/", content=parts())
    assert answer.content == b"one" + b"two" * 1000 + b"three"
    assert (await client.post("/", content=b"next")).content == b"next"


async def test_steps_are_taken_one_by_one_and_then_the_application_answers(
    server: LoopbackServer, client: httpx.AsyncClient
) -> None:
    server.script(Reply(status=429, headers={"retry-after": "7"}), Serve(), Reply(status=503, body=b"busy"))
    answers = [await client.post("/", content=b"body") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 200, 503, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[2].content == b"busy"


async def test_late_answer_is_the_application_s(server: LoopbackServer, client: httpx.AsyncClient) -> None:
    server.script(Late(seconds=0.05))
    begun = anyio.current_time()
    assert (await client.post("/", content=b"body")).content == b"body"
    assert anyio.current_time() - begun >= 0.05


@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_what_is_done_with_a_request_may_depend_on_what_is_in_it(
    server: LoopbackServer, client: httpx.AsyncClient
) -> None:
    def treatment(request: Request) -> Step:
        return {b"bad": Reply(status=422), b"cut": Reset()}.get(request.body, Serve())

    server.treat(treatment)
    server.script(Reply(status=503))
    answers = [(await client.post("/", content=body)).status_code for body in (b"bad", b"bad", b"good")]
    assert answers == [503, 422, 200]
    with pytest.raises(httpx.TransportError):
        await client.post("/", content=b"cut")
    server.treat(None)
    assert (await client.post("/", content=b"bad")).status_code == 200


@pytest.mark.parametrize("sent", [0, 20])
async def test_lost_answer_leaves_the_application_with_the_request(
    server: LoopbackServer, client: httpx.AsyncClient, sent: int
) -> None:
    server.script(LoseAnswer(sent=sent))
    with pytest.raises(httpx.TransportError):
        await client.post("/", content=b"body")
    assert [request.body for request in server.requests] == [b"body"]


@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")  # httpx leaves its own body half read
async def test_reset_in_the_middle_of_the_body_reaches_the_client_and_not_the_application(
    server: LoopbackServer, client: httpx.AsyncClient
) -> None:
    server.script(Reset(received=1000))
    with pytest.raises(httpx.TransportError):
        await client.post("/", content=bytes(20_000_000))
    assert server.requests == []
    assert (await client.post("/", content=b"again")).content == b"again"


async def test_stalled_request_is_answered_when_the_event_is_set(
    server: LoopbackServer, client: httpx.AsyncClient
) -> None:
    go_on = anyio.Event()
    server.script(Stall(until=go_on))
    answers = []

    async def post() -> None:
        answers.append(await client.post("/", content=b"late"))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post)
            await server.arrived(1)
            assert not answers
            go_on.set()
    assert answers[0].content == b"late"


async def test_stall_without_an_event_ends_with_the_client(server: LoopbackServer, client: httpx.AsyncClient) -> None:
    server.script(Stall())
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/")
            await server.arrived(1)
            tasks.cancel_scope.cancel()
        assert (await client.get("/next")).headers["x-path"] == "/next"


async def test_server_that_is_down_refuses_and_comes_back_at_the_same_address(
    server: LoopbackServer, client: httpx.AsyncClient
) -> None:
    url = server.url
    assert (await client.get("/")).status_code == 200
    async with server.down():
        with pytest.raises(httpx.TransportError):
            await client.get("/")
    assert server.url == url
    assert (await client.get("/")).status_code == 200


async def test_server_speaks_tls_and_resets_under_it() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with LoopbackServer(echo, tls=context) as server, httpx.AsyncClient(verify=trust, trust_env=False) as client:
        assert server.url.startswith("https://")
        assert (await client.post(server.url, content=b"secret")).content == b"secret"
        server.script(LoseAnswer())
        with pytest.raises(httpx.TransportError):
            await client.post(server.url, content=b"lost")
        assert (await client.post(server.url, content=b"again")).content == b"again"


async def test_error_in_the_application_ends_the_block() -> None:
    def broken(request: Request) -> Reply:
        raise LookupError("a bug of the stand-in")

    with pytest.RaisesGroup(LookupError, flatten_subgroups=True):
        async with LoopbackServer(broken) as server, httpx.AsyncClient(trust_env=False) as client:
            with suppress(httpx.TransportError):
                await client.get(server.url)
