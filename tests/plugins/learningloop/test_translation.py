"""Neutral shapes become the Loop's and come back, within the rounding that the Loop asks for."""

from __future__ import annotations

from math import inf, isfinite, nan

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopcore_learningloop import wire
from loopcore_learningloop.translation import (
    SAID,
    Categories,
    annotations_in,
    annotations_of,
    corners,
    detections_in,
    flattened,
    found,
    metadata,
)
from msgspec import structs

from loopcore.testing import make_sample
from loopcore.types import Box, Classification, Detection, Point, Prediction, Segmentation

SIZE = 640, 480
CATEGORIES = Categories(
    [
        wire.Category(id="1", name="penguin", type="box"),
        wire.Category(id="2", name="penguin", type="point"),
        wire.Category(id="3", name="floe"),
    ]
)

labels = st.sampled_from(["penguin", "floe", "stranger", ""])
sure = st.floats(0, 1)
across = st.integers(0, SIZE[0] - 2)
down = st.integers(0, SIZE[1] - 2)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(across), draw(down)
    width, height = draw(st.integers(1, SIZE[0] - x)), draw(st.integers(1, SIZE[1] - y))
    return Box(label=draw(labels), confidence=draw(sure), x=x, y=y, width=width, height=height)


points = st.builds(Point, label=labels, confidence=sure, x=st.floats(0, SIZE[0]), y=st.floats(0, SIZE[1]))
outlines = st.builds(
    Segmentation,
    label=labels,
    confidence=sure,
    points=st.lists(st.tuples(across, down), min_size=3, max_size=8).map(tuple),
)
classes = st.builds(Classification, label=labels, confidence=sure)
anything = st.floats()
wild = st.one_of(
    st.builds(Box, label=labels, x=anything, y=anything, width=anything, height=anything),
    st.builds(Point, label=labels, x=anything, y=anything),
    st.builds(
        Segmentation, label=labels, points=st.lists(st.tuples(anything, anything), min_size=3, max_size=5).map(tuple)
    ),
)


@given(st.lists(boxes()), st.lists(points), st.lists(outlines), st.lists(classes), st.booleans())
def test_what_was_found_comes_back_from_the_wire(
    found_boxes: list[Box],
    found_points: list[Point],
    found_outlines: list[Segmentation],
    found_classes: list[Classification],
    flat: bool,
) -> None:
    detections: list[Detection] = [*found_boxes, *found_points, *found_outlines, *found_classes]
    lists = found(detections, "1.3", CATEGORIES, size=SIZE, flat=flat)
    told = msgspec.json.decode(msgspec.json.encode(lists), type=wire.ImageMetadata)
    assert detections_in(told) == tuple(detections)
    assert {one.model_name for one in told.box_detections} <= {"1.3"}


@given(st.lists(wild), st.one_of(st.none(), st.just(SIZE)))
def test_whatever_a_model_says_the_loop_gets_numbers_inside_the_image(
    detections: list[Detection], size: tuple[int, int] | None
) -> None:
    lists = found(detections, "1", CATEGORIES, size=size)
    for box in lists.box_detections:
        assert all(isinstance(value, int) for value in (box.x, box.y, box.width, box.height))
        assert min(box.x, box.y) >= 0
        assert min(box.width, box.height) >= 1
        assert size is None or (box.x + box.width <= size[0] and box.y + box.height <= size[1])
    for point in lists.point_detections:
        assert isfinite(point.x)
        assert point.x >= 0
        assert size is None or point.x <= size[0]
    for outline in lists.segmentation_detections:
        assert isinstance(outline.shape, wire.Shape)
        assert all(corner.x >= 0 and isfinite(corner.y) for corner in outline.shape.points)


@pytest.mark.parametrize(
    ("box", "edges"),
    [
        (Box(label="", x=1.4, y=2.6, width=3.2, height=4.2), (1, 3, 4, 4)),  # edges are rounded, not sizes
        (Box(label="", x=-5, y=-5, width=10, height=10), (0, 0, 5, 5)),
        (Box(label="", x=635, y=470, width=100, height=100), (635, 470, 5, 10)),
        (Box(label="", x=700, y=0, width=10, height=10), None),
        (Box(label="", x=10, y=10, width=0.2, height=10), None),
        (Box(label="", x=10, y=10, width=-3, height=10), None),
        (Box(label="", x=nan, y=10, width=3, height=10), None),
        (Box(label="", x=10, y=10, width=inf, height=10), None),
    ],
)
def test_edges_of_boxes_are_clipped_and_rounded(box: Box, edges: tuple[int, ...] | None) -> None:
    lists = found([box], "1", CATEGORIES, size=SIZE).box_detections
    assert [(one.x, one.y, one.width, one.height) for one in lists] == ([edges] if edges else [])


def test_ids_are_found_by_name_and_type_and_then_by_name_alone() -> None:
    assert CATEGORIES.id_of("penguin", "box") == "1"
    assert CATEGORIES.id_of("penguin", "point") == "2"
    assert CATEGORIES.id_of("penguin", "segmentation") == "1"
    assert CATEGORIES.id_of("floe", "box") == "3"
    assert CATEGORIES.id_of("stranger", "box") is None
    assert CATEGORIES.knows({"penguin", "floe"})
    assert not CATEGORIES.knows({"penguin", "stranger"})


@given(st.lists(boxes()), st.lists(points), st.lists(classes, max_size=1))
def test_what_a_human_says_comes_back_from_the_wire(
    said_boxes: list[Box], said_points: list[Point], said_classes: list[Classification]
) -> None:
    said = tuple(structs.replace(one, confidence=1.0) for one in (*said_boxes, *said_points, *said_classes))
    info = structs.replace(make_sample(1).info, annotations=said, width=SIZE[0], height=SIZE[1])
    told = msgspec.json.decode(msgspec.json.encode(metadata(info, CATEGORIES)), type=wire.ImageMetadata)
    assert annotations_in(told) == said


def test_what_the_loop_has_no_words_for_is_left_out() -> None:
    said = (
        Segmentation(label="floe", points=((1, 2), (5, 2), (1, 7))),
        Classification(label="day"),
        Classification(label="night"),
    )
    told = metadata(structs.replace(make_sample(1).info, annotations=said), CATEGORIES)
    assert annotations_in(told) == (Classification(label="day"),)


def test_ids_that_a_client_has_sent_stand_where_the_loop_knows_no_name() -> None:
    shapes = tuple(Box(label=label, x=1, y=1, width=5, height=5) for label in ("penguin", "stranger", "nobody"))
    prediction = Prediction(detections=shapes, extra={SAID: {"penguin": "7", "stranger": "8"}})
    info = structs.replace(make_sample(1).info, prediction=prediction, annotations=shapes, width=64, height=48)
    told = metadata(info, CATEGORIES)
    assert [one.category_id for one in told.box_detections] == ["1", "8", None]
    assert [one.category_id for one in told.box_annotations] == ["1", "8", None]


def test_upload_names_each_tag_once_and_knows_when_the_image_was_taken() -> None:
    info = structs.replace(make_sample(1).info, tags=("a", "uncertain"), reasons=("uncertain", "label"))
    told = metadata(info, CATEGORIES)
    assert told.tags == ["a", "uncertain", "label"]
    assert told.created == "2024-05-17T08:30:01+00:00"
    unknown = metadata(structs.replace(info, captured=None, prediction=None), CATEGORIES)
    assert unknown.created == info.kept.isoformat()
    assert unknown.box_detections == []


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("1,2,3,4", ((1.0, 2.0), (3.0, 4.0))),
        ("1.5,-2", ((1.5, -2.0),)),
        ("", ()),
        ("1,2,3", ()),
        ("one,two", ()),
    ],
)
def test_flattened_outline_is_read_or_nothing(text: str, points: tuple[tuple[float, float], ...]) -> None:
    assert corners(text) == points


def test_outline_is_flattened_without_needless_digits() -> None:
    shape = wire.Shape(points=[wire.Coordinate(1, 2.0), wire.Coordinate(3.25, 1234567)])
    assert flattened(shape) == "1,2,3.25,1234567"


def test_category_that_the_project_has_no_more_keeps_its_id_as_label() -> None:
    image = wire.ImageData(
        id="i",
        box_annotations=[wire.StoredBox(category_id="gone", x=1, y=2, width=3, height=4)],
        segmentation_annotations=[wire.StoredSegmentation(category_id="3", shape=wire.Shape(points=[]))],
    )
    assert annotations_of(image, CATEGORIES) == (Box(label="gone", x=1, y=2, width=3, height=4),)


def test_empty_outlines_of_a_message_are_left_out() -> None:
    told = wire.ImageMetadata(
        segmentation_detections=[
            wire.SegmentationDetection(category_name="floe", shape="1,2", model_name="1", confidence=0.5)
        ]
    )
    assert detections_in(told) == ()
    assert metadata(structs.replace(make_sample(1).info, prediction=Prediction()), CATEGORIES).tags == ["made", "suite"]
