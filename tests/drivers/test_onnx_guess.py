"""What a graph is can be told from its shapes, or the error says what was tried."""

from __future__ import annotations

import pytest

from loopcore.drivers.onnx.guess import COUNTS, Graph, guess, parse_names
from loopcore.drivers.onnx.spec import Spec, read_spec
from loopcore.errors import ModelError
from loopcore.types import ModelInfo

COCO = tuple(str(index) for index in range(80))


@pytest.mark.parametrize("labels", [COCO, ()])
@pytest.mark.parametrize(
    ("expected", "size", "outputs"),
    [
        ("yolox", (416, 416), [(3549, 85)]),
        ("fastestdet", (352, 352), [(85, 22, 22)]),
        ("yolo", (640, 640), [(25200, 85)]),
        ("yolo", (640, 640), [(84, 8400)]),
        ("yolo", (640, 384), [(84, 5040)]),
        ("end2end", (640, 640), [(300, 6)]),
        ("classify", (224, 224), [(80,)]),
        ("classify", (224, 224), [(80, 1, 1)]),
        ("heatmap", (320, 240), [(80, 60, 80)]),
        ("heatmap", (320, 240), [(80, 60, 80), (2, 60, 80)]),
    ],
)
def test_a_head_is_known_by_its_shapes(expected, size, outputs, labels):
    assert guess(Graph(size=size, outputs=tuple(outputs), labels=labels)) == expected


@pytest.mark.parametrize("labels", [("background", "face"), ("face",), ()])
def test_ultraface_is_known_by_its_two_outputs_with_or_without_a_label_for_the_background(labels):
    assert guess(Graph(size=(320, 240), outputs=((4420, 2), (4420, 4)), labels=labels)) == "ultraface"
    assert guess(Graph(size=(320, 240), outputs=((4420, 4), (4420, 2)), labels=labels)) == "ultraface"


def test_one_class_makes_six_columns_without_making_it_end_to_end():
    assert guess(Graph(size=(640, 640), outputs=((25200, 6),), labels=("a",))) == "yolo"
    assert guess(Graph(size=(96, 96), outputs=((567, 6),), labels=("a",))) == "yolo"
    assert guess(Graph(size=(416, 416), outputs=((3549, 6),), labels=("a",))) == "yolox"


def test_a_failed_guess_lists_all_that_was_tried_and_why_it_does_not_fit():
    with pytest.raises(ModelError) as caught:
        guess(Graph(size=(640, 640), outputs=((116, 8400), (32, 160, 160)), labels=COCO))
    message = str(caught.value)
    assert all(f"{name}: " in message for name in COUNTS)
    assert "[116, 8400] and [32, 160, 160]" in message


def test_labels_that_do_not_fit_make_the_guess_fail():
    with pytest.raises(ModelError, match="yolox: it would tell 80 classes apart"):
        guess(Graph(size=(416, 416), outputs=((3549, 85),), labels=("a", "b")))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'person', 1: 'it\\'s'}", ("person", "it's")),
        ("{1: 'b', 0: 'a'}", ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("[640, 640]", ("640", "640")),
        ("", ()),
        ("__import__('os').system('false')", ()),
        ("{0: 'a', 2: 'c'}", ()),
        ("[" * 100_000, ()),
    ],
)
def test_names_in_the_metadata_are_read_as_plain_data(text, names):
    assert parse_names(text) == names


@pytest.mark.parametrize(
    ("spec", "size"),
    [({"size": 416}, (416, 416)), ({"size": [320, 240]}, (320, 240)), ({"size": {"x": 320, "y": 240}}, (320, 240))],
)
def test_an_input_size_is_a_number_a_pair_or_named(spec, size):
    assert read_spec(ModelInfo(name="m", version="1", format="onnx", spec=spec)).input_size() == size


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"size": "big"}, r"\$\.size"),
        ({"size": [1, 2, 3]}, r"\$\.size"),
        ({"size": 0}, r"\$\.size"),
        ({"channels": "rbg"}, r"\$\.channels"),
        ({"std": [1, 0, 1]}, r"\$\.std"),
        ({"decoder": "yolo99"}, r"\$\.decoder"),
        ({"confidence": 2}, r"\$\.confidence"),
        ({"confidense": 0.5}, "confidense"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_place_of_the_fault(spec, place):
    with pytest.raises(ModelError, match=place):
        read_spec(ModelInfo(name="m", version="1", format="onnx", spec=spec))


def test_what_is_said_goes_before_what_is_usual():
    assert Spec(iou=0.1).over(Spec(iou=0.9, confidence=0.2)) == Spec(iou=0.1, confidence=0.2)
