"""The annotator `outline` on pictures whose objects are known to the pixel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from loopcore.abc import AnnotationSession, Proposal, Stroke, StrokeKind
from loopcore.drivers.outline import OutlineAnnotator, OutlineOptions
from loopcore.testing.suites.annotator import drag
from loopcore.types import RGB

WIDTH, HEIGHT = 320, 240
ENTER = Stroke(kind=StrokeKind.KEY, key="Enter")
ESCAPE = Stroke(kind=StrokeKind.KEY, key="Escape")
DISC = (160.0, 120.0, 50.0)


def scene(seed: int = 0) -> RGB:
    """A noisy green ground."""
    noise = np.random.default_rng(seed).normal(0, 12, (HEIGHT, WIDTH, 3))
    return np.clip(noise + np.array((70, 110, 60)), 0, 255).astype(np.uint8)


def disc(x: float, y: float, radius: float, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def polygon(*corners: tuple[float, float]) -> Any:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.array(corners, np.int32)], 1)
    return mask.astype(bool)


def paint(pixels: RGB, mask: Any, color: tuple[int, int, int], seed: int = 1) -> RGB:
    noise = np.random.default_rng(seed).normal(0, 12, pixels.shape)
    pixels[mask] = np.clip(noise + np.array(color), 0, 255).astype(np.uint8)[mask]
    return pixels


def filled(outline: Sequence[tuple[float, float]], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """The pixels whose centres are inside, to an eighth of a pixel."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.round((np.array(outline) - 0.5) * 8).astype(np.int32)], 1, shift=3)
    return mask.astype(bool)


def iou(one: Any, other: Any) -> float:
    return float((one & other).sum() / (one | other).sum())


def session(pixels: RGB, **options: Any) -> AnnotationSession:
    return OutlineAnnotator(OutlineOptions(**options)).open(pixels, "thing")


def act(session: AnnotationSession, *strokes: Iterable[Stroke]) -> Proposal:
    """The answer to the last stroke."""
    return [session.act(stroke) for drawn in strokes for stroke in drawn][-1]


def around(mask: Any, slack: float) -> list[Stroke]:
    """A box drawn around an object, as loosely as people do."""
    rows, columns = np.nonzero(mask)
    corners = columns.min() - slack, rows.min() - slack, columns.max() + 1 + slack, rows.max() + 1 + slack
    return drag(corners[:2], corners[2:])


SHAPES = {
    "disc": disc(*DISC),
    "small disc": disc(60, 60, 9),
    "disc at the edge": disc(0, 120, 60),
    "star": polygon(
        (160, 30),
        (185, 95),
        (250, 100),
        (195, 140),
        (215, 205),
        (160, 165),
        (105, 205),
        (125, 140),
        (70, 100),
        (135, 95),
    ),
    "hook": polygon((80, 40), (220, 40), (220, 80), (120, 80), (120, 200), (80, 200)),
    "bar": polygon((40, 115), (280, 115), (280, 127), (40, 127)),
}


@pytest.mark.parametrize("slack", [4, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_box_around_an_object_gives_its_outline(shape: str, slack: float) -> None:
    truth = SHAPES[shape]
    found = act(session(paint(scene(), truth, (190, 120, 60))), around(truth, slack))
    assert iou(filled(found.outline), truth) > 0.92
    assert not found.done


@pytest.mark.parametrize("factor", [2, 8])
def test_outline_is_in_pixels_of_a_large_picture(factor: int) -> None:
    size = (HEIGHT * factor, WIDTH * factor)
    small = paint(scene(), disc(*DISC), (190, 120, 60))
    large = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    x, y, radius = (value * factor for value in DISC)
    reach = radius + 10 * factor
    found = act(session(large), drag((x - reach, y - reach), (x + reach, y + reach)))
    assert iou(filled(found.outline, size), disc(x, y, radius, size)) > 0.97


def test_corners_are_few() -> None:
    found = act(session(paint(scene(), disc(*DISC), (190, 120, 60))), around(disc(*DISC), 10))
    assert 8 <= len(found.outline) <= 80


def test_plain_stroke_takes_a_neighbour_of_the_same_colour_away() -> None:
    truth, neighbour = disc(130, 120, 35), disc(215, 120, 30)
    bridge = polygon((150, 115), (200, 115), (200, 125), (150, 125))
    person = session(paint(scene(), truth | neighbour | bridge, (190, 120, 60)))
    before = act(person, around(truth | neighbour, 10))
    assert iou(filled(before.outline), truth) < 0.7
    after = act(person, drag((190, 80), (190, 160)), drag((200, 105), (230, 135)), drag((200, 140), (235, 100)))
    assert iou(filled(after.outline), truth) > 0.9


def test_stroke_with_shift_adds_a_part_of_another_colour() -> None:
    body, cap = disc(160, 140, 45), polygon((125, 60), (195, 60), (195, 112), (125, 112))
    pixels = paint(paint(scene(), body, (190, 120, 60)), cap, (75, 112, 75))  # the cap is almost as the ground
    person = session(pixels)
    before = act(person, around(body | cap, 10))
    after = act(person, drag((135, 70), (185, 70), shift=True), drag((135, 90), (185, 90), shift=True))
    truth = body | cap
    assert iou(filled(after.outline), truth) > max(0.85, iou(filled(before.outline), truth) + 0.05)


def test_stroke_with_shift_reaches_beyond_the_box() -> None:
    truth = polygon((100, 80), (240, 80), (240, 160), (100, 160))
    person = session(paint(scene(), truth, (190, 120, 60)))
    before = act(person, drag((90, 70), (200, 170)))
    after = act(person, drag((190, 120), (236, 120), shift=True))
    assert iou(filled(before.outline), truth) < 0.8
    assert iou(filled(after.outline), truth) > 0.93


def test_marked_piece_is_taken_of_two() -> None:
    large, small = disc(120, 120, 40), disc(220, 120, 20)
    person = session(paint(scene(), large | small, (190, 120, 60)))
    assert iou(filled(act(person, around(large | small, 8)).outline), large) > 0.93
    after = act(person, drag((110, 110), (130, 130)), drag((215, 120), (225, 120), shift=True))
    assert iou(filled(after.outline), small) > 0.85


def test_box_is_shown_while_it_is_drawn() -> None:
    person = session(scene())
    press, *moves, _ = drag((10, 20), (50, 60))
    assert act(person, [press]) == Proposal()
    assert act(person, moves).outline == ((10, 20), (50, 20), (50, 60), (10, 60))


def test_box_may_be_drawn_from_any_corner() -> None:
    truth = disc(*DISC)
    found = act(session(paint(scene(), truth, (190, 120, 60))), drag((230, 190), (90, 50)))
    assert iou(filled(found.outline), truth) > 0.93


def test_enter_ends_and_escape_starts_over() -> None:
    truth = disc(*DISC)
    person = session(paint(scene(), truth, (190, 120, 60)))
    assert act(person, [ENTER]) == Proposal()
    found = act(person, around(truth, 10))
    assert act(person, [ESCAPE]) == Proposal()
    assert act(person, [ENTER]) == Proposal()
    assert act(person, around(truth, 10)) == found
    assert act(person, [ENTER]) == Proposal(outline=found.outline, done=True)


def test_click_is_no_box() -> None:
    person = session(paint(scene(), disc(*DISC), (190, 120, 60)))
    assert act(person, drag((150, 110), (151, 111))) == Proposal()
    assert act(person, around(disc(*DISC), 10)).outline


def test_box_alone_is_enough_without_refining() -> None:
    truth = disc(*DISC)
    proposals = [session(paint(scene(), truth, (190, 120, 60)), refine=False)]
    answers = [proposals[0].act(stroke) for stroke in around(truth, 10)]
    assert [answer.done for answer in answers] == [False, False, False, True]
    assert iou(filled(answers[-1].outline), truth) > 0.93


@pytest.mark.parametrize("box", [(0, 0, WIDTH, HEIGHT), (40, 40, 200, 150), (300, 200, 320, 240)], ids=str)
def test_where_nothing_stands_out_the_box_is_the_outline(box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    found = act(session(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)), drag((left, top), (right, bottom)))
    corners = [(left, top), (left, bottom), (right, top), (right, bottom)]
    assert np.array(sorted(found.outline)) == pytest.approx(np.array(corners), abs=0.5)


def test_object_may_be_outlined_after_nothing_was_found() -> None:
    truth = disc(*DISC)
    pixels = paint(scene(), truth, (78, 112, 62))
    person = session(pixels)
    act(person, drag((20, 20), (300, 220)))
    after = act(person, drag((140, 100), (180, 140), shift=True), drag((180, 100), (140, 140), shift=True))
    middle = disc(160, 120, 10)
    assert (filled(after.outline) & middle).sum() > 0.9 * middle.sum()


def test_little_detail_still_gives_the_shape() -> None:
    truth = SHAPES["star"]
    found = act(session(paint(scene(), truth, (190, 120, 60)), detail=48), around(truth, 10))
    assert iou(filled(found.outline), truth) > 0.85
