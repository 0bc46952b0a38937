"""Models of a Loop become packages of ours, whatever the way there does to them, and ours become the Loop's."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
from loop import DEMO, MODEL_IDS, Answer, LoopServer, LoseAnswer, Reset, Training, zipped
from loopcore_learningloop import downloads
from loopcore_learningloop.client import Loop
from loopcore_learningloop.models import Models
from loopcore_learningloop.options import LoopOptions
from loopcore_learningloop.packages import EXTRA
from loopcore_learningloop.projects import Project

from loopcore.errors import IntegrityError, ModelError, RejectedError, RemoteError, RetryableError
from loopcore.options import Duration, Secret
from loopcore.package import open_folder, write_package
from loopcore.testing.servers import LoopbackServer, Reply, Request, Serve
from loopcore.testing.servers import LoseAnswer as Broken
from loopcore.types import Model, ModelInfo

pytestmark = pytest.mark.anyio

TARGET = MODEL_IDS["1.1"]


@pytest.fixture
async def client(loop: LoopServer) -> AsyncGenerator[Loop]:
    async with Loop(LoopOptions(url=loop.url, username="ranger", password=Secret("krill"))) as client:
        yield client


@pytest.fixture
def models(client: Loop) -> Models:
    return Models(client, Project(client, "zauberzeug", "demo"))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


async def newest(models: Models) -> ModelInfo:
    return (await models.list())[0]


async def test_each_format_is_listed_newest_first_and_what_has_no_version_is_not(
    loop: LoopServer, models: Models
) -> None:
    project = loop.store[DEMO]
    project.add_model(None, mocked={})
    for version, created in (("1.9", "2030-01-01T00:00:00"), ("1.10", "2030-01-01T00:00:00")):
        project.add_model(version, mocked={}, onnx={}).created = created
    listed = await models.list()
    assert [(info.version, info.format) for info in listed] == [
        ("1.10", "mocked"), ("1.10", "onnx"), ("1.9", "mocked"), ("1.9", "onnx"),
        ("1.2", "mocked"), ("1.1", "mocked"), ("1.0", "mocked"),
    ]  # fmt: skip
    assert listed[-1].name == "demo"
    told = listed[-1].extra[EXTRA]
    assert (told["id"], told["organization"], told["project"]) == (MODEL_IDS["1.0"], "zauberzeug", "demo")


async def test_two_models_of_one_version_are_two(loop: LoopServer, models: Models) -> None:
    other = loop.store[DEMO].add_model("1.1", mocked={})
    ids = {info.extra[EXTRA]["id"] for info in await models.list() if info.version == "1.1"}
    assert ids == {TARGET, other.id}


async def test_without_a_project_all_are_listed_and_those_that_may_not_be_read_are_left_out(
    loop: LoopServer, client: Loop
) -> None:
    loop.store.add_project("zoo", "Penguins").add_model("7.0", format_a={})
    everywhere = Models(client, None)
    assert {info.name for info in await everywhere.list()} == {"demo", "penguins"}
    loop.faults.set("models", Answer(403), when=lambda call: "/demo/" in call.path)
    assert {info.name for info in await everywhere.list()} == {"penguins"}
    loop.faults.set("models", Answer(500), when=lambda call: "/demo/" in call.path)
    with pytest.raises(RetryableError):
        await everywhere.list()


async def test_what_is_fetched_is_a_package_that_says_what_the_loop_says(
    loop: LoopServer, models: Models, into: Path
) -> None:
    await models.fetch(await newest(models), "mocked", into)
    package = open_folder(into)
    assert (package.info.name, package.info.version, package.info.format) == ("demo", "1.2", "mocked")
    assert package.info.labels == ("white box", "purple point", "red area", "grey day")
    assert (into / "file_1.txt").read_bytes() == b"content of file one"
    told = package.info.extra[EXTRA]
    assert (told["id"], told["host"], told["version"]) == (MODEL_IDS["1.2"], loop.host, "1.2")
    assert [one["name"] for one in told["categories"]] == list(package.info.labels)
    assert {path.name for path in into.iterdir()} == {"model.json", "file_1.txt", "file_2.txt"}


async def test_what_the_maker_wrote_down_is_kept_and_its_threshold_is_used(
    loop: LoopServer, models: Models, into: Path
) -> None:
    files = {"model.onnx": b"graph", "model.json": json.dumps({"conf_threshold": 0.4, "epochs": 7}).encode()}
    loop.store[DEMO].add_model("2.0", onnx=files).created = "2040-01-01"
    await models.fetch(await newest(models), "onnx", into)
    info = open_folder(into).info
    assert info.spec == {"confidence": 0.4}
    assert info.extra[EXTRA]["epochs"] == 7


@pytest.mark.parametrize(
    "files",
    [
        {"model.onnx": b"graph"},
        {"export/model.onnx": b"graph"},
        {"export/model.onnx": b"graph", "export/model.json": b"{}"},
        {"a/b/model.onnx": b"graph", "a/b/model.json": b"{}", "a/readme": b""},
        {"a/a/model.onnx": b"graph", "a/a/model.json": b"{}"},
    ],
)
async def test_base_model_may_lack_a_manifest_and_may_lie_in_folders(into: Path, files: dict[str, bytes]) -> None:
    async with a_zip(zipped(files)) as (_, models):
        await models.fetch(offer(), "onnx", into)
    info = open_folder(into).info
    assert "model.onnx" in {file.name for file in info.files}
    assert info.extra[EXTRA]["id"] == TARGET
    assert info.labels == ()


def offer(format: str = "onnx") -> ModelInfo:
    told = {"id": TARGET, "organization": "zauberzeug", "project": "demo", "version": "1.1"}
    return ModelInfo(name="demo", version="1.1", format=format, extra={EXTRA: told})


class ZipServer:
    """A Loop that has one file, in ranges if it is asked to."""

    def __init__(self, content: bytes, **headers: str) -> None:
        self.content = content
        self.headers = headers

    def __call__(self, request: Request) -> Reply:
        if request.path.endswith("/models"):
            formats = ["onnx", "yolov5_pytorch"]
            return Reply(body=json.dumps({"models": [{"id": TARGET, "version": "1.1", "formats": formats}]}).encode())
        asked = request.headers.get("range", "")
        if asked and request.headers.get("if-range") == self.headers.get("etag"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                return Reply(status=416)
            said = {"content-range": f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"}
            return Reply(status=206, headers={**self.headers, **said}, body=self.content[start:])
        return Reply(headers=self.headers, body=self.content)


@asynccontextmanager
async def a_zip(
    content: bytes, *, pickles: bool = False, limit_s: float = 30, **headers: str
) -> AsyncGenerator[tuple[LoopbackServer, Models]]:
    """A server of one zip, and the registry of its Loop."""
    async with (
        LoopbackServer(ZipServer(content, **headers)) as server,
        Loop(LoopOptions(url=server.url, timeout=Duration(limit_s))) as client,
    ):
        yield server, Models(client, Project(client, "zauberzeug", "demo"), pickles=pickles)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)


LARGE = zipped({"model.onnx": Random(7).randbytes(3_000_000)})


def cut(start: int, end: int) -> Reply:
    """An answer that stands still on its way."""
    headers = {"etag": '"one"', "content-length": str(len(LARGE) - start)}
    if start:
        headers["content-range"] = f"bytes {start}-{len(LARGE) - 1}/{len(LARGE)}"
    return Reply(status=206 if start else 200, headers=headers, body=LARGE[start:end])


async def test_download_that_breaks_goes_on_where_it_broke(into: Path) -> None:
    async with a_zip(LARGE, limit_s=0.25, etag='"one"') as (server, models):
        server.script(cut(0, 2_000_000), cut(2_000_000, 2_500_000))
        await models.fetch(offer(), "onnx", into)
        ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, "bytes=2000000-", "bytes=2500000-"]
    assert open_folder(into).info.files[0].size == 3_000_000


async def test_download_goes_on_in_another_process_from_what_one_has_left(into: Path) -> None:
    async with a_zip(LARGE, limit_s=0.25, etag='"one"') as (server, models):
        server.script(cut(0, 2_000_000), *[Broken()] * 20)
        with pytest.raises(RetryableError):
            await models.fetch(offer(), "onnx", into)
        (into / "half-unpacked").mkdir()
        server.script()
        before = len(server.requests)
        await models.fetch(offer(), "onnx", into)
        (request,) = server.requests[before:]
    assert request.headers["range"] == "bytes=2000000-"
    assert {path.name for path in into.iterdir()} == {"model.json", "model.onnx"}


@pytest.mark.parametrize("headers", [{}, {"etag": 'W/"weak"'}, {"etag": '"one"', "accept-ranges": "none"}], ids=str)
async def test_download_begins_anew_where_the_loop_does_not_say_which_file_it_is(
    into: Path, headers: dict[str, str]
) -> None:
    async with a_zip(LARGE, **headers) as (server, models):
        server.script(Broken(sent=2_000_000))
        await models.fetch(offer(), "onnx", into)
        assert [request.headers.get("range") for request in server.requests] == [None, None]


async def test_file_that_changes_on_the_way_is_had_whole(into: Path) -> None:
    async with a_zip(LARGE, limit_s=0.25, etag='"one"') as (server, models):
        other = ZipServer(zipped({"model.onnx": b"another"}), etag='"two"')
        server.script(cut(0, 2_000_000))
        server.treat(lambda request: other(request) if "range" in request.headers else Serve())
        await models.fetch(offer(), "onnx", into)
    assert (into / "model.onnx").read_bytes() == b"another"


async def test_range_beyond_the_end_begins_anew(into: Path) -> None:
    async with a_zip(LARGE, etag='"one"') as (_, models):
        (into / ".learningloop.zip").write_bytes(LARGE + b"x")
        (into / ".learningloop.zip.tag").write_text('"one"')
        await models.fetch(offer(), "onnx", into)
    assert (into / "model.onnx").stat().st_size == 3_000_000


async def test_hash_that_the_loop_promises_is_checked(into: Path) -> None:
    content = zipped({"model.onnx": b"graph"})
    for promised, right in ((content, True), (b"other", False)):
        digest = b64encode(sha256(promised).digest()).decode()
        async with a_zip(content, **{"repr-digest": f"sha-256=:{digest}:"}) as (_, models):
            if right:
                await models.fetch(offer(), "onnx", into)
            else:
                with pytest.raises(IntegrityError, match="promised"):
                    await models.fetch(offer(), "onnx", into)
    assert not (into / ".learningloop.zip").exists()


async def test_loop_that_gives_up_for_good_is_no_longer_asked(into: Path) -> None:
    async with a_zip(LARGE) as (server, models):
        server.script(*[Reply(status=500)] * 20)
        with pytest.raises(RetryableError, match="500"):
            await models.fetch(offer(), "onnx", into)
        assert len(server.requests) == downloads.TRIES


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Reply(status=200, headers={"content-type": "text/html"}, body=b"<html>"), RetryableError),
        (Reply(status=400), ModelError),
        (Reply(status=422, body=b"this model is for members"), ModelError),
        (Reply(status=404), RetryableError),
        (Reply(body=b"no zip"), ModelError),
        (Reply(body=zipped({"model.onnx": b"graph"})[:-20]), ModelError),
        (Reply(body=zipped({"../outside": b"x"})), ModelError),
        (Reply(body=zipped({"/outside": b"x"})), ModelError),
        (Reply(body=zipped({"model.bin": bytes(30_000_000)})), ModelError),
        (Reply(body=zipped({"model.onnx": b"", "model.json": b"[]"})), ModelError),
        (Reply(body=zipped({"model.onnx": b"", "model.json": b'{"categories": 3}'})), ModelError),
        (Reply(body=zipped({"model.onnx": b"", "model.json": b'{"id": "another"}'})), ModelError),
        (Reply(body=zipped({})), ModelError),
    ],
    ids=str,
)
async def test_what_is_no_model_is_refused_and_nothing_is_written_elsewhere(
    into: Path, tmp_path: Path, answer: Reply, error: type[Exception]
) -> None:
    async with a_zip(LARGE) as (server, models):
        server.treat(lambda request: Serve() if request.path.endswith("/models") else answer)
        with pytest.raises(error):
            await models.fetch(offer(), "onnx", into)
    assert [path.name for path in tmp_path.iterdir()] == ["into"]


async def test_name_that_the_loop_gives_its_zip_is_nobodys_path(into: Path, tmp_path: Path) -> None:
    for name in ('attachment; filename="../../x.zip"', "attachment; filename=x.zip", "attachment"):
        async with a_zip(zipped({"model.onnx": b"graph"}), **{"content-disposition": name}) as (_, models):
            await models.fetch(offer(), "onnx", into)
    assert {path.name for path in into.iterdir()} == {"model.json", "model.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["into"]


@pytest.mark.parametrize(
    "files",
    [
        {"model.pt": b"weights"},
        {"deep/model.PTH": b"weights"},
        {"weights.bin": b"\x80\x04\x95rest"},
        {"weights.bin": zipped({"archive/data.pkl": b"x"})},
    ],
    ids=str,
)
async def test_pickles_are_for_trainers_alone(into: Path, files: dict[str, bytes]) -> None:
    async with a_zip(zipped(files)) as (_, models):
        with pytest.raises(ModelError, match="is a Python pickle"):
            await models.fetch(offer(), "yolov5_pytorch", into)
    async with a_zip(zipped(files), pickles=True) as (_, models):
        await models.fetch(offer(), "yolov5_pytorch", into)
    assert open_folder(into).info.format == "yolov5_pytorch"


async def test_model_from_elsewhere_cannot_be_fetched_here(models: Models, into: Path) -> None:
    with pytest.raises(ModelError, match="not a model of a Learning Loop"):
        await models.fetch(ModelInfo(name="x", version="1", format="onnx"), "onnx", into)


# Our models become the Loop's


def packed(folder: Path, *, format: str = "onnx", files: dict[str, bytes] | None = None, **more: Any) -> Model:
    folder.mkdir()
    for name, content in (files or {"model.onnx": b"graph", "notes.txt": b"good"}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    more = {"labels": ("purple point", "white box"), "spec": {"size": 64, "confidence": 0.5}} | more
    return write_package(folder, ModelInfo(name="finder", version="2026-1", format=format, **more))


async def test_model_of_a_training_arrives_and_comes_back_as_it_went(
    loop: LoopServer, models: Models, tmp_path: Path, into: Path
) -> None:
    loop.store[DEMO].trainings[7] = Training(7)
    package = packed(tmp_path / "made")
    info = await models.publish(package, "7")
    (upload,) = loop.model_uploads
    assert (upload.training, upload.format, upload.model_id) == (7, "onnx", info.extra[EXTRA]["id"])
    told = json.loads(upload.files["model.json"])
    assert [one["name"] for one in told["categories"]] == ["purple point", "white box"]
    assert (told["resolution"], told["conf_threshold"]) == (64, 0.5)
    assert upload.files["model.onnx"] == b"graph"

    (listed,) = [one for one in await models.list() if one.extra[EXTRA]["id"] == info.extra[EXTRA]["id"]]
    await models.fetch(listed, "onnx", into)
    back = open_folder(into).info
    assert (back.name, back.labels, back.spec, back.files) == ("finder", *_same(package.info))
    assert back.version == listed.version
    assert len(loop.complaints) == 0


def _same(info: ModelInfo) -> tuple[Any, ...]:
    return info.labels, info.spec, info.files


async def test_model_that_comes_twice_is_stored_once(loop: LoopServer, models: Models, tmp_path: Path) -> None:
    loop.store[DEMO].trainings[7] = Training(7)
    package = packed(tmp_path / "made")
    loop.faults.script("publish_training", LoseAnswer())
    with pytest.raises(RetryableError):
        await models.publish(package, "7")
    once, twice = [await models.publish(package, "7") for _ in range(2)]
    assert once == twice
    assert len(loop.model_uploads) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Answer(400), RejectedError),
        (Answer(404), RejectedError),
        (Answer(422), RejectedError),
        (Answer(404, {"content-type": "text/plain"}, b"404 page not found"), RetryableError),
        (Answer(408), RetryableError),
        (Answer(429, {"retry-after": "600"}), RetryableError),
        (Answer(503), RetryableError),
        (Answer(200, {"content-type": "text/html"}, b"<html>"), RetryableError),
        (Reset(), RetryableError),
    ],
    ids=str,
)
async def test_refusal_ends_a_training_and_trouble_does_not(
    loop: LoopServer, models: Models, tmp_path: Path, fault: Any, error: type[RemoteError]
) -> None:
    loop.store[DEMO].trainings[7] = Training(7)
    loop.faults.script("publish_training", fault)
    package = packed(tmp_path / "made")
    with pytest.raises(RemoteError) as caught:
        await models.publish(package, "7")
    assert type(caught.value) is error


@pytest.mark.parametrize("body", [b'{"detail": {"id": "stored"}}', b'{"detail": "stored"}', b"no JSON"])
async def test_conflict_means_that_the_loop_has_it(
    loop: LoopServer, models: Models, tmp_path: Path, body: bytes
) -> None:
    loop.faults.script("publish_training", Answer(409, {}, body))
    info = await models.publish(packed(tmp_path / "made"), "7")
    assert info.extra[EXTRA]["id"] == ("stored" if b"id" in body else "")


async def test_model_of_the_loop_gets_a_further_format(
    loop: LoopServer, models: Models, tmp_path: Path, into: Path
) -> None:
    await models.fetch(offer("mocked"), "mocked", into)
    source = open_folder(into).info
    converted = packed(tmp_path / "made", format="format_b", labels=source.labels, extra=source.extra)
    info = await models.publish(converted)
    assert info.extra[EXTRA]["id"] == TARGET
    assert {one.format for one in await models.list() if one.extra[EXTRA]["id"] == TARGET} == {"mocked", "format_b"}
    (upload,) = loop.model_uploads
    assert json.loads(upload.files["model.json"])["id"] == TARGET


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ("green cow",)}, "no category 'green cow'"),
        ({"files": {"model.onnx": b"", "parts/weights": b""}}, "takes no folders"),
    ],
)
async def test_what_the_loop_cannot_hold_is_not_sent(
    loop: LoopServer, models: Models, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RejectedError, match=words):
        await models.publish(packed(tmp_path / "made", **changes), "7")
    assert not [call for call in loop.arrivals if call.method == "PUT"]


async def test_model_of_no_training_is_not_sent(loop: LoopServer, models: Models, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="comes from none of them"):
        await models.publish(packed(tmp_path / "made"))
    assert len(loop.arrivals) == 0


async def test_training_of_a_registry_wins_over_the_name_of_its_job(
    loop: LoopServer, client: Loop, tmp_path: Path
) -> None:
    project = loop.store[DEMO]
    project.trainings[7] = Training(7)
    base = project.add_model(None, onnx={})
    registry = Models(client, Project(client, "zauberzeug", "demo"), training=7)
    await registry.publish(packed(tmp_path / "made"), "zauberzeug-demo-7-first")
    assert len(loop.model_uploads) == 1
    assert base.id in {info.extra[EXTRA]["id"] for info in await registry.list()}  # a training may start from it
