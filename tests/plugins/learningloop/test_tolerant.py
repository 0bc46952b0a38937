"""What clients say of an image is read as far as it can be, and never costs the picture."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopcore_learningloop.tolerant import MAX_NOTES, read_metadata, read_tags, read_time

from loopcore.types import Box, Classification, Point, Prediction, SampleInfo, Segmentation

KEYS = (
    "box_detections", "point_detections", "segmentation_detections", "classification_detections", "box_annotations",
    "point_annotations", "segmentation_annotations", "classification_annotation", "tags", "created", "creation_date",
    "source", "state", "camera_id", "camera-id", "mac", "category_name", "category_id", "model_name", "confidence",
    "x", "y", "width", "height", "shape", "points",
)  # fmt: skip
DATES = ("2026-05-04", "0001-01-01", "9999-12-31_23:59:59", "teatime")
WORDS = st.sampled_from(["", "cup", "\ud800", "1.5", "nan", "1,2,3,4,5,6", *DATES])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 2**64, 0.5, 1, 3])
    | WORDS
    | st.binary(max_size=3)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8),
    max_leaves=40,
)
CUP = {"category_name": "cup", "x": 1, "y": 2.5, "width": 3, "height": 4, "confidence": 0.5, "model_name": "1.1"}
BOX = Box(label="cup", confidence=0.5, x=1, y=2.5, width=3, height=4)
OUTLINE = Segmentation(label="cup", confidence=0.5, points=((1, 2), (3, 4), (5, 6)))


def storable(said: Any) -> None:
    """As the node writes it down and reads it again."""
    info = SampleInfo(
        id="0" * 64,
        image_id="0" * 64,
        media="image/jpeg",
        image_bytes=1,
        width=1,
        height=1,
        kept=datetime.now(UTC),
        prediction=Prediction(
            detections=tuple(said.detections), model_version=said.model, extra={"ids": said.category_ids}
        ),
        annotations=None if said.annotations is None else tuple(said.annotations),
        tags=tuple(said.tags),
        camera=said.camera,
        captured=said.created,
        source=said.source,
        state=said.state,
    )
    assert msgspec.json.decode(msgspec.json.encode(info), type=SampleInfo) == info


@given(ANYTHING, ANYTHING)
def test_whatever_is_said_can_be_stored(first: Any, second: Any) -> None:
    said = read_metadata(first, second)
    storable(said)
    assert len(said.notes) <= MAX_NOTES + 1
    assert all(isinstance(note, str) for note in said.notes)


@given(st.text())
def test_whatever_text_is_said_can_be_stored(text: str) -> None:
    storable(read_metadata(text))
    storable(read_metadata({"tags": text, "source": text, "created": text, "mac": text}))


@given(st.lists(ANYTHING, max_size=5), st.lists(ANYTHING, max_size=5), ANYTHING)
def test_a_good_detection_survives_whatever_stands_beside_it(before: list[Any], after: list[Any], other: Any) -> None:
    said = read_metadata({"box_detections": [*before, CUP, *after], "point_detections": other, "tags": other})
    assert BOX in said.detections


@given(st.lists(st.sampled_from(["x", "y", "width", "height", "confidence", "category_name"]), min_size=1))
def test_a_detection_that_lacks_something_is_left_out_with_a_note(missing: list[str]) -> None:
    bad = {key: value for key, value in CUP.items() if key not in missing}
    said = read_metadata({"box_detections": [CUP, bad]})
    assert said.detections == [BOX]
    assert len(said.notes) == 1
    assert said.notes[0].startswith("box_detections[1] is left out: ")


@pytest.mark.parametrize(
    ("key", "item", "shape"),
    [
        ("box_detections", CUP, BOX),
        ("box_detections", CUP | {"x": "1", "confidence": "0.5"}, BOX),
        ("box_detections", CUP | {"category_id": None, "model_name": None, "more": []}, BOX),
        ("point_detections", CUP, Point(label="cup", confidence=0.5, x=1, y=2.5)),
        ("classification_detections", CUP, Classification(label="cup", confidence=0.5)),
        ("segmentation_detections", CUP | {"shape": "1,2 3,4;5,6"}, OUTLINE),
        ("segmentation_detections", CUP | {"shape": [[1, 2], [3, 4], {"x": 5, "y": "6"}]}, OUTLINE),
    ],
)  # fmt: skip
def test_detections_are_read_in_the_spellings_of_clients(key: str, item: Any, shape: Any) -> None:
    said = read_metadata({key: [item]})
    assert (said.detections, said.notes) == ([shape], [])


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": 1.1}, {"confidence": -0.1}, {"confidence": float("nan")}, {"confidence": None},
        {"x": float("inf")},
        {"width": -1}, {"height": None}, {"x": True}, {"x": []}, {"category_name": 7}, {"category_name": None},
    ],
)  # fmt: skip
def test_a_detection_that_makes_no_sense_is_left_out(change: dict[str, Any]) -> None:
    said = read_metadata({"box_detections": [CUP | change]})
    assert said.detections == []
    assert len(said.notes) == 1


def test_annotations_have_no_confidence_and_none_means_that_nobody_looked() -> None:
    said = read_metadata({"box_annotations": [CUP | {"confidence": 7, "category_id": "i"}]})
    assert said.annotations == [Box(label="cup", x=1, y=2.5, width=3, height=4)]
    assert said.category_ids == {"cup": "i"}
    assert read_metadata({"box_annotations": [], "classification_annotation": None}).annotations is None


def test_what_is_said_first_counts_and_null_says_nothing() -> None:
    said = read_metadata({"source": "a", "tags": None}, None, {"source": "b", "tags": ["t"]}, '{"state": "trash"}')
    assert (said.source, said.tags, said.state) == ("a", ["t"], "trash")


def test_notes_are_bounded() -> None:
    said = read_metadata({"box_detections": [{}] * 10_000})
    assert len(said.notes) == MAX_NOTES + 1
    assert said.notes[-1] == f"and {10_000 - MAX_NOTES} more"


@given(
    st.datetimes(timezones=st.timezones() | st.none()),
    st.sampled_from("T _"),
    st.sampled_from(["auto", "seconds", "milliseconds"]),
)
def test_a_time_is_read_in_all_forms_that_are_in_use(moment: datetime, separator: str, spec: str) -> None:
    text = moment.isoformat(separator, spec)
    try:
        expected = datetime.fromisoformat(moment.isoformat("T", spec)).astimezone(UTC)
    except (OverflowError, OSError, ValueError):
        with pytest.raises(ValueError):
            read_time(text)
    else:
        assert read_time(text) == expected


def test_dates_alone_zulu_and_nothing_are_times_too() -> None:
    assert read_time("2026-05-04T12:00:00Z") == datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert read_time("2026-05-04") == datetime(2026, 5, 4).astimezone(UTC)
    assert read_time(datetime(2026, 5, 4, 12, tzinfo=timezone(timedelta(hours=2)))) == datetime(
        2026, 5, 4, 10, tzinfo=UTC
    )
    assert read_time(None) is read_time("") is read_time(" ") is None
    for text in ("teatime", "2026-13-01", "12:00"):
        with pytest.raises(ValueError, match="expected a time such as"):
            read_time(text)


def test_tags_come_as_a_list_or_with_commas() -> None:
    assert read_tags(["a", " b", "", 7, None, {}]) == ["a", "b", "7"]
    assert read_tags("a, b,,") == ["a", "b"]
    assert read_tags(json.loads('["\\ud800"]')) == ["?"]
    assert read_tags(None) == read_tags(7) == read_tags({}) == []
