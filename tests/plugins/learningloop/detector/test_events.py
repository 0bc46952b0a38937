"""The Socket.IO events of a detector, in the spellings of all releases, from the client library that is in use."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import socketio
from loopcore_learningloop.translation import SAID

from loopcore.testing import NullBackend, make_jpeg, make_picture
from loopcore.types import Box, Frame, Point, Prediction, SampleInfo, Segmentation

from .conftest import Rig, Start

pytestmark = pytest.mark.anyio

JPEG = make_jpeg(0, 64, 48)
PIXELS = make_picture(0, 64, 48)
NOON = "2026-05-04T12:00:00+02:00"
CUP = {"category_name": "cup", "x": 1.6, "y": 2, "width": 3, "height": 4, "confidence": 0.5, "model_name": "7"}
DETECTIONS = {"box_detections": [CUP]}
OK = {"status": "OK"}


def raw(pixels: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"bytes": pixels.tobytes(), "dtype": "uint8", "shape": list(pixels.shape), **more}


async def call(client: socketio.AsyncClient, event: str, *payload: Any) -> Any:
    return await client.call(event, *payload, timeout=20)


async def kept(rig: Rig, count: int = 1) -> list[SampleInfo]:
    return [sample.info for sample in await rig.receiver.take(count)]


async def test_images_of_all_releases_are_looked_at(start: Start) -> None:
    images: dict[str, Any] = {
        "bytes of a JPEG": JPEG,
        "jpeg": {"format": "jpeg", "bytes": JPEG},
        "jpeg with the rest": {"format": "jpeg", "bytes": JPEG, "dtype": None, "shape": None},
        "raw": raw(PIXELS, format="raw"),
        "raw by default": raw(PIXELS),
        "grey": raw(PIXELS[:, :, 0]),
        "grey with an axis": raw(PIXELS[:, :, :1]),
        "with transparency": raw(np.dstack([PIXELS, PIXELS[:, :, :1]])),
    }
    async with start() as rig, rig.client() as client:
        found = {name: await call(client, "detect", {"image": image}) for name, image in images.items()}
        found["nothing but the bytes"] = await call(client, "detect", JPEG)
        assert {name: ack.get("point_detections", ack)[0]["y"] for name, ack in found.items()} == dict.fromkeys(
            found, 48
        )


async def test_what_is_said_of_an_image_comes_in_any_spelling(start: Start) -> None:
    said = [
        {"camera_id": "c", "creation_date": NOON},
        {"camera-id": "c", "creation-date": NOON},
        {"mac": "c", "creation_date": NOON.replace("T", "_")},
    ]
    async with start() as rig, rig.client() as client:
        for index, words in enumerate(said):
            payload = {"image": make_jpeg(index), "tags": ["a"], "source": "gate", "autoupload": "all", **words}
            ack = await call(client, "detect", payload)
            assert (ack["source"], ack["tags"][0]) == ("gate", "a")
            assert ack["created"] in words.values()
        for info in await kept(rig, 3):
            assert (info.camera, info.source, info.tags) == ("c", "gate", ("a",))
            assert info.captured == datetime(2026, 5, 4, 10, tzinfo=UTC)


async def test_an_array_that_is_kept_is_a_jpeg_of_its_size(start: Start) -> None:
    async with start() as rig, rig.client() as client:
        await call(client, "detect", {"image": raw(PIXELS), "autoupload": "all"})
        (info,) = await kept(rig)
    assert (info.media, info.width, info.height) == ("image/jpeg", 64, 48)


async def test_autoupload_that_nobody_knows_uploads_nothing_and_null_is_the_default(start: Start) -> None:
    async with start() as rig, rig.client() as client:
        for autoupload, expected in (("maybe", 0), (["all"], 0), ("disabled", 0), (None, 1), ("all", 2)):
            image = make_jpeg(expected)
            assert "error" not in await call(client, "detect", {"image": image, "autoupload": autoupload})
            assert (await rig.node.status())["pipeline"]["kept"] == expected, autoupload


@pytest.mark.parametrize("event", ["detect", "upload"])
async def test_a_bad_image_is_answered_with_an_error(start: Start, event: str) -> None:
    bad: list[Any] = [
        None, 7, "image", [], {}, {"image": None}, {"image": "text"}, {"image": {}}, {"image": {"bytes": JPEG}},
        {"image": {"bytes": "text", "shape": [1, 1, 3]}},
        {"image": raw(PIXELS) | {"dtype": "float32"}}, {"image": raw(PIXELS) | {"shape": [64, 48]}},
        {"image": raw(PIXELS) | {"shape": [-48, -64, 3]}}, {"image": raw(PIXELS) | {"shape": [48, 64, "3"]}},
        {"image": raw(PIXELS) | {"shape": [48, 32, 6]}}, {"image": raw(PIXELS) | {"format": "png"}},
        {"image": {"format": "jpeg", "bytes": b"no picture"}}, {"image": b"no picture"}, {"image": JPEG[:10]}, b"",
    ]  # fmt: skip
    async with start() as rig, rig.client() as client:
        for payload in bad:
            ack = await call(client, event, payload)
            assert ack.keys() == {"error"}, payload
        assert "could not parse image from data" in (await call(client, event, {}))["error"]
        assert (await rig.node.status())["outbox"]["count"] == 0


async def test_a_batch_is_answered_in_order_and_fails_as_one(start: Start) -> None:
    sizes = [(64, 48), (32, 24), (80, 60)]
    async with start(inference={"queue": 8}) as rig, rig.client() as client:
        images = [{"format": "jpeg", "bytes": make_jpeg(0, *size)} for size in sizes] * 5
        ack = await call(client, "batch_detect", {"images": images, "tags": ["a"], "camera_id": "c"})
        assert [item["point_detections"][0]["y"] for item in ack["items"]] == [48, 24, 60] * 5
        assert all("a" in item["tags"] for item in ack["items"])
        assert await call(client, "batch_detect", {"images": []}) == {"items": []}
        for bad in ({}, {"images": None}, {"images": [JPEG, b""]}, {"images": [{}]}, {"images": [b"x"] * 257}):
            assert (await call(client, "batch_detect", bad)).keys() == {"error"}


async def test_info_tells_the_model_or_that_there_is_none(start: Start) -> None:
    async with start() as rig, rig.client() as client:
        model = await call(client, "info")
        assert (model["id"], model["version"], model["model_size"]) == ("uuid of 1.1", "1.1", None)
        assert model["categories"][0]["name"] == "cup"
        assert (await call(client, "about"))["model_info"] == model
        assert await call(client, "about") == (await rig.http.get("/about")).json()
        assert await call(client, "get_model_version") == (await rig.http.get("/model_version")).json()


async def test_without_a_model_the_answer_is_an_error_and_uploads_are_kept(start: Start) -> None:
    async with start(versions=()) as rig, rig.client() as client:
        assert await call(client, "info") == {"status": "No model loaded"}
        assert "detector not yet initialized" in (await call(client, "detect", {"image": JPEG}))["error"]
        assert "error" in await call(client, "soft_reload")
        assert await call(client, "upload", {"image": JPEG}) == OK
        await kept(rig)


async def test_modes_are_set_and_told(start: Start) -> None:
    async with start() as rig, rig.client() as client:
        assert await call(client, "set_model_version_mode", "1.0") == OK
        assert (await call(client, "get_model_version"))["current_version"] == "1.0"
        before = await call(client, "get_model_version")
        for word in ("nonsense", None, {}, "7.7"):
            assert (await call(client, "set_model_version_mode", word)).keys() == {"error"}
        assert await call(client, "get_model_version") == before
        assert await call(client, "set_outbox_mode", "stopped") == OK
        assert await call(client, "get_outbox_mode") == {"outbox_mode": "stopped"}
        assert await call(client, "set_outbox_mode", "xx") == {"error": "'xx' is not a valid OutboxMode"}


class Counting(NullBackend):
    made = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Counting.made += 1


async def test_soft_reload_loads_the_model_anew(start: Start) -> None:
    async with start(backend=Counting) as rig, rig.client() as client:
        before = Counting.made
        assert await call(client, "soft_reload") == OK
        assert Counting.made == before + 1


async def test_an_event_that_nobody_knows_is_answered(start: Start) -> None:
    async with start() as rig, rig.client() as client:
        assert "there is no event 'restart'" in (await call(client, "restart", {"x": 1}))["error"]


class Unforeseen(NullBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if frames[0].info.source is not None:
            raise ZeroDivisionError("oh")
        return super().infer(frames)


async def test_a_backend_that_breaks_its_contract_is_an_answer(start: Start) -> None:
    async with start(backend=Unforeseen) as rig, rig.client() as client:
        assert "ZeroDivisionError" in (await call(client, "detect", {"image": JPEG, "source": "s"}))["error"]
        assert "error" not in await call(client, "detect", {"image": JPEG})


# Uploading


async def test_uploads_of_all_releases_are_kept_with_what_is_said(start: Start) -> None:
    box = Box(label="cup", confidence=0.5, x=1.6, y=2, width=3, height=4)
    old = {"detections": DETECTIONS, "tags": ["a"], "source": "gate", "creation_date": NOON, "mac": "c"}
    new = {"metadata": {**DETECTIONS, "tags": ["a"], "source": "gate", "created": NOON}, "camera_id": "c"}
    rosys = {"metadata": {**DETECTIONS, "tags": ["a"], "source": "gate", "creation_date": NOON, "camera-id": "c"}}
    async with start() as rig, rig.client() as client:
        for index, said in enumerate((old, new, rosys)):
            assert await call(client, "upload", {"image": {"format": "jpeg", "bytes": make_jpeg(index)}, **said}) == OK
        for info in await kept(rig, 3):
            assert info.prediction is not None
            assert (info.prediction.detections, info.prediction.model_version) == ((box,), "7")
            assert (info.tags, info.source, info.camera) == (("a", "picked_by_system"), "gate", "c")
            assert info.captured == datetime(2026, 5, 4, 10, tzinfo=UTC)
            assert info.annotations is None


async def test_an_upload_can_be_urgent_annotated_and_for_a_state(start: Start) -> None:
    metadata = {
        "box_annotations": [{"category_name": "cup", "x": 1, "y": 2, "width": 3, "height": 4, "category_id": "i"}],
        "point_annotations": [{"category_name": "dot", "x": 1.5, "y": 2}],
        "classification_annotation": {"category_name": "scene"},
        "state": "trash",
    }
    async with start() as rig, rig.client() as client:
        await call(client, "upload", {"image": raw(PIXELS), "metadata": metadata, "upload_priority": True})
        (info,) = await kept(rig)
    assert (info.urgent, info.state) == (True, "trash")
    assert [type(one).__name__ for one in info.annotations or ()] == ["Box", "Point", "Classification"]
    assert info.prediction is not None
    assert info.prediction.extra == {SAID: {"cup": "i"}}


async def test_one_bad_field_loses_neither_the_picture_nor_the_rest(start: Start) -> None:
    corners = [{"x": 0, "y": 0}, {"x": 9.5, "y": 0}, {"x": 9, "y": 9}]
    metadata = {
        "box_detections": [CUP, CUP | {"width": "wide"}, CUP | {"confidence": 7}, "box", None, CUP | {"x": 1e400}],
        "point_detections": {"category_name": "dot", "x": "1.5", "y": 2, "confidence": 1},
        "segmentation_detections": [
            {"category_name": "s", "shape": "0,0,9.5,0,9,9", "confidence": 0.2},
            {"category_name": "s", "shape": {"points": corners}, "confidence": 0.2},
            {"category_name": "s", "shape": "0,0,9", "confidence": 0.2},
        ],
        "classification_detections": 7,
        "tags": None, "created": "teatime", "source": ["x"], "unknown": {},
    }  # fmt: skip
    async with start() as rig, rig.client() as client:
        ack = await call(client, "upload", {"image": JPEG, "metadata": metadata})
        (info,) = await kept(rig)
    assert ack["status"] == "OK"
    assert len(ack["notes"]) == 9
    outline = Segmentation(label="s", confidence=0.2, points=((0, 0), (9.5, 0), (9, 9)))
    assert info.prediction is not None
    assert info.prediction.detections == (
        Box(label="cup", confidence=0.5, x=1.6, y=2, width=3, height=4),
        Point(label="dot", confidence=1, x=1.5, y=2),
        outline,
        outline,
    )
    assert (info.tags, info.captured, info.source) == (("picked_by_system",), None, None)


async def test_an_upload_that_cannot_be_stored_is_an_error(start: Start) -> None:
    closed = [{"driver": "receiver", "between": "00:00-00:00"}]
    outbox = {"min_free": 0, "max_count": 1, "when_full": "reject"}
    async with start(sinks=closed, outbox=outbox) as rig, rig.client() as client:
        assert await call(client, "upload", {"image": make_jpeg(1)}) == OK
        assert (await call(client, "upload", {"image": make_jpeg(2)})).keys() == {"error"}
        assert (await call(client, "detect", {"image": make_jpeg(3), "autoupload": "all"})).keys() == {"error"}
