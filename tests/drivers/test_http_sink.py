"""What the sink `http` promises beyond what every such sink promises."""

from __future__ import annotations

from collections.abc import Sequence
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import msgspec
import pytest

from loopcore.drivers.http_sink import HttpSink, HttpSinkOptions
from loopcore.errors import AuthError, ConfigError, RejectedError
from loopcore.options import Secret
from loopcore.testing import HttpSinkSuite, make_sample
from loopcore.testing.faults import PORTAL
from loopcore.testing.servers import LoopbackServer, Reply, Request
from loopcore.types import Delivered, Refused, SampleInfo

pytestmark = pytest.mark.anyio


class Receiver:
    """A receiver by the book: knows what it has by `Idempotency-Key`, and takes only what is whole."""

    def __init__(self) -> None:
        self.samples: dict[str, tuple[SampleInfo, bytes]] = {}

    def __call__(self, request: Request) -> Reply:
        if request.method != "POST":
            return Reply(status=405)
        head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
        message = BytesParser(policy=HTTP).parsebytes(head + request.body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        sample, image = (parts[name].get_payload(decode=True) for name in ("sample", "image"))
        info = msgspec.json.decode(sample, type=SampleInfo)
        if (info.id, info.image_bytes) != (request.headers["idempotency-key"], len(image)):
            return Reply(status=422)
        if parts["image"].get_content_type() != info.media or parts["sample"].get_content_type() != "application/json":
            return Reply(status=415)
        if info.id in self.samples:
            return Reply(status=409)
        self.samples[info.id] = (info, image)
        return Reply(status=201, body=msgspec.json.encode({"id": info.id[:8]}))

    def held(self) -> Sequence[str]:
        return list(self.samples)


class TestHttpSink(HttpSinkSuite):
    driver = HttpSink
    lies = (PORTAL, Reply(body=b'{"success": false}'), Reply(status=202, body=b'{"accepted": false, "why": "dark"}'))

    @pytest.fixture
    def peer(self) -> Receiver:
        return Receiver()

    @pytest.fixture
    def table(self, server: LoopbackServer) -> dict[str, str]:
        return {"url": f"{server.url}/samples"}


async def test_receiver_gets_what_was_kept(tmp_path: Path) -> None:
    receiver, sample = Receiver(), make_sample(1, media="image/png", camera='odd "name"\r\nX: 1')
    async with LoopbackServer(receiver) as server:
        options = HttpSinkOptions(
            url=f"{server.url}/samples?site=3",
            token=Secret("t0ken"),
            headers={"X-Site": "north"},
            secret_headers={"X-Key": Secret("k3y")},
        )
        async with HttpSink(options) as sink:
            assert await sink.send([sample]) == [Delivered(remote_id=sample.info.id[:8])]
            assert await sink.send([sample]) == [Delivered(duplicate=True)]
        request = server.requests[0]
    assert receiver.samples[sample.info.id] == (sample.info, sample.image)
    assert (request.method, request.path, request.query) == ("POST", "/samples", {"site": "3"})
    assert [request.headers[name] for name in ("authorization", "x-site", "x-key")] == ["Bearer t0ken", "north", "k3y"]


@pytest.mark.parametrize(
    ("answer", "receipt"),
    [
        (Reply(status=204), Delivered()),
        (Reply(body=b"thanks"), Delivered()),
        (Reply(body=b"[1]"), Delivered()),
        (Reply(body=b"[" * 100_000), Delivered()),
        (Reply(body=b'{"id": "\xff"}'), Delivered()),
        (Reply(body=b'{"id": ' + b"9" * 6000 + b"}"), Delivered()),
        (Reply(body=b'{"id": "' + b"9" * 6000 + b'"}'), Delivered(remote_id="9" * 1000)),
        (Reply(body=b'{"id": 7, "duplicate": true}'), Delivered(remote_id="7", duplicate=True)),
        (Reply(body=b'{"success": true, "error": "x"}'), Delivered()),
        (Reply(body=b'{"success": false, "error": "too dark"}'), Refused(why="too dark")),
        (Reply(body=b'{"accepted": false, "why": "seen"}'), Refused(why="seen")),
        (Reply(body=b'{"accepted": false}'), Refused(why="the receiver gives no reason")),
    ],
)
async def test_answer_is_read_as_documented(answer: Reply, receipt: Delivered | Refused) -> None:
    async with LoopbackServer(lambda request: answer) as server, HttpSink(HttpSinkOptions(url=server.url)) as sink:
        assert await sink.send([make_sample(1)]) == [receipt]


async def test_certificates_that_cannot_be_read_are_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca"):
        async with HttpSink(HttpSinkOptions(url="https://127.0.0.1", ca=tmp_path / "none.pem")):
            pass


def test_token_over_plain_http_to_another_machine_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        HttpSink(HttpSinkOptions(url="http://example.com", token=Secret("x")))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Reply(status=204), None),
        (Reply(status=405), None),
        (Reply(status=401), "401"),
        (Reply(status=404), "404"),
        (Reply(status=500), "500"),
    ],
)
async def test_check_asks_the_receiver_without_sending_anything(answer: Reply, problem: str | None) -> None:
    async with LoopbackServer(lambda request: answer) as server, HttpSink(HttpSinkOptions(url=server.url)) as sink:
        problems = await sink.check()
        assert [request.method for request in server.requests] == ["HEAD"]
    assert [problem in found.message for found in problems if problem] == ([True] if problem else [])
    assert bool(problems) == bool(problem)


@pytest.mark.parametrize(("status", "error"), [(403, AuthError), (413, RejectedError)])
async def test_refusals_of_credentials_and_of_the_sample_differ(status: int, error: type[Exception]) -> None:
    async with (
        LoopbackServer(lambda _: Reply(status=status)) as server,
        HttpSink(HttpSinkOptions(url=server.url)) as sink,
    ):
        with pytest.raises(error):
            await sink.send([make_sample(1)])
