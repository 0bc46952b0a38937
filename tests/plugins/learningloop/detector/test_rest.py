"""The REST routes of a detector, in the spellings of all releases."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import anyio
import httpx
import pytest
from anyio import create_task_group
from loopcore_learningloop import wire
from msgspec import convert

from loopcore.errors import BackendError
from loopcore.testing import NullBackend, make_jpeg, make_picture
from loopcore.types import Box, Frame, FrameInfo, Prediction, SampleInfo

from .conftest import LOOP, Finder, Rig, Start

pytestmark = pytest.mark.anyio

JPEG = make_jpeg(0, 64, 48)
NOON = "2026-05-04T12:00:00+02:00"
ALL = {"autoupload": "all"}
FIELDS = {"/detect": "file", "/upload": "files"}


def picture(index: int = 0) -> dict[str, Any]:
    return {"file": ("a.jpg", make_jpeg(index, 64, 48), "image/jpeg")}


async def kept(rig: Rig, count: int = 1) -> list[SampleInfo]:
    return [sample.info for sample in await rig.receiver.take(count)]


# Detecting


async def test_an_answer_has_whole_boxes_flat_outlines_and_the_ids_of_the_loop(start: Start) -> None:
    async with start() as rig:
        answer = await rig.http.post("/detect", files=picture(), headers={"autoupload": "disabled"})
    assert answer.status_code == 200
    told = answer.json()
    created = datetime.fromisoformat(told.pop("created"))
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60
    assert told == {
        "box_detections": [
            {
                "category_name": "cup", "x": 0, "y": 10, "width": 17, "height": 8,
                "model_name": "1.1", "confidence": 0.45, "category_id": "id of cup",
            }
        ],
        "point_detections": [
            {
                "category_name": "dot", "x": 5.25, "y": 48, "model_name": "1.1", "confidence": 0.9,
                "category_id": "id of dot",
            }
        ],
        "segmentation_detections": [
            {
                "category_name": "shape", "shape": "1,3,10,2,5,8", "model_name": "1.1", "confidence": 0.9,
                "category_id": "id of shape",
            }
        ],
        "classification_detections": [
            {"category_name": "unheard of", "model_name": "1.1", "confidence": 0.9, "category_id": None}
        ],
        "box_annotations": [], "point_annotations": [], "classification_annotation": None,
        "tags": [], "source": None, "state": None,
    }  # fmt: skip


async def test_a_camera_is_named_in_any_spelling(start: Start) -> None:
    spellings: list[dict[str, Any]] = [
        {"headers": {name: "gate"}} for name in ("camera-id", "camera_id", "mac", "Camera-ID")
    ] + [{"params": {name: "gate"}} for name in ("camera-id", "camera_id", "mac")]
    async with start() as rig:
        for index, said in enumerate(spellings):
            answer = await rig.http.post(
                "/detect", files=picture(index), **(said | {"headers": ALL | said.get("headers", {})})
            )
            assert answer.status_code == 200
        assert [info.camera for info in await kept(rig, len(spellings))] == ["gate"] * len(spellings)


async def test_a_creation_date_in_any_spelling_is_the_capture_time(start: Start) -> None:
    names = ("creation-date", "creation_date", "created")
    spellings: list[dict[str, Any]] = [{place: {name: NOON}} for place in ("headers", "params") for name in names]
    async with start() as rig:
        for index, said in enumerate(spellings):
            answer = await rig.http.post(
                "/detect", files=picture(index), **(said | {"headers": ALL | said.get("headers", {})})
            )
            assert answer.json()["created"] == NOON
        times = {info.captured for info in await kept(rig, len(spellings))}
    assert times == {datetime(2026, 5, 4, 10, tzinfo=UTC)}


async def test_a_creation_date_that_nobody_can_read_loses_no_picture(start: Start) -> None:
    async with start() as rig:
        answer = await rig.http.post("/detect", files=picture(), headers=ALL | {"creation-date": "teatime"})
        assert answer.status_code == 200
        assert [info.captured for info in await kept(rig)] == [None]


async def test_tags_and_source_are_answered_and_kept(start: Start) -> None:
    headers = {"tags": "a, b,,c", "source": "g\xe4te".encode(), "camera-id": "c"}
    async with start() as rig:
        answer = await rig.http.post("/detect", files=picture(), headers=headers | ALL)  # type: ignore[arg-type]
        assert answer.json()["source"] == "gäte"
        assert answer.json()["tags"] == ["a", "b", "c", "uncertain", "segmentation_detection"]
        (info,) = await kept(rig)
        assert (info.tags, info.source) == (("a", "b", "c"), "gäte")
        assert info.reasons == ("uncertain", "segmentation_detection")


class Sure(NullBackend):
    """Is as sure as the camera's name says."""

    def _found(self, info: FrameInfo) -> Prediction:
        confidence = 0.9 if info.camera == "sure" else 0.45
        box = Box(label="cup", confidence=confidence, x=0, y=0, width=9, height=9)
        return Prediction(detections=(box,), model=self.model.info.name, model_version=self.model.info.version)


async def test_autoupload_says_what_is_kept(start: Start) -> None:
    cases = [
        (None, "unsure", True), (None, "sure", False),
        ("filtered", "unsure 2", True), ("filtered", "sure", False),
        ("all", "sure", True), ("disabled", "unsure 3", False),
    ]  # fmt: skip
    async with start(backend=Sure) as rig:
        for index, (autoupload, camera, is_kept) in enumerate(cases):
            before = (await rig.node.status())["pipeline"]["kept"]
            headers = {"camera-id": camera} | ({"autoupload": autoupload} if autoupload else {})
            assert (await rig.http.post("/detect", files=picture(index), headers=headers)).status_code == 200
            assert (await rig.node.status())["pipeline"]["kept"] - before == is_kept, (autoupload, camera)


async def test_another_autoupload_is_422_as_from_the_reference(start: Start) -> None:
    async with start() as rig:
        answer = await rig.http.post("/detect", files=picture(), headers={"autoupload": "maybe"})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["header", "autoupload"]
        assert (await rig.node.status())["pipeline"]["frames"] == 0


async def test_a_missing_file_is_422_as_from_the_reference(start: Start) -> None:
    requests: list[dict[str, Any]] = [
        {}, {"content": JPEG, "headers": {"Content-Type": "image/jpeg"}}, {"files": {"nofile": JPEG}},
    ]  # fmt: skip
    async with start() as rig:
        for path, field in FIELDS.items():
            for said in requests:
                answer = await rig.http.post(path, **said)
                assert answer.status_code == 422
                assert answer.json() == {
                    "detail": [{"type": "missing", "loc": ["body", field], "msg": "Field required", "input": None}]
                }


async def test_a_bad_picture_is_4xx_and_json(start: Start) -> None:
    cases = [
        ("/detect", b"", 400), ("/detect", b"no picture", 415), ("/detect", JPEG[:500], 400),
        ("/upload", b"", 400), ("/upload", b"no picture", 415), ("/upload", JPEG[:10], 400),
    ]  # fmt: skip
    async with start() as rig:
        for path, content, status in cases:
            answer = await rig.http.post(path, files={FIELDS[path]: content})
            assert (answer.status_code, answer.json()["error"]) == (status, "FrameError")
            assert isinstance(answer.json()["detail"], str)
        assert (await rig.node.status())["outbox"]["count"] == 0


async def test_a_damaged_form_is_400_and_json(start: Start) -> None:
    async with start() as rig:
        answer = await rig.http.post(
            "/detect", content=b"--b\r\nx", headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
    assert answer.status_code == 400
    assert "damaged" in answer.json()["detail"]


async def test_without_a_model_it_is_503_and_json_and_uploads_are_kept(start: Start) -> None:
    async with start(versions=()) as rig:
        answer = await rig.http.post("/detect", files=picture())
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json() == {"detail": "no model is serving yet", "error": "NotReadyError"}
        assert (await rig.http.get("/about")).json()["model_info"] is None
        assert (await rig.http.get("/model_version")).json() == {
            "current_version": "None", "target_version": "None", "loop_version": "None", "local_versions": [],
            "version_control": "follow_loop",
        }  # fmt: skip
        assert (await rig.http.post("/upload", files={"files": JPEG})).status_code == 200
        await kept(rig)


class Broken(NullBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if frames[0].info.camera is not None:
            raise BackendError("the graph has burnt down")
        return super().infer(frames)


async def test_a_model_that_fails_is_500_and_says_so(start: Start) -> None:
    async with start(backend=Broken) as rig:
        answer = await rig.http.post("/detect", files=picture(), headers={"mac": "gate"})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the graph has burnt down", "error": "BackendError"}


async def test_pictures_that_only_the_reference_reads_are_read(start: Start) -> None:
    from io import BytesIO

    from PIL import Image

    async with start() as rig:
        for format in ("bmp", "webp", "png"):
            file = BytesIO()
            Image.fromarray(make_picture(0, 64, 48)).save(file, format)
            answer = await rig.http.post("/detect", files={"file": ("x", file.getvalue())})
            assert answer.json()["point_detections"][0]["y"] == 48, format


# Uploading


async def test_an_upload_is_answered_as_the_reference_does_and_is_durable_then(start: Start) -> None:
    async with start(sinks=[{"driver": "receiver", "between": "00:00-00:00"}]) as rig:
        files = [("files", ("a.jpg", make_jpeg(1))), ("files", ("b.jpg", make_jpeg(2)))]
        answer = await rig.http.post("/upload", files=files)
        assert (answer.status_code, answer.content) == (200, b'[200,"OK"]')
        assert (await rig.node.status())["outbox"]["count"] == 2


async def test_an_upload_is_tagged_and_has_no_prediction(start: Start) -> None:
    async with start() as rig:
        await rig.http.post("/upload", files={"files": JPEG})
        (info,) = await kept(rig)
    assert (info.tags, info.prediction, info.annotations, info.urgent) == (("picked_by_system",), None, None, False)


async def test_what_is_said_of_an_upload_comes_as_header_or_query(start: Start) -> None:
    said = {"source": "gate", "creation_date": NOON, "upload_priority": "true", "tags": "x,y", "mac": "c1"}
    async with start() as rig:
        await rig.http.post("/upload", files={"files": make_jpeg(1)}, headers=said)
        await rig.http.post("/upload", files={"files": make_jpeg(2)}, params=said)
        for info in await kept(rig, 2):
            assert (info.source, info.camera, info.urgent) == ("gate", "c1", True)
            assert info.captured == datetime(2026, 5, 4, 10, tzinfo=UTC)
            assert info.tags == ("x", "y", "picked_by_system")


@pytest.mark.parametrize("field", ["detections", "metadata"])
async def test_an_upload_brings_detections_and_a_bad_one_is_left_out_with_a_note(start: Start, field: str) -> None:
    box = {"category_name": "cup", "x": 1.5, "y": 2, "width": 3, "height": 4, "model_name": "7", "confidence": 0.5}
    metadata = {"box_detections": [box, box | {"x": "left"}], "state": "trash", "tags": ["a"]}
    async with start() as rig:
        answer = await rig.http.post("/upload", files={"files": JPEG}, data={field: json.dumps(metadata)})
        assert (answer.status_code, answer.content) == (200, b'[200,"OK"]')
        assert answer.headers["X-Notes"].startswith("box_detections[1] is left out: ")
        (info,) = await kept(rig)
    assert info.prediction is not None
    assert info.prediction.detections == (Box(label="cup", confidence=0.5, x=1.5, y=2, width=3, height=4),)
    assert (info.prediction.model_version, info.state) == ("7", "trash")


async def test_of_several_images_the_good_ones_are_kept_and_the_answer_says_how_many(start: Start) -> None:
    files = [
        ("files", ("a.jpg", make_jpeg(1))),
        ("files", ("b.txt", b"no picture")),
        ("files", ("c.jpg", make_jpeg(2))),
    ]
    async with start() as rig:
        answer = await rig.http.post("/upload", files=files)
        assert answer.status_code == 415
        assert answer.json()["detail"].startswith("2 of 3 images are kept; 'b.txt' is not: ")
        await kept(rig, 2)


async def test_a_priority_that_is_neither_yes_nor_no_is_422(start: Start) -> None:
    async with start() as rig:
        for word in ("maybe", "2", " "):
            answer = await rig.http.post("/upload", files={"files": JPEG}, params={"upload_priority": word})
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["query", "upload_priority"]


async def test_an_upload_that_cannot_be_stored_is_told(start: Start) -> None:
    closed = [{"driver": "receiver", "between": "00:00-00:00"}]
    async with start(sinks=closed, outbox={"min_free": 0, "max_count": 1, "when_full": "reject"}) as rig:
        assert (await rig.http.post("/upload", files={"files": make_jpeg(1)})).status_code == 200
        answer = await rig.http.post("/upload", files={"files": make_jpeg(2)})
        assert (answer.status_code, answer.json()["error"]) == (507, "OutboxFullError")
        assert (await rig.http.post("/detect", files=picture(3), headers=ALL)).status_code == 507


# The model and the modes


async def test_about_tells_the_model_as_the_reference_does(start: Start) -> None:
    async with start() as rig:
        told = (await rig.http.get("/about")).json()
    model = told.pop("model_info")
    assert told == {
        "operation_mode": "idle", "state": "online", "target_model": None, "version_control": "follow_loop",
    }  # fmt: skip
    assert model.keys() == {
        "id", "host", "organization", "project", "version", "categories", "resolution", "model_root_path",
        "model_size", "conf_threshold",
    }  # fmt: skip
    assert convert(model, wire.ModelInformation).version == "1.1"


async def test_a_version_is_chosen_and_given_back(start: Start) -> None:
    async with start() as rig:
        assert (await rig.http.put("/model_version", content="1.0")).json() == "OK"
        told = (await rig.http.get("/model_version")).json()
        assert told == {
            "current_version": "1.0", "target_version": "1.0", "loop_version": "None",
            "local_versions": told["local_versions"], "version_control": "specific_version",
        }  # fmt: skip
        assert sorted(told["local_versions"]) == ["1.0", "1.1"]
        assert (await rig.http.get("/about")).json()["target_model"] == "1.0"
        assert (await rig.http.put("/model_version", data={"follow_loop": ""})).status_code == 400
        for word, mode in (("pause", "pause"), ('"follow_loop"', "follow_loop")):
            assert (await rig.http.put("/model_version", content=word)).json() == "OK"
            assert (await rig.http.get("/model_version")).json()["version_control"] == mode


async def test_a_bad_choice_is_400_and_changes_nothing(start: Start) -> None:
    async with start() as rig:
        before = (await rig.http.get("/model_version")).json()
        for word in ("nonsense", "1.0.x", "", "../1.0", "follow_loop; pause"):
            answer = await rig.http.put("/model_version", content=word)
            assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid version number")
        for word in ("7.7", "1" * 5000):
            assert (await rig.http.put("/model_version", content=word)).status_code == 400
        assert (await rig.http.get("/model_version")).json() == before


async def test_operation_modes_hold_updates(start: Start) -> None:
    async with start() as rig:
        for mode, held in (("detecting", True), ("startup", True), ("idle", False)):
            assert (await rig.http.put("/operation_mode", content=mode)).json() == "OK"
            answer = await rig.http.get("/operation_mode")
            assert (answer.text, answer.headers["content-type"]) == (mode, "text/plain; charset=utf-8")
            assert (await rig.node.status())["updates_held"] is held
        answer = await rig.http.put("/operation_mode", content="xx")
        assert (answer.status_code, answer.json()["detail"]) == (422, "'xx' is not a valid OperationMode")


async def test_outbox_modes_stop_and_resume_sending(start: Start) -> None:
    async with start() as rig:
        assert (await rig.http.get("/outbox_mode")).text == "continuous_upload"
        assert (await rig.http.put("/outbox_mode", content="stopped")).json() == "OK"
        assert (await rig.http.get("/outbox_mode")).text == "stopped"
        assert (await rig.http.post("/upload", files={"files": JPEG})).status_code == 200
        assert not rig.receiver.taken
        assert (await rig.http.put("/outbox_mode", content="continuous_upload")).json() == "OK"
        await kept(rig)
        answer = await rig.http.put("/outbox_mode", content="xx")
        assert answer.status_code == 422
        assert answer.json()["detail"] == "Could not set outbox mode: 'xx' is not a valid OutboxMode"


async def test_debug_logging_goes_on_and_off(start: Start) -> None:
    log = logging.getLogger("loopcore")
    async with start() as rig:
        assert (await rig.http.put("/debug_logging", content="on")).json() == "on"
        assert log.level == logging.DEBUG
        assert (await rig.http.put("/debug_logging", content="off")).json() == "off"
        assert log.level == logging.NOTSET
        answer = await rig.http.put("/debug_logging", content="xx")
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid state")


async def test_the_loop_can_be_left_alone(start: Start) -> None:
    from loopcore_learningloop.platform import Platform

    from loopcore.abc import DeploymentTarget

    async with start() as rig:
        (platform,) = [driver for driver in rig.drivers if isinstance(driver, Platform)]
        deployment: Any = await platform.capability(DeploymentTarget)
        assert (await rig.http.put("/socketio", content="off")).json() == "off"
        assert deployment.muted
        assert (await rig.http.put("/socketio", content="on")).json() == "on"
        assert not deployment.muted
        assert (await rig.http.put("/socketio", content="xx")).status_code == 400


async def test_reset_is_a_backdoor_and_loses_nothing(start: Start) -> None:
    async with start() as rig:
        assert (await rig.http.post("/reset")).status_code == 404
        assert "/reset" not in (await rig.http.get("/openapi.json")).json()["paths"]
    async with start(versions=(), platforms=[LOOP | {"backdoor": True}]) as rig:
        await rig.http.put("/outbox_mode", content="stopped")
        await rig.http.put("/operation_mode", content="detecting")
        await rig.http.put("/model_version", content="1.0")
        assert (await rig.http.post("/upload", files={"files": JPEG})).status_code == 200
        answer = await rig.http.post("/reset")
        assert (answer.status_code, answer.json()) == (200, True)
        assert (await rig.http.get("/operation_mode")).text == "idle"
        assert (await rig.http.get("/model_version")).json()["version_control"] == "follow_loop"
        assert [info.tags for info in await kept(rig)] == [("picked_by_system",)]


# The server around


async def test_the_description_names_what_answers(start: Start) -> None:
    async with start(platforms=[LOOP | {"backdoor": True}]) as rig:
        paths = (await rig.http.get("/openapi.json")).json()["paths"]
        page = await rig.http.get("/docs")
        for path, operations in paths.items():
            for method in ("get", "post", "put", "delete"):
                answer = await rig.http.request(method, path)
                assert (answer.status_code != 405) == (method in operations), (method, path)
                assert path in page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_what_is_not_there_is_told_as_by_the_reference(start: Start) -> None:
    async with start() as rig:
        below = await rig.http.get("/detect/more")
        verb = await rig.http.get("/detect")
        slash = await rig.http.get("/about/")
        head = await rig.http.head("/about")
    assert (below.status_code, below.json()) == (404, {"detail": "Not Found"})
    assert (verb.status_code, verb.headers["allow"]) == (405, "POST")
    assert verb.json() == {"detail": "Method Not Allowed"}
    assert slash.status_code == head.status_code == 200
    assert not head.content


async def test_no_other_page_may_call_and_no_answer_is_for_all(start: Start) -> None:
    async with start() as rig:
        foreign = await rig.http.put("/model_version", content="pause", headers={"Origin": "http://evil.example"})
        own = await rig.http.get("/about")
        socket = await rig.http.get("/ws/socket.io/?EIO=4&transport=polling")
    assert foreign.status_code == 403
    assert socket.status_code == 200
    for answer in (foreign, own, socket):
        assert not [name for name in answer.headers if name.startswith("access-control")]


class Gated(Finder):
    """Looks at one frame at a time, and not before the gate is open."""

    max_overlap = max_batch = 1
    gate = threading.Event()
    seen: ClassVar[list[str | None]] = []

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if frames[0].info.camera:
            assert self.gate.wait(20)
        self.seen.append(frames[0].info.camera)
        return super().infer(frames)


async def test_a_client_that_has_gone_is_worked_for_no_longer(start: Start) -> None:
    async def ask(camera: str) -> None:
        async with httpx.AsyncClient(base_url=rig.url) as client:
            await client.post("/detect", files=picture(), headers={"mac": camera})

    async def until_waiting(count: int) -> None:
        while (await rig.node.status())["pipeline"]["waiting"] != count:
            await anyio.lowlevel.checkpoint()

    async with start(backend=Gated) as rig, create_task_group() as staying:
        staying.start_soon(ask, "first")
        while not (await rig.node.status())["pipeline"]["running"]:
            await anyio.lowlevel.checkpoint()
        async with create_task_group() as leaving:
            leaving.start_soon(ask, "second")
            await until_waiting(1)
            leaving.cancel_scope.cancel()
        await until_waiting(0)
        Gated.gate.set()
        await ask("third")
    assert Gated.seen[-2:] == ["first", "third"]


async def test_a_form_in_pieces_is_read(start: Start) -> None:
    request = httpx.Request("POST", "http://x", files=picture())
    body = request.read()

    async def pieces() -> Any:
        for at in range(0, len(body), 700):
            yield body[at : at + 700]

    async with start() as rig:
        answer = await rig.http.post(
            "/detect", content=pieces(), headers={"Content-Type": request.headers["Content-Type"]}
        )
    assert answer.status_code == 200
