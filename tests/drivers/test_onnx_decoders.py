"""Each head's answer, written by hand, gives the boxes it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loopcore.drivers.onnx.decoders import DECODERS, classify, end2end, fastestdet, heatmap, ultraface, yolo, yolox
from loopcore.drivers.onnx.spec import Recipe, Spec, complete


def recipe(decoder: str, classes: int, **said: Any) -> Recipe:
    spec = Spec(**{"confidence": 0.5, **said})
    return complete(
        spec, decoder=decoder, size=(64, 32), layout="nchw", depth=3, channels=classes, labels=()
    )  # fmt: skip


def test_yolox_adds_the_cell_and_takes_the_size_from_its_logarithm():
    rows = np.zeros((32 + 8 + 2, 7), np.float32)
    rows[32 + 5] = [0.25, 0.5, np.log(2), 0, 0.9, 0.1, 0.8]  # stride 16: row 1, column 1
    found = yolox([rows], recipe("yolox", 2))
    np.testing.assert_allclose(found.boxes, [[20 - 16, 24 - 8, 20 + 16, 24 + 8]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [0.72], rtol=1e-6)
    assert found.channels.tolist() == [1]


def test_fastestdet_weighs_objectness_against_the_class():
    grid = np.full((7, 2, 4), -9, np.float32)
    grid[0] = 0.1
    grid[:, 1, 2] = [0.9, np.arctanh(0.5), 0, 0, 0, 0.2, 0.6]
    found = fastestdet([grid], recipe("fastestdet", 2))
    np.testing.assert_allclose(found.boxes, [[40 - 16, 16 - 8, 40 + 16, 16 + 8]], rtol=1e-5)
    np.testing.assert_allclose(found.scores, [0.9**0.6 * 0.6**0.4], rtol=1e-6)
    assert found.channels.tolist() == [1]


@pytest.mark.parametrize("turned", [False, True])
def test_ultraface_leaves_the_background_out_whatever_the_order_of_outputs(turned):
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.5, 0.5, 1.0]], np.float32)
    outputs = [boxes, scores] if turned else [scores, boxes]
    chosen = recipe("ultraface", 2, background=0)
    found = ultraface(outputs, chosen)
    np.testing.assert_allclose(found.boxes, [[16, 16, 32, 32]])
    assert [chosen.classes[channel] for channel in found.channels] == [0]


def test_yolo_reads_version_5_with_and_version_8_without_objectness():
    with_objectness = np.zeros((20, 8), np.float32)
    with_objectness[3] = [30, 20, 10, 4, 0.8, 0, 0, 0.9]
    found = yolo([with_objectness], recipe("yolo", 3))
    np.testing.assert_allclose(found.boxes, [[25, 18, 35, 22]])
    np.testing.assert_allclose(found.scores, [0.72], rtol=1e-6)

    without = np.zeros((7, 20), np.float32)
    without[:, 3] = [30, 20, 10, 4, 0, 0, 0.9]
    found = yolo([without], recipe("yolo", 3))
    np.testing.assert_allclose(found.boxes, [[25, 18, 35, 22]])
    np.testing.assert_allclose(found.scores, [0.9])
    assert found.channels.tolist() == [2]


def test_end2end_takes_boxes_as_they_are():
    rows = np.array(
        [[1, 2, 30, 20, 0.9, 1], [1, 2, 30, 20, 0.8, 1], [5, 5, 9, 9, 0.1, 0], [0, 0, 1, 1, 0.9, 7]], np.float32
    )
    found = end2end([rows], recipe("end2end", 2))
    assert found.boxes.tolist() == [[1, 2, 30, 20], [1, 2, 30, 20]]
    assert found.rivals == "none"


@pytest.mark.parametrize(
    ("scores", "activation", "expected"),
    [
        ([0.1, 0.7, 0.2], None, 0.7),
        ([0.0, 5.0, 0.0], None, np.exp(5) / (2 + np.exp(5))),
        ([-9.0, 2.0, -9.0], "sigmoid", 1 / (1 + np.exp(-2))),
        ([0.4, 0.9, 0.4], "none", 0.9),
    ],
)
def test_a_classifier_answers_probabilities_whether_or_not_the_graph_does(scores, activation, expected):
    found = classify([np.array(scores, np.float32)[:, None, None]], recipe("classify", 3, activation=activation))
    assert found.channels.tolist() == [1]
    np.testing.assert_allclose(found.scores, [expected], rtol=1e-5)


def test_a_heatmap_has_an_object_at_each_peak_and_one_on_a_plateau():
    scores = np.zeros((2, 4, 8), np.float32)
    scores[0, 1, 1] = 0.9
    scores[0, 1, 2] = scores[1, 2, 2] = 0.6  # on the slopes of the peak
    scores[1, 0:2, 5:7] = 1.0  # a plateau
    found = heatmap([scores], recipe("heatmap", 2, stride=8, box=(10, 6)))
    order = np.argsort(found.scores)
    np.testing.assert_allclose(found.boxes[order], [[12 - 5, 12 - 3, 12 + 5, 12 + 3], [44 - 5, 4 - 3, 44 + 5, 4 + 3]])
    assert found.channels[order].tolist() == [0, 1]
    assert found.kind == "box"


def test_a_heatmap_lies_in_the_middle_of_the_input_whether_or_not_the_graph_pads():
    scores = np.zeros((1, 2, 10), np.float32)  # windows of 28 × 28, 4 pixels apart, on an input of 64 × 32
    scores[0, 0, 0] = 1
    found = heatmap([scores], recipe("heatmap", 1, stride=4, box=28))
    np.testing.assert_allclose(found.boxes, [[0, 0, 28, 28]])


def test_a_heatmap_takes_sizes_from_a_second_output_and_gives_points_without_any():
    scores = np.zeros((1, 4, 8), np.float32)
    scores[0, 2, 3] = 1
    sizes = np.ones((2, 4, 8), np.float32)
    sizes[:, 2, 3] = 20, 12
    np.testing.assert_allclose(heatmap([scores, sizes], recipe("heatmap", 1)).boxes, [[18, 14, 38, 26]])
    found = heatmap([scores], recipe("heatmap", 1))
    assert found.kind == "point"
    np.testing.assert_allclose(found.boxes, [[28, 20, 28, 20]])


def test_the_background_of_a_heatmap_is_nothing():
    scores = np.stack([np.full((4, 8), 0.9), np.full((4, 8), 0.1)]).astype(np.float32)
    scores[:, 1, 1] = 0.2, 0.8
    found = heatmap([scores], recipe("heatmap", 2, background=0, box=8))
    assert found.scores.tolist() == [np.float32(0.8)]


SHAPES = {
    "yolox": [(42, 7)],
    "fastestdet": [(7, 2, 4)],
    "ultraface": [(9, 2), (9, 4)],
    "yolo": [(60, 7)],
    "end2end": [(10, 6)],
    "classify": [(2,)],
    "heatmap": [(2, 4, 8)],
}


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_nothing_below_the_confidence_is_answered_whatever_the_numbers(name, data):
    outputs = [data.draw(arrays(np.float32, shape, elements=st.floats(-8, 8, width=32))) for shape in SHAPES[name]]
    found = DECODERS[name](outputs, recipe(name, 2, background=0 if name == "ultraface" else None))
    assert found.boxes.shape == (len(found.scores), 4)
    assert len(found.channels) == len(found.scores)
    assert (found.scores >= 0.5).all()
    assert ((found.channels >= 0) & (found.channels < 2)).all()
