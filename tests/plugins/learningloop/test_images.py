"""Images of a Loop come many at a time, checked, with all that is known of them; none is passed over in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from loop import DEMO, Answer, LoopServer, LoseAnswer, Nonsense, Reset, fill, picture
from loop import Project as Stored
from loopcore_learningloop import fetching
from loopcore_learningloop.client import Loop
from loopcore_learningloop.images import Images
from loopcore_learningloop.options import LoopOptions
from loopcore_learningloop.packages import EXTRA
from loopcore_learningloop.projects import Project

from loopcore.abc import StoredImage
from loopcore.errors import AuthError, RejectedError, RemoteError, RetryableError, StorageError
from loopcore.options import Secret
from loopcore.types import Box, Classification, ModelInfo, Point, Prediction, Segmentation

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_S", 0.0)


@pytest.fixture
async def client(loop: LoopServer) -> AsyncGenerator[Loop]:
    async with Loop(LoopOptions(url=loop.url, username="ranger", password=Secret("krill")), connections=40) as client:
        yield client


@pytest.fixture
def images(client: Loop) -> Images:
    return Images(Project(client, "zauberzeug", "demo"))


@pytest.fixture
def demo(loop: LoopServer) -> Stored:
    return loop.store[DEMO]


async def brought(images: Images, into: Path, ids: list[str]) -> dict[str, StoredImage]:
    got: list[StoredImage] = []
    with anyio.fail_after(30):
        await images.fetch(ids, into, got.append)
    assert Counter(image.id for image in got) == Counter(dict.fromkeys(ids, 1).keys())
    return {image.id: image for image in got}


async def test_ids_come_by_state_in_a_stable_order_and_without_repetition(images: Images, demo: Stored) -> None:
    by_state = {
        state: [one.id for one in demo.images.values() if one.state == state] for state in ("inbox", "complete")
    }
    assert await images.images(["complete"]) == by_state["complete"]
    assert await images.images(["inbox", "complete", "inbox"]) == by_state["inbox"] + by_state["complete"]
    assert set(await images.images()) == set(demo.images)


async def test_everything_that_is_known_of_an_image_comes_with_it(images: Images, demo: Stored, tmp_path: Path) -> None:
    box, point, area, day = (one["id"] for one in demo.categories)
    corners = [{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 1, "y": 7}]
    full = demo.add_image(
        picture(1, width=80, height=60),
        state="complete",
        set="val",
        box_annotations=[{"category_id": box, "x": 1.5, "y": 2, "width": 3, "height": 4}],
        point_annotations=[{"category_id": point, "x": 9, "y": 8.5}],
        segmentation_annotations=[{"category_id": area, "shape": {"points": corners}}],
        classification_annotation={"category_id": day},
        tags=[{"id": "1", "name": "north"}, {"id": "2", "name": "night"}],
    )
    empty = demo.add_image(picture(2), state="complete", set="other")
    fresh = demo.add_image(picture(3), state="inbox")
    got = await brought(images, tmp_path, [full.id, empty.id, fresh.id])
    assert got[full.id] == StoredImage(
        id=full.id,
        file=f"{full.id}.jpg",
        width=80,
        height=60,
        set="val",
        state="complete",
        tags=("north", "night"),
        annotations=(
            Box(label="white box", x=1.5, y=2, width=3, height=4),
            Point(label="purple point", x=9, y=8.5),
            Segmentation(label="red area", points=((1, 2), (5, 2), (1, 7))),
            Classification(label="grey day"),
        ),
    )
    assert (got[empty.id].annotations, got[empty.id].set) == ((), None)
    assert got[fresh.id].annotations is None
    assert (tmp_path / f"{full.id}.jpg").read_bytes() == full.jpeg


async def test_hundreds_come_in_calls_of_a_hundred_at_most(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path
) -> None:
    fill(demo, complete=230)
    ids = list(demo.images)
    got = await brought(images, tmp_path, ids)
    assert all(image.file for image in got.values())
    asked = [len(call.query["ids"].split(",")) for call in loop.arrivals if call.name == "images"]
    assert sorted(asked) == [len(ids) - 200, 100, 100]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"{image.id}.jpg": image.jpeg for image in demo.images.values()
    }


async def test_what_is_here_and_sound_is_not_downloaded_again(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path
) -> None:
    first, second, *_ = demo.images
    await brought(images, tmp_path, [first, second])
    whole = (tmp_path / f"{first}.jpg").read_bytes()
    (tmp_path / f"{first}.jpg").write_bytes(whole[: len(whole) // 2])
    before = len(loop.arrivals)
    got = await brought(images, tmp_path, [first, second])
    assert all(image.file for image in got.values())
    assert [call.path.split("/")[-2] for call in loop.arrivals[before:] if call.name == "image"] == [first]
    assert (tmp_path / f"{first}.jpg").read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"<html>", "neither a JPEG nor a PNG"),
        (picture(1)[:-1], "cut off"),
        (picture(1)[:300], "damaged"),
    ],
)
async def test_picture_that_is_none_is_counted_and_leaves_no_file(
    images: Images, demo: Stored, tmp_path: Path, content: bytes, why: str
) -> None:
    first, second, *_ = demo.images
    demo.images[first].jpeg = content
    got = await brought(images, tmp_path, [first, second])
    assert got[first].file is None
    assert why in (got[first].missing or "")
    assert [path.name for path in tmp_path.iterdir()] == [f"{second}.jpg"]


async def test_image_that_the_loop_does_not_have_is_told(
    images: Images, demo: Stored, loop: LoopServer, tmp_path: Path
) -> None:
    first, second, *_ = demo.images
    loop.faults.set("image", Answer(404), when=lambda call: second in call.path)
    odd = ["../../etc/passwd", "", "a" * 300, "a,b"]
    got = await brought(images, tmp_path, [first, "gone", second, *odd])
    assert {id: image.missing for id, image in got.items() if image.missing} == {
        "gone": "the Loop knows no such image",
        second: "the Loop has no picture of it",
        **dict.fromkeys(odd, "its id cannot be the name of a file"),
    }


@pytest.mark.parametrize("fault", [Answer(500), Answer(429, {"retry-after": "0"}), Reset(), LoseAnswer(100)], ids=str)
async def test_picture_that_fails_now_and_then_comes_in_the_end(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path, fault: Any
) -> None:
    loop.faults.script("image", *[fault, None] * 5)
    loop.faults.script("images", fault)
    loop.faults.script("project", fault)
    got = await brought(images, tmp_path, list(demo.images))
    assert all(image.file for image in got.values())


@pytest.mark.parametrize("fault", [Answer(500), Answer(422), Answer(404, {"content-type": "text/html"}, b"")], ids=str)
async def test_picture_that_never_comes_while_others_do_is_missing_with_the_reason(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path, fault: Answer
) -> None:
    bad, *_ = demo.images
    loop.faults.set("image", fault, when=lambda call: bad in call.path)
    got = await brought(images, tmp_path, list(demo.images))
    assert [image.id for image in got.values() if image.missing] == [bad]
    assert str(fault.status) in (got[bad].missing or "")


@pytest.mark.parametrize("fault", [Answer(500), Reset()], ids=str)
async def test_loop_that_gives_no_picture_at_all_is_an_error(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path, fault: Any
) -> None:
    loop.faults.set("image", fault)
    with anyio.fail_after(30), pytest.raises(RetryableError):
        await images.fetch(list(demo.images), tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Answer(500), RetryableError),
        (Answer(404), RetryableError),
        (Reset(), RetryableError),
        (Nonsense(), RetryableError),
        (Nonsense(b'{"images": [{"id": 7}]}'), RetryableError),
        (Answer(403), AuthError),
        (Answer(422), RejectedError),
    ],
    ids=str,
)
async def test_images_of_which_nothing_can_be_learned_are_an_error_and_none_is_passed_over(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path, fault: Any, error: type[RemoteError]
) -> None:
    loop.faults.set("images", fault)
    with anyio.fail_after(30), pytest.raises(error):
        await images.fetch(list(demo.images), tmp_path, lambda _: None)


async def test_asking_again_goes_on_from_what_came(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path
) -> None:
    fill(demo, complete=200)
    ids = list(demo.images)
    loop.faults.set("images", Answer(500), when=lambda call: ids[-1] in call.query["ids"])
    with pytest.raises(RetryableError):
        await images.fetch(ids, tmp_path, lambda _: None)
    here = {path.stem for path in tmp_path.iterdir()}
    loop.faults.lift()
    before = len(loop.arrivals)
    await brought(images, tmp_path, ids)
    asked = {call.path.split("/")[-2] for call in loop.arrivals[before:] if call.name == "image"}
    assert asked == set(ids) - here


async def test_cancelled_fetch_leaves_whole_files_alone(
    loop: LoopServer, images: Images, demo: Stored, tmp_path: Path
) -> None:
    fill(demo, complete=100)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(images.fetch, list(demo.images), tmp_path, lambda _: None)
        await loop.arrivals.until(lambda call: call.name == "image")
        tasks.cancel_scope.cancel()
    by_id = demo.images
    assert all(path.read_bytes() == by_id[path.stem].jpeg for path in tmp_path.iterdir())


async def test_disk_that_refuses_is_an_error(images: Images, demo: Stored, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        await images.fetch(list(demo.images), tmp_path / "absent", lambda _: None)


async def test_nothing_to_fetch_is_nothing(images: Images, tmp_path: Path) -> None:
    assert await brought(images, tmp_path, []) == {}


async def test_annotations_cannot_be_set(images: Images) -> None:
    with pytest.raises(RejectedError, match="of its people only"):
        await images.add("some-image", [])


MODEL = ModelInfo(name="demo", version="1.3", format="onnx")


async def test_predictions_go_in_calls_of_a_hundred_with_ids_of_categories(
    loop: LoopServer, images: Images, demo: Stored
) -> None:
    fill(demo, complete=230)
    shapes = (
        Box(label="white box", confidence=0.5, x=1.4, y=2.6, width=3, height=4),
        Point(label="purple point", confidence=0.25, x=1.5, y=2.5),
        Segmentation(label="red area", points=((1.2, 2), (5, 2), (1, 7))),
        Classification(label="grey day", confidence=1),
    )
    await images.predictions({id: Prediction(detections=shapes) for id in demo.images}, MODEL)
    assert [len(upload.items) for upload in loop.detections] == [100, 100, len(demo.images) - 200]
    ids = {one["name"]: one["id"] for one in demo.categories}
    assert loop.detections[0].items[0] == {
        "image_id": next(iter(demo.images)),
        "box_detections": [
            {"category_name": "white box", "category_id": ids["white box"], "model_name": "1.3", "confidence": 0.5}
            | {"x": 1, "y": 3, "width": 3, "height": 4}
        ],
        "point_detections": [
            {"category_name": "purple point", "category_id": ids["purple point"], "model_name": "1.3"}
            | {"confidence": 0.25, "x": 1.5, "y": 2.5}
        ],
        "segmentation_detections": [
            {"category_name": "red area", "category_id": ids["red area"], "model_name": "1.3", "confidence": 1.0}
            | {"shape": {"points": [{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 1, "y": 7}]}}
        ],
        "classification_detections": [
            {"category_name": "grey day", "category_id": ids["grey day"], "model_name": "1.3", "confidence": 1}
        ],
    }
    assert len(loop.complaints) == 0


async def test_model_of_the_loop_brings_the_ids_of_its_categories(
    loop: LoopServer, images: Images, demo: Stored
) -> None:
    told = {"id": "m", "organization": "zauberzeug", "project": "demo", "version": "1.3"}
    told["categories"] = [{"id": "its-own", "name": "white box"}]  # type: ignore[assignment]
    box = Box(label="white box", x=0, y=0, width=9, height=9)
    await images.predictions(
        {next(iter(demo.images)): Prediction(detections=(box,))},
        ModelInfo(name="demo", version="1.3", format="onnx", extra={EXTRA: json.loads(json.dumps(told))}),
    )
    assert loop.detections[0].items[0]["box_detections"][0]["category_id"] == "its-own"
    assert not [call for call in loop.arrivals if call.name == "project"]


async def test_predictions_that_are_refused_say_so(loop: LoopServer, images: Images) -> None:
    with pytest.raises(RejectedError):
        await images.predictions({"of-another-project": Prediction()}, MODEL)
    loop.faults.script("detections", Answer(500))
    with pytest.raises(RetryableError):
        await images.predictions({"any": Prediction()}, MODEL)
