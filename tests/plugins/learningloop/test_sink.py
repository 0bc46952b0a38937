"""What the sink `learningloop` promises beyond what every such sink promises."""

from __future__ import annotations

from collections.abc import Sequence
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from itertools import pairwise

import anyio
import msgspec
import pytest
from loopcore_learningloop import wire
from loopcore_learningloop.sink import Sink

from loopcore.errors import AuthError, RejectedError, RetryableError
from loopcore.options import Secret
from loopcore.registry import Registry
from loopcore.testing import HttpSinkSuite, make_sample
from loopcore.testing.faults import PORTAL
from loopcore.testing.servers import LoopbackServer, Reply, Request
from loopcore.types import Box, Delivered, Prediction

pytestmark = pytest.mark.anyio

CATEGORIES = [
    {"id": "c-penguin", "name": "penguin", "type": "box"},
    {"id": "c-day", "name": "day", "type": "classification"},
]
UPLOADS = "/api/zoo/projects/penguins/images"


class Receiver:
    """The part of a Loop that takes images (7.4): all of a batch or none, what it has by name only once."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[wire.ImageMetadata, bytes]] = {}
        self.bad: set[str] = set()

    def __call__(self, request: Request) -> Reply:
        if request.method == "GET" and request.path == "/api/zoo/projects/penguins":
            return Reply(body=msgspec.json.encode({"categories": CATEGORIES}))
        if (request.method, request.path) != ("POST", UPLOADS):
            return Reply(status=404)
        pairs = self._pairs(request)
        if any(name in self.bad for name, _, _ in pairs):
            return Reply(status=422)
        for name, told, image in pairs:
            self.images.setdefault(name, (told, image))
        return Reply(body=b"{}")

    def _pairs(self, request: Request) -> list[tuple[str, wire.ImageMetadata, bytes]]:
        head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
        message = BytesParser(EmailMessage, policy=HTTP).parsebytes(head + request.body)
        parts = list(message.iter_parts())
        assert {part.get_param("name", header="content-disposition") for part in parts} == {"files"}
        pairs = []
        for told, image in list(pairwise(parts))[::2]:
            (stem, json), (same, jpg) = (str(part.get_filename()).rsplit(".", 1) for part in (told, image))
            assert (stem, json, jpg) == (same, "json", "jpg")
            assert [part.get_content_type() for part in (told, image)] == ["text/plain", "image/jpeg"]
            data, picture = (part.get_payload(decode=True) for part in (told, image))
            pairs.append((stem.removeprefix("image_"), msgspec.json.decode(data, type=wire.ImageMetadata), picture))
        return pairs

    def held(self) -> Sequence[str]:
        return list(self.images)


class TestLearningLoopSink(HttpSinkSuite):
    driver = Sink
    lies = (PORTAL,)

    @pytest.fixture
    def peer(self) -> Receiver:
        return Receiver()

    @pytest.fixture
    def table(self, server: LoopbackServer) -> dict[str, str]:
        return {"url": server.url, "organization": "zoo", "project": "penguins"}


def a_sink(server: LoopbackServer, **options: object) -> Sink:
    return Sink(Sink.Options(organization="Zoo", project="Penguins", url=server.url, **options))  # type: ignore[arg-type]


def test_it_is_installed_under_its_name() -> None:
    assert Registry().driver("sink", "learningloop") is Sink


async def test_loop_gets_what_was_kept_under_the_names_of_its_categories() -> None:
    receiver = Receiver()
    box = Box(label="penguin", x=1.4, y=2.6, width=3, height=4)
    sample = make_sample(1, annotations=[box], tags=("mine", "uncertain"), reasons=("uncertain",), state="trash")
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        assert await sink.send([sample]) == [Delivered()]
    told, image = receiver.images[sample.info.id]
    assert image == sample.image
    assert (told.tags, told.source, told.state) == (["mine", "uncertain"], "made/1", "trash")
    assert told.created == "2024-05-17T08:30:01+00:00"
    assert told.box_annotations == [
        wire.BoxAnnotation(category_name="penguin", category_id="c-penguin", x=1, y=3, width=3, height=4)
    ]
    assert [one.category_id for one in told.box_detections] == ["c-penguin"]
    assert [one.category_id for one in told.classification_detections] == ["c-day"]
    assert [(one.category_id, one.model_name) for one in told.point_detections] == [(None, "1")]


async def test_batch_is_one_request_in_which_each_image_follows_its_metadata() -> None:
    receiver = Receiver()
    samples = [make_sample(seed) for seed in range(20)]
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        assert sink.max_batch == 20
        await sink.send(samples)
        assert [request.path for request in server.requests if request.method == "POST"] == [UPLOADS]
    assert receiver.held() == [sample.info.id for sample in samples]


async def test_sample_without_a_label_needs_no_categories() -> None:
    receiver = Receiver()
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        await sink.send([make_sample(1, prediction=None)])
        assert [request.method for request in server.requests] == ["POST"]


async def test_categories_are_asked_for_once_in_a_while() -> None:
    async with LoopbackServer(Receiver()) as server, a_sink(server) as sink:
        for seed in range(5):  # "beak" is no category of this project
            await sink.send([make_sample(seed)])
        assert [request.method for request in server.requests].count("GET") == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
async def test_loop_that_tells_no_categories_gets_images_with_names_alone(status: int) -> None:
    receiver = Receiver()
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        server.treat(lambda request: Reply(status=status) if request.path != UPLOADS else receiver(request))
        for seed in range(3):
            await sink.send([make_sample(seed)])
        assert [request.path for request in server.requests].count(UPLOADS) == 3
        assert [request.path for request in server.requests].count("/api/zoo/projects/penguins") == 1
    assert {one.category_id for told, _ in receiver.images.values() for one in told.box_detections} == {None}


@pytest.mark.parametrize("answer", [Reply(status=500), Reply(status=429), PORTAL, Reply(body=b"[]")])
async def test_categories_that_cannot_be_had_now_are_waited_for(answer: Reply) -> None:
    receiver = Receiver()
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        server.script(answer)
        with pytest.raises(RetryableError):
            await sink.send([make_sample(1)])
        assert await sink.send([make_sample(1)]) == [Delivered()]
    assert [one.category_id for one in receiver.images[make_sample(1).info.id][0].box_detections] == ["c-penguin"]


async def test_bad_image_refuses_its_batch_so_that_the_core_can_find_it() -> None:
    receiver = Receiver()
    samples = [make_sample(seed) for seed in range(4)]
    receiver.bad.add(samples[2].info.id)
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        with pytest.raises(RejectedError):
            await sink.send(samples)
        assert receiver.held() == []


async def test_what_is_nowhere_on_the_picture_does_not_cost_the_sample() -> None:
    receiver = Receiver()
    shapes = (
        Box(label="penguin", x=float("nan"), y=0, width=1, height=1),
        Box(label="penguin", x=500, y=0, width=9, height=9),
        Box(label="penguin", x=-5, y=40, width=10, height=500),
    )
    sample = make_sample(1, prediction=Prediction(detections=shapes, model_version="7"))
    async with LoopbackServer(receiver) as server, a_sink(server) as sink:
        await sink.send([sample])
    (box,) = receiver.images[sample.info.id][0].box_detections
    assert (box.x, box.y, box.width, box.height) == (0, 40, 5, 8)


async def test_account_of_the_sink_is_used() -> None:
    receiver = Receiver()

    def guarded(request: Request) -> Reply:
        if request.path == "/api/login" and b"username=ranger" in request.body:
            return Reply(headers={"set-cookie": "session=s3ss10n-0f-rangers; Path=/; HttpOnly"})
        return receiver(request) if "s3ss10n" in request.headers.get("cookie", "") else Reply(status=401)

    async with LoopbackServer(guarded) as server:
        async with a_sink(server, username="ranger", password=Secret("krill")) as sink:
            await sink.send([make_sample(1)])
        assert [request.path for request in server.requests].count("/api/login") == 1
        async with a_sink(server) as sink:
            with pytest.raises(AuthError, match="set username and password"):
                await sink.send([make_sample(2)])
    assert receiver.held() == [make_sample(1).info.id]


async def test_calls_at_the_same_time_share_what_they_ask() -> None:
    receiver = Receiver()
    async with LoopbackServer(receiver) as server, a_sink(server) as sink, anyio.create_task_group() as tasks:
        for seed in range(sink.in_flight):
            tasks.start_soon(sink.send, [make_sample(seed)])
    assert len(receiver.images) == sink.in_flight
    assert [request.method for request in server.requests].count("GET") == 1
