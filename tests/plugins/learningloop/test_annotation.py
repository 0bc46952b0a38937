"""The annotator's role at the Loop: strokes come, outlines go back, and finished objects become annotations."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import cv2
import numpy as np
import pytest
from anyio import create_task_group, fail_after, to_thread
from loop import ANNOTATOR, ANNOTATOR_IMAGE, Answer, LoopServer, Nonsense
from loopcore_learningloop import annotation, sockets, visits
from loopcore_learningloop.annotation import Desk, svg_of
from loopcore_learningloop.client import Loop
from loopcore_learningloop.options import PlatformOptions

from loopcore import Secret
from loopcore.abc import AnnotationSession, Annotator, Proposal, Stroke, StrokeKind
from loopcore.drivers.outline import OutlineAnnotator, OutlineOptions
from loopcore.errors import PluginError
from loopcore.imaging import encode_jpeg
from loopcore.options import Options
from loopcore.testing import make_jpeg

pytestmark = pytest.mark.anyio

ORGANIZATION, _, PROJECT = ANNOTATOR.partition("/")
SEAL = {"id": "5ea15ea1", "name": "seal", "type": "segmentation", "color": "#ff0000"}
TRIANGLE = ((1.2, 2.0), (30.4, 2.0), (1.2, 40.0))


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "FIRST_S", 0.02)
    monkeypatch.setattr(sockets, "LEAST_UP_S", 0.0)


class Tracing(AnnotationSession):
    """Proposes the places of its strokes, once there are three; Enter ends, `q` fails."""

    def __init__(self, log: list[Any], pixels: Any, label: str) -> None:
        self._log = log
        self._places: list[tuple[float, float]] = []
        log.append((pixels.shape, label))

    def act(self, stroke: Stroke) -> Proposal:
        self._log.append(stroke)
        if stroke.key == "q":
            raise PluginError("the annotator fell over")
        if stroke.kind is not StrokeKind.KEY:
            self._places.append((stroke.x, stroke.y))
        outline = tuple(self._places) if len(self._places) > 2 else ()
        return Proposal(outline=outline, done=stroke.key == "Enter" and bool(outline))


class Tracer(Annotator):
    def __init__(self) -> None:
        super().__init__(Options())
        self.log: list[Any] = []

    def open(self, pixels: Any, label: str) -> AnnotationSession:
        assert not pixels.flags.writeable
        return Tracing(self.log, pixels, label)


@asynccontextmanager
async def desk(loop: LoopServer, annotator: Annotator, **more: Any) -> AsyncIterator[anyio.Event]:
    """Yields what is set when the role has ended."""
    options = PlatformOptions(url=loop.url, username="ranger", password=Secret("krill"), **more)
    with fail_after(20):
        async with Loop(options) as client, create_task_group() as tasks:
            ended = anyio.Event()

            async def serve(*, task_status: Any) -> None:
                await Desk(client, options).serve(annotator, "gate-3", task_status=task_status)
                ended.set()

            await tasks.start(serve)
            yield ended
            tasks.cancel_scope.cancel()


def given(event: str, x: float = 0, y: float = 0, *, who: str = "ada", **more: Any) -> dict[str, Any]:
    data = {
        "coordinate": {"x": x, "y": y},
        "event_type": event,
        "context": {"organization": ORGANIZATION, "project": PROJECT},
        "image_uuid": ANNOTATOR_IMAGE,
        "category": SEAL,
        "key_up": None,
        "key_down": None,
        "epsilon": None,
        "is_shift_key_pressed": None,
    }
    return {"frontend_id": who, "data": data | more}


def key(name: str, **more: Any) -> dict[str, Any]:
    return given("key_up", key_up=name, **more)


async def draw(loop: LoopServer, places: Any = TRIANGLE, **more: Any) -> list[Any]:
    """Press at the first place, move, release at the last; the acknowledgements."""
    events = ["left_mouse_down", *["mouse_move"] * (len(places) - 2), "left_mouse_up"]
    pairs = zip(events, places, strict=True)
    return [await loop.sockets.handle_user_input(given(event, x, y, **more)) for event, (x, y) in pairs]


async def test_status_tells_who_is_there(loop: LoopServer) -> None:
    async with desk(loop, Tracer()):
        (report,) = await loop.annotators.wait(1)
    assert report.body["name"] == "gate-3"
    assert report.body["capabilities"] == ["segmentation"]
    assert report.body["uptime"] >= 0
    assert list(loop.complaints) == []


async def test_strokes_become_an_svg_and_an_annotation(loop: LoopServer) -> None:
    tracer = Tracer()
    async with desk(loop, tracer):
        acks = await draw(loop)
        assert len(loop.annotations) == 1
        last = await loop.sockets.handle_user_input(key("Enter"))
    assert [ack["success"] for ack in acks] == [True] * 3
    assert all(ack["payload"].startswith("<circle ") for ack in acks[:2])
    assert 'points="1.2,2.0 30.4,2.0 1.2,40.0"' in acks[2]["payload"]
    assert 'stroke="#ff0000"' in acks[2]["payload"]
    assert last["success"] is True
    (report,) = loop.annotations
    assert report.project == ANNOTATOR
    assert report.body == {
        "id": report.body["id"],
        "shape": {"points": [{"x": 1, "y": 2}, {"x": 30, "y": 2}, {"x": 1, "y": 40}]},
        "image_id": ANNOTATOR_IMAGE,
        "category_id": SEAL["id"],
    }
    assert tracer.log[0] == ((48, 64, 3), "seal")
    assert tracer.log[1] == Stroke(kind=StrokeKind.PRESS, x=1.2, y=2.0)
    assert list(loop.complaints) == []


async def test_image_is_fetched_once(loop: LoopServer) -> None:
    async with desk(loop, Tracer()), create_task_group() as tasks:
        for who in ("ada", "bob", "eve"):
            tasks.start_soon(partial(draw, loop, who=who))
    assert [call.name for call in loop.calls].count("image") == 1


async def test_refined_outline_is_the_same_annotation(loop: LoopServer) -> None:
    async with desk(loop, Tracer()):
        await draw(loop)
        await draw(loop, ((5, 5), (6, 7)))
        await loop.sockets.handle_user_input(key("Enter"))
    first, second = (report.body for report in loop.annotations)
    assert first["id"] == second["id"]
    assert len(second["shape"]["points"]) == 5


async def test_each_object_has_an_id_of_its_own(loop: LoopServer) -> None:
    async with desk(loop, Tracer()):
        for _ in range(2):
            await draw(loop)
            await loop.sockets.handle_user_input(key("Enter"))
    assert len({report.body["id"] for report in loop.annotations}) == 2


async def test_shift_is_passed_on(loop: LoopServer) -> None:
    tracer = Tracer()
    async with desk(loop, tracer):
        await loop.sockets.handle_user_input(given("left_mouse_down", 3, 4, is_shift_key_pressed=True))
    assert tracer.log[-1] == Stroke(kind=StrokeKind.PRESS, x=3, y=4, shift=True)


async def test_escape_and_logout_forget_the_object(loop: LoopServer) -> None:
    tracer = Tracer()
    async with desk(loop, tracer):
        await draw(loop)
        assert await loop.sockets.handle_user_input(key("Escape")) == {
            "success": True,
            "error_msg": None,
            "payload": "",
        }
        assert (await loop.sockets.handle_user_input(key("Enter")))["payload"] == ""
        await draw(loop)
        assert (await loop.sockets.user_logout("ada"))["success"] is True
        assert (await loop.sockets.user_logout("nobody"))["success"] is True
        assert (await loop.sockets.handle_user_input(key("Enter")))["payload"] == ""
    assert len({report.body["id"] for report in loop.annotations}) == 2
    assert tracer.log.count(((48, 64, 3), "seal")) == 2


async def test_people_do_not_disturb_each_other(loop: LoopServer) -> None:
    async with desk(loop, Tracer()):
        await draw(loop, who="ada")
        await draw(loop, ((9, 9), (20, 9), (20, 30)), who="bob")
        await loop.sockets.handle_user_input(key("Enter", who="bob"))
        await loop.sockets.handle_user_input(key("Enter", who="ada"))
    corners = [report.body["shape"]["points"][0] for report in loop.annotations]
    assert corners == [{"x": 1, "y": 2}, {"x": 9, "y": 9}]


@pytest.mark.parametrize("change", [{"category": SEAL | {"id": "other"}}, {"image_uuid": "another"}], ids=str)
async def test_another_subject_is_another_object(loop: LoopServer, change: dict[str, Any]) -> None:
    async with desk(loop, Tracer()):
        await draw(loop)
        ack = await loop.sockets.handle_user_input(key("Enter", **change))
    assert ack == {"success": True, "error_msg": None, "payload": ""}
    assert len(loop.annotations) == 1


@pytest.mark.parametrize(
    "event", ["right_mouse_down", "right_mouse_up", "key_down", "wheel", "mouse_move", "left_mouse_up"]
)
async def test_what_is_no_stroke_changes_nothing(loop: LoopServer, event: str) -> None:
    tracer = Tracer()
    async with desk(loop, tracer):
        assert (await loop.sockets.handle_user_input(given(event, key_down="a")))["payload"] == ""
        assert tracer.log == []
        shown = (await draw(loop))[-1]["payload"]
        drawn = len(tracer.log)
        if "right" in event or "wheel" in event or "down" in event:
            assert (await loop.sockets.handle_user_input(given(event, key_down="a")))["payload"] == shown
            assert len(tracer.log) == drawn


# What goes wrong


async def test_annotator_that_fails_is_told_and_the_object_is_forgotten(loop: LoopServer) -> None:
    async with desk(loop, Tracer()):
        await draw(loop)
        ack = await loop.sockets.handle_user_input(key("q"))
        assert (await loop.sockets.handle_user_input(key("Enter")))["payload"] == ""
        await draw(loop)
    assert ack == {"success": False, "error_msg": "the annotator fell over", "payload": None}


@pytest.mark.parametrize(
    ("image", "words"),
    [("../../secret", "no image"), ("", "no image"), ("00000000-0000-0000-0000-00000000abcd", "404")],
)
async def test_image_that_is_not_there_is_told(loop: LoopServer, image: str, words: str) -> None:
    async with desk(loop, Tracer()):
        (ack, *_) = await draw(loop, image_uuid=image)
        assert ack["success"] is False
        assert words in ack["error_msg"]
        assert (await draw(loop))[-1]["payload"] != ""


@pytest.mark.parametrize("fault", [Nonsense(), Answer(500)], ids=repr)
async def test_image_that_did_not_come_is_asked_for_again(loop: LoopServer, fault: Any) -> None:
    loop.faults.script("image", fault)
    async with desk(loop, Tracer()):
        ack = await loop.sockets.handle_user_input(given("left_mouse_down", 1, 1))
        assert ack["success"] is False
        assert (await draw(loop))[-1]["payload"] != ""


async def test_annotation_that_the_loop_refuses_is_sent_again(loop: LoopServer) -> None:
    tracer = Tracer()
    loop.faults.script("update_segmentation_annotation", Answer(500), Answer(500))
    async with desk(loop, tracer):
        refused = (await draw(loop))[-1]
        again = await loop.sockets.handle_user_input(key("Enter"))
        drawn = len(tracer.log)
        assert (await loop.sockets.handle_user_input(given("mouse_move", 5, 5)))["payload"].startswith("<polygon")
        assert (await loop.sockets.handle_user_input(key("Enter")))["success"] is True
        assert len(tracer.log) == drawn
        assert (await loop.sockets.handle_user_input(key("Enter")))["payload"] == ""
    for ack in (refused, again):
        assert ack["success"] is False
        assert "does not accept update_segmentation_annotation" in ack["error_msg"]
    assert len(loop.annotations) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"frontend_id": 1, "data": given("x")["data"]},
        given("left_mouse_down", coordinate={"x": "1", "y": 0}),
        given("left_mouse_down", category={"id": "1"}),
        given("left_mouse_down", context=None),
        given("left_mouse_down", float("nan"), 0),
        given("left_mouse_down", who="x" * 1001),
    ],
)
async def test_malformed_input_is_refused_with_the_path(loop: LoopServer, wrong: dict[str, Any]) -> None:
    async with desk(loop, Tracer()):
        ack = await loop.sockets.handle_user_input(wrong)
    assert ack["success"] is False
    assert "`$[0]" in ack["error_msg"]


@pytest.mark.parametrize("color", [None, '"/><script>', "url(#x)", "#12", "red; x", "e" * 50])
def test_svg_holds_nothing_but_one_shape(color: str | None) -> None:
    for outline in (TRIANGLE, ()):
        subject = visits.Subject("o", "p", "i", "c")
        session = Tracing([], np.zeros((1, 1, 3)), "")
        thing = visits.Object(subject=subject, session=session, pixels=np.zeros((1, 1, 3), np.uint8), id="")
        thing.proposal = Proposal(outline=outline)
        svg = svg_of(thing, color)
        assert svg.count("<") == svg.count(">") == 1
        assert 'fill="#00ff00"' in svg


# Bounds


async def test_strokes_of_one_person_are_drawn_in_order_and_never_two_at_a_time(loop: LoopServer) -> None:
    busy = threading.Lock()
    seen: list[float] = []

    class Counting(AnnotationSession):
        def act(self, stroke: Stroke) -> Proposal:
            assert busy.acquire(blocking=False)
            seen.append(stroke.x)
            busy.release()
            return Proposal()

    class Counter(Tracer):
        def open(self, pixels: Any, label: str) -> AnnotationSession:
            return Counting()

    async with desk(loop, Counter()):
        sid = await loop.sockets.node("annotation_node")
        async with create_task_group() as tasks:
            for x in range(40):
                event = "mouse_move" if x else "left_mouse_down"
                tasks.start_soon(loop.sockets.call, sid, "handle_user_input", given(event, x))
    assert seen == list(range(40))


async def test_too_many_strokes_of_one_person_are_refused(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation, "MOST_WAITING", 2)
    release = threading.Event()

    class Slow(Tracer):
        def open(self, pixels: Any, label: str) -> AnnotationSession:
            release.wait(10)
            return super().open(pixels, label)

    acks: list[Any] = []
    async with desk(loop, Slow()):
        sid = await loop.sockets.node("annotation_node")

        async def send(x: int) -> None:
            acks.append(await loop.sockets.call(sid, "handle_user_input", given("left_mouse_down", x)))
            release.set()

        async with create_task_group() as tasks:
            for x in range(5):
                tasks.start_soon(send, x)
    refused = [ack["error_msg"] for ack in acks if not ack["success"]]
    assert refused == ["too many strokes at once"] * 3


async def test_strokes_that_wait_are_dropped_when_the_person_gives_up(loop: LoopServer) -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow(Tracer):
        def open(self, pixels: Any, label: str) -> AnnotationSession:
            begun.set()
            release.wait(10)
            return super().open(pixels, label)

    tracer = Slow()
    async with desk(loop, tracer):
        sid = await loop.sockets.node("annotation_node")
        async with create_task_group() as tasks:
            for event in ("left_mouse_down", "mouse_move", "left_mouse_up", "left_mouse_down"):
                tasks.start_soon(loop.sockets.call, sid, "handle_user_input", given(event, 1, 1))
            await to_thread.run_sync(begun.wait, 10)
            await loop.sockets.handle_user_input(key("Escape"))
            release.set()
    assert tracer.log == [((48, 64, 3), "seal"), Stroke(kind=StrokeKind.PRESS, x=1, y=1)]


async def test_pictures_at_work_are_bounded_in_number(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation, "AT_WORK", 2)
    together = threading.Barrier(3, timeout=0.3)

    class Slow(Tracer):
        def open(self, pixels: Any, label: str) -> AnnotationSession:
            with suppress(threading.BrokenBarrierError):
                together.wait()
                self.log.append("three at once")
            return super().open(pixels, label)

    tracer = Slow()
    async with desk(loop, tracer), create_task_group() as tasks:
        for who in ("ada", "bob", "eve"):
            tasks.start_soon(partial(draw, loop, who=who))
    assert "three at once" not in tracer.log
    assert len(loop.annotations) == 3


async def test_pictures_are_kept_within_bounds(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "MOST_KEPT", 48 * 64 * 3)
    loop.store[ANNOTATOR].add_image(make_jpeg(1), state="complete", id="another")
    async with desk(loop, Tracer()):
        for image in (ANNOTATOR_IMAGE, ANNOTATOR_IMAGE, "another", ANNOTATOR_IMAGE):
            assert (await draw(loop, image_uuid=image))[-1]["success"]
    assert [call.name for call in loop.calls].count("image") == 3


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_project_that_would_lead_elsewhere_is_refused(loop: LoopServer, name: str) -> None:
    async with desk(loop, Tracer()):
        (ack, *_) = await draw(loop, context={"organization": name, "project": PROJECT})
    assert ack["success"] is False
    assert "is no name of a project" in ack["error_msg"]
    assert "image" not in {call.name for call in loop.calls}


async def test_people_are_bounded_in_number_age_and_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "MOST_PEOPLE", 3)
    monkeypatch.setattr(visits, "MOST_BYTES", 2500)
    people = visits.Visits()
    subject = visits.Subject("o", "p", "i", "c")
    pixels = [np.zeros((10, 100), np.uint8) for _ in range(3)]
    for name, array in zip("abc", pixels, strict=True):
        people.enter(name).begin(subject, Tracing([], np.zeros((1, 1, 3)), ""), array)
    people.trim()
    assert len(people) == 2
    first = people.enter("b")
    for name in "defg":
        people.enter(name)
    assert len(people) == 3
    assert first.over
    assert first.begin(subject, Tracing([], np.zeros((1, 1, 3)), ""), pixels[0]).pixels is pixels[0]
    assert first.object is None
    monkeypatch.setattr(visits, "FORGET_S", -1.0)
    people.enter("h")
    assert len(people) == 1


async def test_restart_ends_the_role(loop: LoopServer) -> None:
    async with desk(loop, Tracer()) as ended:
        assert (await loop.sockets.call(await loop.sockets.node("annotation_node"), "restart"))["success"] is True
        await ended.wait()


async def test_muted_desk_tells_nothing(loop: LoopServer) -> None:
    async with desk(loop, Tracer(), muted=True):
        await anyio.wait_all_tasks_blocked()
    assert len(loop.calls) == 0


async def test_built_in_annotator_outlines_what_is_on_an_image_of_the_loop(loop: LoopServer) -> None:
    """From the box that a person drags to the annotation at the Loop, over the real wire."""
    rows, columns = np.mgrid[:240, :320] + 0.5
    truth = (columns - 160) ** 2 + (rows - 120) ** 2 < 60**2
    pixels = np.random.default_rng(1).integers(40, 80, (240, 320, 3)).astype(np.uint8)
    pixels[truth] += 120
    loop.store[ANNOTATOR].add_image(encode_jpeg(pixels), state="complete", id="d15c")
    async with desk(loop, OutlineAnnotator(OutlineOptions())):
        acks = await draw(loop, ((90.5, 50.5), (150.0, 100.0), (230.0, 190.0)), image_uuid="d15c")
        await loop.sockets.handle_user_input(key("Enter", image_uuid="d15c"))
    assert all(ack["success"] for ack in acks)
    (report,) = loop.annotations
    corners = np.array([(point["x"], point["y"]) for point in report.body["shape"]["points"]])
    drawn = np.zeros((240, 320), np.uint8)
    cv2.fillPoly(drawn, [corners.astype(np.int32)], 1)
    found = drawn.astype(bool)
    assert (found & truth).sum() / (found | truth).sum() > 0.95
