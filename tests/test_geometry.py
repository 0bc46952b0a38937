"""Pictures in a model's input and back, and which boxes stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loopcore import geometry
from loopcore.geometry import centers, corners, iou, letterbox, nms, resize, squash

sides = st.integers(1, 8000)
sizes = st.tuples(sides, sides)
numbers = st.floats(-1e4, 1e4, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn, max_size: int = 12) -> np.ndarray:
    rows = draw(st.lists(st.tuples(numbers, numbers, st.floats(1, 1e3), st.floats(1, 1e3)), max_size=max_size))
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=float).reshape(-1, 4)


@given(sizes, sizes, boxes(), st.sampled_from(["center", "top_left"]))
def test_a_box_comes_back_from_a_letterbox_as_it_was(source, target, given_boxes, placement):
    fit = letterbox(source, target, placement)
    back = fit.inverse(fit.forward(given_boxes))
    np.testing.assert_allclose(back, given_boxes, rtol=1e-6, atol=1e-3 * max(source))


@given(sizes, sizes, boxes())
def test_a_box_comes_back_from_a_squashed_picture_as_it_was(source, target, given_boxes):
    fit = squash(source, target)
    np.testing.assert_allclose(fit.inverse(fit.forward(given_boxes)), given_boxes, rtol=1e-6, atol=1e-6)


@given(sizes, sizes, st.sampled_from(["center", "top_left"]))
def test_a_letterboxed_picture_lies_within_the_input_and_touches_two_of_its_sides(source, target, placement):
    fit = letterbox(source, target, placement)
    assert 0 <= fit.left <= target[0] - fit.width
    assert 0 <= fit.top <= target[1] - fit.height
    assert fit.width == target[0] or fit.height == target[1]
    whole = fit.forward(np.array([[0, 0, *source]], dtype=float))
    np.testing.assert_allclose(whole, [[fit.left, fit.top, fit.left + fit.width, fit.top + fit.height]], atol=1e-6)


def test_a_letterbox_keeps_the_proportions_to_half_a_pixel():
    fit = letterbox((1920, 1080), (416, 416))
    assert (fit.left, fit.top, fit.width, fit.height) == (0, 91, 416, 234)
    assert letterbox((1920, 1080), (416, 416), "top_left").top == 0


@given(boxes())
def test_corners_and_centers_are_each_others_inverse(given_boxes):
    np.testing.assert_allclose(corners(centers(given_boxes)), given_boxes, atol=1e-6)


@given(boxes(), boxes())
def test_iou_is_between_0_and_1_and_does_not_depend_on_the_order(first, second):
    overlaps = iou(first, second)
    assert overlaps.shape == (len(first), len(second))
    assert (overlaps >= 0).all()
    assert (overlaps <= 1 + 1e-9).all()
    np.testing.assert_allclose(overlaps, iou(second, first).T)
    np.testing.assert_allclose(np.diag(iou(first, first)), np.ones(len(first)))


def test_iou_of_known_boxes():
    two = np.array([[0, 0, 10, 10], [5, 0, 15, 10]], dtype=float)
    np.testing.assert_allclose(iou(two, two), [[1, 1 / 3], [1 / 3, 1]])
    nothing = np.array([[3, 3, 3, 3]], dtype=float)
    assert iou(nothing, two).max() == iou(nothing, nothing).max() == 0


@given(st.data())
def test_nms_keeps_the_same_boxes_as_its_definition(data):
    some = data.draw(boxes())
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(some), max_size=len(some))))
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(some), max_size=len(some))), dtype=np.intp)
    expected: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        rivals = [kept for kept in expected if groups[kept] == groups[index]]
        if all(iou(some[[index]], some[[kept]])[0, 0] <= 0.4 for kept in rivals):
            expected.append(index)
    assert nms(some, scores, 0.4, groups).tolist() == expected


def test_nms_of_many_boxes_keeps_the_same_as_group_by_group(monkeypatch):
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 100, (400, 2))
    many = np.concatenate((corner, corner + rng.uniform(5, 40, (400, 2))), axis=1)
    scores, groups = rng.random(400), rng.integers(0, 5, 400)
    apart = nms(many, scores, 0.4, groups)
    monkeypatch.setattr(geometry, "_TOGETHER", 1000)
    assert nms(many, scores, 0.4, groups).tolist() == apart.tolist()
    assert 5 < len(apart) < 400


def test_nms_looks_at_the_best_candidates_only():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 400, (10_000, 2))
    many = np.concatenate((corner, corner + 20), axis=1)
    scores = rng.random(10_000)
    kept = nms(many, scores, 0.5, limit=50)
    assert set(kept.tolist()) <= set(np.argsort(-scores)[:50].tolist())
    assert kept[0] == scores.argmax()


@pytest.mark.parametrize("size", [(320, 214), (352, 352), (384, 256), (500, 400), (640, 427), (700, 500)])
def test_resizing_agrees_with_an_antialiased_bilinear_filter(shared_data, size):
    picture = Image.open(shared_data / "photos" / "china.jpg")
    pixels = np.asarray(picture)
    expected = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert abs(resize(pixels, *size) - expected).mean() < 1.5
    canvas = np.zeros((size[1] + 8, size[0] + 8, 3), np.uint8)
    part = canvas[4:-4, 4:-4]
    resize(pixels, *size, out=part)
    np.testing.assert_array_equal(part, resize(pixels, *size))
    assert not canvas[:4].any()
    assert not canvas[:, -4:].any()


@pytest.mark.parametrize(("rows", "columns"), [(300, 400), (299, 399), (320, 480)])
def test_no_pixel_is_left_out_when_a_picture_shrinks_much(rows, columns):
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (rows, columns, 3))
    small = resize(noise, 40, 30)
    assert abs(small.mean() - 127.5) < 2
    assert small.std() < 30  # of single pixels it would be 127
