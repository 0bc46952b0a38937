"""The server that judges the others answers as the protocol says, and fails as it is told to."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncGenerator
from typing import Any, Self

import anyio
import httpx
import pytest
import socketio
from loop import (
    DEMO,
    MODEL_IDS,
    NONSENSE,
    Answer,
    LoopServer,
    LoseAnswer,
    Nonsense,
    Reset,
    Stall,
    Training,
    picture,
    too_many,
)

pytestmark = pytest.mark.anyio
PROJECT = f"/api/{DEMO.replace('/', '/projects/')}"


@pytest.fixture
async def client(loop: LoopServer) -> AsyncGenerator[httpx.AsyncClient]:
    """Logged in."""
    async with httpx.AsyncClient(base_url=loop.url, verify=False) as client:
        answer = await client.post("/api/login", data={"username": "ranger", "password": "krill"})
        assert answer.status_code == 200
        yield client


def entry(stem: str, seed: int = 0, **metadata: Any) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [
        ("files", (f"{stem}.json", json.dumps(metadata).encode(), "text/plain")),
        ("files", (f"{stem}.jpg", picture(seed), "image/jpeg")),
    ]


async def test_only_who_is_logged_in_gets_what_takes_a_login(loop: LoopServer, client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{PROJECT}/data")).status_code == 200
    loop.expire_sessions()
    assert (await client.get(f"{PROJECT}/data")).status_code == 401
    wrong = await client.post("/api/login", data={"username": "ranger", "password": "squid"})
    assert (wrong.status_code, loop.calls[-1].account) == (401, None)
    client.cookies.clear()
    assert (await client.get("/api/status")).status_code == 200
    assert (await client.get(f"{PROJECT}/models/{MODEL_IDS['1.1']}/mocked/file")).status_code == 200


async def test_demo_is_as_authors_of_clients_expect_it(loop: LoopServer, client: httpx.AsyncClient) -> None:
    data = (await client.get(f"{PROJECT}/data")).json()
    assert data["image_ids"]
    assert "purple point" in {category["name"] for category in data["categories"]}
    target = (await client.get(f"{PROJECT}/deployment/target")).json()
    assert target == {"model_uuid": "00000000-0000-0000-0000-000000000011", "version": "1.1"}
    answer = await client.get(f"{PROJECT}/models/{target['model_uuid']}/mocked/file")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("file_1.txt") == b"content of file one"
        told = archive.read("model.json").decode()
    assert '"format": "mocked"' in told
    assert {"id", "organization", "project", "version", "host", "categories"} <= set(json.loads(told))
    (image,) = (await client.get(f"{PROJECT}/images", params={"ids": data["image_ids"][0]})).json()["images"]
    assert {"set", "box_annotations", "point_annotations"} <= set(image)
    assert (await client.get(f"/api{image['resource']}")).content == loop.store[DEMO].images[image["id"]].jpeg
    assert (await client.get("/api/zauberzeug/projects/some_bad_project/data")).status_code == 404


async def test_generator_makes_projects_and_delete_takes_them(loop: LoopServer, client: httpx.AsyncClient) -> None:
    wish = {
        "project_name": "Penguins",
        "inbox": 2,
        "complete": 3,
        "box_categories": 1,
        "point_categories": 1,
        "trainings": 1,
    }
    assert (await client.post("/api/zauberzeug/projects/generator", json=wish)).status_code == 200
    data = (await client.get("/api/zauberzeug/projects/penguins/data", params={"state": "complete"})).json()
    assert (len(data["image_ids"]), len(data["categories"])) == (3, 2)
    charts = (await client.get("/api/zauberzeug/projects/penguins/trainings")).json()["charts"]
    assert charts[0]["data"][0]["model_id"] in loop.store["zauberzeug/penguins"].models
    for _ in range(2):
        assert (await client.delete("/api/zauberzeug/projects/penguins")).status_code == 200
    assert "zauberzeug/penguins" not in {"/".join(key) for key in loop.store.projects}


async def test_uploads_are_paired_by_stem_or_else_by_place(loop: LoopServer, client: httpx.AsyncClient) -> None:
    one, two = entry("a", 1, tags=["one"]), entry("b", 2, tags=["two"])
    client.cookies.clear()
    assert (await client.post(f"{PROJECT}/images", files=[*one, *reversed(two)])).status_code == 200
    old = [entry("image", seed, tags=[str(seed)]) for seed in (3, 4)]
    assert (
        await client.post(f"{PROJECT}/images", files=[old[0][0], old[1][0], old[0][1], old[1][1]])
    ).status_code == 200
    assert [(upload.metadata["tags"], upload.jpeg) for upload in loop.uploads] == [
        (["one"], picture(1)), (["two"], picture(2)), (["3"], picture(3)), (["4"], picture(4)),
    ]  # fmt: skip


async def test_one_bad_sample_leaves_none_of_the_batch_stored(loop: LoopServer, client: httpx.AsyncClient) -> None:
    bad = entry("b", box_detections=[{"category_name": "x", "x": 1.5, "y": 0, "width": 1, "height": 1}])
    png = [bad[0], ("files", ("b.jpg", b"\x89PNG", "image/jpeg"))]
    for second in (bad, png, bad[:1]):
        answer = await client.post(f"{PROJECT}/images", files=[*entry("a"), *second])
        assert (answer.status_code, len(loop.uploads)) == (422, 0)
    loop.refuses = lambda upload: "poison" in upload.metadata["tags"]
    assert (await client.post(f"{PROJECT}/images", files=entry("c", tags=["poison"]))).status_code == 422
    assert (await client.post(f"{PROJECT}/images", files=entry("c", tags=["plain"]))).status_code == 200


async def test_sample_that_comes_again_is_stored_once(loop: LoopServer, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert (await client.post(f"{PROJECT}/images", files=entry("a"))).status_code == 200
    assert (len(loop.uploads), len(loop.duplicates)) == (1, 1)


async def test_only_a_training_takes_a_model_and_the_same_again_is_a_conflict(
    loop: LoopServer, client: httpx.AsyncClient
) -> None:
    def files(content: bytes) -> list[tuple[str, tuple[str, bytes]]]:
        return [("files", ("model.pt", content)), ("files", ("model.json", b'{"resolution": 800}'))]

    path = PROJECT + "/trainings/{}/models/latest/yolo/file"
    assert (await client.put(path.format(0), files=files(b"weights"))).status_code == 404
    loop.store[DEMO].trainings[7] = Training(7)
    assert (await client.put(path.format(7), files=files(b"weights")[:1])).status_code == 422
    first = await client.put(path.format(7), files=files(b"weights"))
    again = await client.put(path.format(7), files=files(b"weights"))
    assert (first.status_code, again.status_code) == (200, 409)
    assert again.json()["detail"]["id"] == first.json()["id"]
    stored = loop.store[DEMO].models[first.json()["id"]]
    told = json.loads(stored.formats["yolo"]["model.json"])
    assert {key: told[key] for key in ("id", "version", "resolution", "format")} == {
        "id": stored.id, "version": "1.3", "resolution": 800, "format": "yolo",
    }  # fmt: skip
    other = await client.put(f"{PROJECT}/models/{stored.id}/onnx/file", files=[("files", ("model.onnx", b"x"))])
    assert other.status_code == 200
    listed = (await client.get(f"{PROJECT}/models", params={"format": "onnx"})).json()["models"]
    assert [model["id"] for model in listed] == [stored.id]


async def test_detections_of_strangers_are_refused(loop: LoopServer, client: httpx.AsyncClient) -> None:
    kinds = ("box", "point", "segmentation", "classification")
    found: dict[str, Any] = {f"{kind}_detections": [] for kind in kinds}
    known = next(iter(loop.store[DEMO].images))
    assert (await client.post(f"{PROJECT}/detections", json=[found | {"image_id": known}])).status_code == 200
    assert (await client.post(f"{PROJECT}/detections", json=[found | {"image_id": "stranger"}])).status_code == 422
    assert (len(loop.detections), len(loop.complaints)) == (1, 1)


async def test_download_goes_on_where_it_broke_off(loop: LoopServer, client: httpx.AsyncClient) -> None:
    path = f"{PROJECT}/models/{MODEL_IDS['1.1']}/mocked/file"
    whole = await client.get(path)
    headers = {"range": "bytes=100-", "if-range": whole.headers["etag"]}
    rest = await client.get(path, headers=headers)
    assert (rest.status_code, whole.content[:100] + rest.content) == (206, whole.content)
    assert (await client.get(path, headers=headers | {"if-range": '"another"'})).status_code == 200


async def test_faults_are_answered_in_their_order_and_then_the_truth(
    loop: LoopServer, client: httpx.AsyncClient
) -> None:
    loop.faults.script("data", Answer(500), None, too_many(2), Nonsense(), LoseAnswer(3), Reset())
    answers = [await client.get(f"{PROJECT}/data") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [500, 200, 429, 200]
    assert (answers[2].headers["retry-after"], answers[3].content) == ("2", NONSENSE)
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            await client.get(f"{PROJECT}/data")
    assert (await client.get(f"{PROJECT}/data")).status_code == 200
    await loop.calls.wait(8)
    assert [call.name for call in loop.calls] == ["login"] + 7 * ["data"]


async def test_stall_ends_when_the_fault_is_lifted(loop: LoopServer, client: httpx.AsyncClient) -> None:
    loop.faults.set("data", Stall())
    with pytest.raises(httpx.ReadTimeout):
        await client.get(f"{PROJECT}/data", timeout=0.1)
    arrived = len(loop.arrivals)

    async def ask() -> None:
        with pytest.raises(httpx.TransportError):
            await client.get(f"{PROJECT}/data", timeout=10)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await loop.arrivals.wait(arrived + 1)
            loop.faults.lift()
    assert (await client.get(f"{PROJECT}/data")).status_code == 200


async def test_answer_that_is_lost_was_acted_upon(loop: LoopServer, client: httpx.AsyncClient) -> None:
    loop.faults.script("upload", LoseAnswer())
    with pytest.raises(httpx.TransportError):
        await client.post(f"{PROJECT}/images", files=entry("a"))
    assert (await client.post(f"{PROJECT}/images", files=entry("a"))).status_code == 200
    assert (len(loop.uploads), len(loop.duplicates)) == (1, 1)


async def test_killed_server_comes_back_on_its_port_with_all_that_it_had(
    loop: LoopServer, client: httpx.AsyncClient
) -> None:
    await client.post(f"{PROJECT}/images", files=entry("a"))
    async with loop.down():
        with pytest.raises(httpx.TransportError):
            await client.get("/api/status")
    assert (await client.get(f"{PROJECT}/data", params={"state": "inbox"})).json()["image_ids"][-1] == loop.uploads[
        0
    ].image_id


async def test_book_says_what_did_come(loop: LoopServer, client: httpx.AsyncClient) -> None:
    with pytest.raises(TimeoutError, match=r"calls: not 2 of them within 0.05 s; 1 came, the last ones:\n  .*login"):
        await loop.calls.wait(2, within=0.05)


class Node:
    """A socket as nodes have it: the library's own client, with the cookie of a login, noting what it is told."""

    def __init__(self, loop: LoopServer, kind: str) -> None:
        self.loop = loop
        self.kind = kind
        self.told: list[tuple[Any, ...]] = []
        self.socket = socketio.AsyncClient(reconnection=False)
        self.socket.on("*", self._listen)

    async def _listen(self, event: str, *args: Any) -> dict[str, Any]:
        self.told.append((event, *args))
        return {"success": True, "error_msg": None, "payload": event}

    async def __aenter__(self) -> Self:
        headers = {"nodeType": self.kind, "organization": "", "project": ""}
        headers["cookie"] = f"session={self.loop.open_session('ranger')}"
        await self.socket.connect(self.loop.url, headers=headers, socketio_path="/ws/socket.io")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.disconnect()

    async def say(self, event: str, *args: Any, within: float = 10) -> Any:
        return await self.socket.call(event, args, timeout=within)


IDLE: dict[str, Any] = {
    "id": "7", "name": "trainer", "state": "idle", "uptime": None, "errors": {}, "progress": None,
    "pretrained_models": [], "architecture": None, "context": None,
}  # fmt: skip
HAPPY = {"success": True, "error_msg": None, "payload": None}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestSockets:
    async def test_trainer_is_given_a_training_in_the_words_of_all_releases(self, loop: LoopServer) -> None:
        async with Node(loop, "trainer") as trainer:
            assert await trainer.say("update_trainer", IDLE) == HAPPY
            assert await loop.sockets.begin_training(DEMO, 3) == HAPPY | {"payload": "begin_training"}
            assert (await loop.sockets.stop_training())["payload"] == "stop_training"
        (event, organization, project, config), _ = trainer.told
        assert (event, organization, project) == ("begin_training", "zauberzeug", "demo")
        new = {"categories", "hyperparameters", "training_number", "model_variant", "base_model_uuid"}
        assert new | {"id", "resolution", "flip_rl", "flip_ud"} == set(config)
        assert (loop.sockets.given, list(loop.complaints)) == ({(DEMO, "7"): 3}, [])

    async def test_what_the_protocol_does_not_know_is_refused_and_told(self, loop: LoopServer) -> None:
        async with Node(loop, "trainer") as trainer:
            answer = await trainer.say("update_trainer", IDLE | {"state": "asleep"})
            assert answer["success"] is False
            assert "$.state" in answer["error_msg"]
            await trainer.socket.emit("save_model")
            await loop.complaints.wait(2)
        assert list(loop.trainers) == []

    async def test_only_a_detector_comes_without_a_cookie(self, loop: LoopServer) -> None:
        async with Node(loop, "detector") as detector:
            status = {
                "id": "1", "name": "d", "state": "online", "uptime": 1, "model_format": "mocked", "current_model": None,
                "target_model": None, "errors": {}, "operation_mode": "idle",
            }  # fmt: skip
            answer = await detector.say("update_detector", "zauberzeug", "demo", status)
        target = {"target_model_id": MODEL_IDS["1.1"], "target_model_version": "1.1"}
        assert answer["payload"] == target
        stranger = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await stranger.connect(loop.url, headers={"nodeType": "trainer"}, socketio_path="/ws/socket.io")
        await loop.disconnections.wait(1)
        assert [connection.kind for connection in loop.connections] == ["detector"]

    async def test_events_fail_as_they_are_told_to(self, loop: LoopServer) -> None:
        loop.faults.script("update_trainer", Answer(500), Nonsense())
        async with Node(loop, "trainer") as trainer:
            assert (await trainer.say("update_trainer", IDLE))["success"] is False
            assert "success" not in await trainer.say("update_trainer", IDLE)
            assert await trainer.say("update_trainer", IDLE) == HAPPY
            loop.faults.set("update_trainer", Stall())
            with pytest.raises(socketio.exceptions.TimeoutError):
                await trainer.say("update_trainer", IDLE, within=0.1)
            loop.faults.lift()
            await loop.disconnections.wait(1)
        async with Node(loop, "trainer") as trainer:
            loop.faults.script("update_trainer", Reset())
            with pytest.raises(socketio.exceptions.SocketIOError):
                await trainer.say("update_trainer", IDLE, within=0.1)
        assert len(loop.trainers) == 1
