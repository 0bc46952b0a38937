"""What `uncertain` promises: the rule, its two mends, and the same answers as a linear scan."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcore.drivers.uncertain import Uncertain, UncertainOptions
from loopcore.options import decode
from loopcore.testing import SelectorSuite
from loopcore.types import Box, Classification, Detection, FrameInfo, Point, Prediction, Segmentation

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
COUNT = "unexpected_observations_count"


class TestUncertainSuite(SelectorSuite):
    driver = Uncertain


class Linear:
    """The rule written down plainly: everything is remembered, for ever, and compared with everything."""

    def __init__(self, options: UncertainOptions) -> None:
        self.options = options
        self.history: dict[str | None, list[list]] = {}  # detection, last seen, whether it was in the band

    def consider(self, info: FrameInfo, prediction: Prediction) -> set[str]:
        history = self.history.setdefault(info.camera, [])
        now = info.time.timestamp()
        causes = set()
        for found in prediction.detections:
            in_band = self.options.min <= found.confidence <= self.options.max
            if isinstance(found, Segmentation):
                causes.add("segmentation_detection")
                continue
            if isinstance(found, Classification):
                causes |= {"uncertain"} if in_band else set()
                continue
            similar = [
                seen
                for seen in history
                if abs(now - seen[1]) <= self.options.forget and self.is_similar(found, seen[0])
            ]
            for seen in similar:
                seen[1] = max(seen[1], now)
            if not any(seen[2] for seen in similar):
                history.append([found, now, in_band])
                causes |= {"uncertain"} if in_band else set()
        if len(prediction.detections) >= self.options.max_detections:
            causes.add(COUNT)
        return causes

    def is_similar(self, a: Detection, b: Detection) -> bool:
        if type(a) is not type(b) or a.label != b.label:
            return False
        if isinstance(a, Point):
            return ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 < self.options.point_distance
        width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
        height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
        common = max(width, 0) * max(height, 0)
        union = a.width * a.height + b.width * b.height - common
        return union > 0 and common / union >= self.options.iou


def info(second: float = 0, camera: str | None = "gate") -> FrameInfo:
    return FrameInfo(width=640, height=480, time=NOON + timedelta(seconds=second), camera=camera)


def box(confidence: float = 0.45, x: float = 100, y: float = 100, label: str = "seal", size: float = 50) -> Box:
    return Box(label=label, confidence=confidence, x=x, y=y, width=size, height=size)


def ask(selector: Uncertain, *found: Detection, at: float = 0, camera: str | None = "gate") -> list[str]:
    return list(selector.consider(info(at, camera), Prediction(detections=found), None))


@pytest.fixture
def selector() -> Uncertain:
    return Uncertain(UncertainOptions())


@pytest.mark.parametrize(("confidence", "wanted"), [(0.29, False), (0.3, True), (0.6, True), (0.61, False)])
def test_band_includes_its_ends(selector: Uncertain, confidence: float, wanted: bool) -> None:
    assert ask(selector, box(confidence)) == (["uncertain"] if wanted else [])


def test_same_thing_is_wanted_once(selector: Uncertain) -> None:
    assert ask(selector, box()) == ["uncertain"]
    assert ask(selector, box(x=110), at=1) == []


def test_thing_is_forgotten_after_an_hour_unseen_and_not_before(selector: Uncertain) -> None:
    ask(selector, box())
    assert ask(selector, box(), at=3600) == []
    assert ask(selector, box(), at=7201) == ["uncertain"]


def test_sure_sighting_does_not_hide_a_later_uncertain_one(selector: Uncertain) -> None:
    assert ask(selector, box(0.95)) == []
    assert ask(selector, box(0.45), at=1) == ["uncertain"]


def test_sure_sighting_renews_the_memory_of_an_uncertain_one(selector: Uncertain) -> None:
    ask(selector, box(0.45))
    ask(selector, box(0.95), at=3000)
    assert ask(selector, box(0.45), at=6000) == []


def test_frames_without_a_camera_are_forgotten_too(selector: Uncertain) -> None:
    ask(selector, box(), camera=None)
    assert ask(selector, box(), at=10, camera=None) == []
    assert ask(selector, box(), at=3700, camera=None) == ["uncertain"]


def test_cameras_labels_and_kinds_have_their_own_memory(selector: Uncertain) -> None:
    ask(selector, box())
    assert ask(selector, box(), at=1, camera="yard") == ["uncertain"]
    assert ask(selector, box(label="gull"), at=1) == ["uncertain"]
    assert ask(selector, Point(label="seal", confidence=0.5, x=125, y=125), at=1) == ["uncertain"]


def test_points_are_the_same_nearer_than_ten_pixels(selector: Uncertain) -> None:
    ask(selector, Point(label="eye", confidence=0.5, x=9.5, y=0))
    assert ask(selector, Point(label="eye", confidence=0.5, x=19.4, y=0), at=1) == []
    assert ask(selector, Point(label="eye", confidence=0.5, x=9.5, y=10), at=2) == ["uncertain"]


def test_segmentation_and_crowd_have_reasons_of_their_own(selector: Uncertain) -> None:
    outline = Segmentation(label="floe", points=((0, 0), (9, 0), (0, 9)))
    assert ask(selector, outline) == ["segmentation_detection"]
    assert ask(selector, *[box(0.9, x=60 * n) for n in range(80)]) == [COUNT]
    assert ask(selector, *[box(0.9, x=60 * n) for n in range(79)]) == []
    assert ask(selector, Classification(label="ice", confidence=0.5)) == ["uncertain"]


def test_frames_out_of_order_change_nothing(selector: Uncertain) -> None:
    ask(selector, box(), at=100)
    assert ask(selector, box(), at=95) == []
    assert ask(selector, box(), at=3700) == []


def test_few_frames_with_a_wrong_clock_do_not_empty_the_memory(selector: Uncertain) -> None:
    ask(selector, box())
    for _ in range(15):
        ask(selector, at=86_400 * 365)
    assert ask(selector, box(), at=1) == []


def test_clock_that_was_set_back_does_not_freeze_the_memory(selector: Uncertain) -> None:
    ask(selector, box(), at=86_400 * 365)
    assert ask(selector, box()) == ["uncertain"]
    assert ask(selector, box(), at=1) == []


def test_memory_is_empty_once_the_frames_have_gone_on(selector: Uncertain) -> None:
    ask(selector, *[box(x=100 * n) for n in range(50)])
    for second in range(16):
        ask(selector, at=3601 + second)
    assert selector._remembered == 0
    assert not selector._cameras["gate"]._maps


def test_camera_that_remembers_most_forgets_its_oldest() -> None:
    selector = Uncertain(UncertainOptions(max_remembered=10))
    ask(selector, box(), camera="quiet")
    for n in range(50):
        ask(selector, box(x=100 * n), at=n, camera="busy")
    assert selector._remembered == 10
    assert ask(selector, box(), at=50, camera="quiet") == []
    assert ask(selector, box(x=4900), at=51, camera="busy") == []
    assert ask(selector, box(x=0), at=52, camera="busy") == ["uncertain"]


@pytest.mark.parametrize("odd", [0.0, -5.0, float("nan"), float("inf"), 1e300])
def test_boxes_that_make_no_sense_are_wanted_and_not_remembered(selector: Uncertain, odd: float) -> None:
    assert ask(selector, Box(label="seal", confidence=0.5, x=1, y=1, width=odd, height=9)) == ["uncertain"]
    assert selector._remembered == 0


def test_options_are_checked() -> None:
    with pytest.raises(msgspec.ValidationError, match="min ≤ max"):
        decode({"min": 0.7}, UncertainOptions)


near = st.integers(0, 60)
size = st.one_of(st.integers(0, 40), st.floats(0.01, 400))
confidences = st.sampled_from([0.1, 0.3, 0.45, 0.6, 0.9])
boxes = st.builds(
    Box,
    label=st.sampled_from("ab"),
    confidence=confidences,
    x=near | st.floats(-500, 500),
    y=near,
    width=size,
    height=size,
)
points = st.builds(Point, label=st.sampled_from("ab"), confidence=confidences, x=near, y=near)
frames = st.lists(
    st.tuples(
        st.floats(-30, 900),
        st.sampled_from(["gate", None]),
        st.lists(boxes | points, max_size=6).map(tuple),
        st.booleans(),
    ),
    max_size=30,
)


@given(frames=frames, iou=st.sampled_from([0.1, 0.25, 0.5, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_index_gives_the_same_answers_as_a_linear_scan(frames: list, iou: float) -> None:
    """Time goes on by fits and starts and now and then a frame is a year ahead."""
    options = UncertainOptions(iou=iou, forget=1000, max_detections=5)
    selector, linear = Uncertain(options), Linear(options)
    now = 0.0
    for step, camera, found, astray in frames:
        now += step
        about = info(now + (31_536_000 if astray and step < 50 else 0), camera)
        prediction = Prediction(detections=found)
        assert set(selector.consider(about, prediction, None)) == linear.consider(about, prediction)


def test_index_agrees_with_a_linear_scan_on_a_crowded_scene() -> None:
    options = UncertainOptions()
    selector, linear = Uncertain(options), Linear(options)
    rng = random.Random(3)
    for second in range(100):
        found = tuple(
            Box(
                label="seal",
                confidence=rng.uniform(0.2, 0.9),
                x=rng.uniform(0, 600),
                y=rng.uniform(0, 400),
                width=rng.lognormvariate(3, 1),
                height=rng.lognormvariate(3, 1),
            )
            for _ in range(10)
        )
        prediction = Prediction(detections=found)
        about = info(second * 20)
        assert set(selector.consider(about, prediction, None)) == linear.consider(about, prediction)
