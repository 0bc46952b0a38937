"""An object apart from what is around it, by GrabCut (Rother, Kolmogorov, Blake, 2004) on a part of the picture.

Only the part around the box is looked at, and that at a bounded size, so that the time does not grow with the picture.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from loopcore.types import RGB

Outline: TypeAlias = tuple[tuple[float, float], ...]
Labels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]
Rectangle: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""

_MARGIN = 0.35  # of the box's longer side: so much of what is around shows what is not the object
_MIN_MARGIN = 8  # pixels
_FIRST, _AGAIN = 3, 2  # rounds of GrabCut; strokes start from what was found
_BRUSH = 0.012  # half the width of a stroke, of the part's longer side
_SEED = 1
_LEAST = 0.005  # of the box: a smaller object was not found
_FINER = 4  # outlines are drawn on so many times the part's pixels, and so lose nothing at the object's rim
_TOLERANCE = 0.7  # pixels of the part that a corner may stray
_UNSAID = 255
_NO_BOX = (0, 0, 1, 1)  # a mask says more


class Cutout:
    """The part of a picture around a box, and what a person has said of it.

    Args:
        pixels: The picture; it is not written to, and not kept.
        box: Around the object, inside the picture, a pixel or more each way.
        detail: The longer side of the part is looked at in so many pixels at most.
    """

    def __init__(self, pixels: RGB, box: Rectangle, detail: int) -> None:
        self._box = box
        left, top, right, bottom = _part(box, pixels.shape[1], pixels.shape[0])
        part = pixels[top:bottom, left:right]
        shrink = min(1.0, detail / max(part.shape[:2]))
        width, height = (max(1, round(side * shrink)) for side in (part.shape[1], part.shape[0]))
        self._part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        self._origin = left, top
        self._scale = (right - left) / width, (bottom - top) / height
        self._said = np.full((height, width), _UNSAID, np.uint8)
        self._found: Mask | None = None

    def mark(self, start: tuple[float, float], end: tuple[float, float], *, belongs: bool) -> None:
        """Note a stroke from one place of the picture to another: what it covers belongs to the object, or not."""
        height, width = self._said.shape
        brush = max(1, round(_BRUSH * max(width, height)))
        ends = [tuple(math.floor(value) for value in self._inward(*place)) for place in (start, end)]
        cv2.line(self._said, ends[0], ends[1], cv2.GC_FGD if belongs else cv2.GC_BGD, 2 * brush + 1)

    def outline(self) -> Outline:
        """The object's outline in pixels of the picture; the box itself where nothing can be told apart in it."""
        labels = self._labels()
        belongs = (labels & 1).astype(bool)
        if belongs.any() and not belongs.all():
            cv2.setRNGSeed(_SEED)  # of this thread: the same strokes give the same outline
            rounds = _FIRST if self._found is None else _AGAIN
            around, object_ = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(self._part, labels, _NO_BOX, around, object_, rounds, cv2.GC_INIT_WITH_MASK)
            belongs = (labels & 1).astype(bool)
        self._found = belongs if belongs.any() else None
        return self._around(self._whole(belongs)) or _corners(self._box)

    def _labels(self) -> Labels:
        """What is known before GrabCut: the strokes for certain, the box's outside too, its inside perhaps."""
        height, width = self._said.shape
        left, top, right, bottom = self._reach()
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        inside = labels[top:bottom, left:right]
        inside[:] = cv2.GC_PR_FGD
        if self._found is not None:
            inside[~self._found[top:bottom, left:right]] = cv2.GC_PR_BGD
        if not (labels == cv2.GC_BGD).any():  # a box around all of the picture: its rim is the best guess
            labels[[0, -1], :] = labels[:, [0, -1]] = cv2.GC_PR_BGD
        said = self._said != _UNSAID
        labels[said] = self._said[said]
        return labels

    def _reach(self) -> tuple[int, int, int, int]:
        """Where the object may be, in pixels of the part: the box, and where a person says that it is."""
        height, width = self._said.shape
        left, top = self._inward(*self._box[:2])
        right, bottom = self._inward(*self._box[2:])
        rows, columns = np.nonzero(self._said == cv2.GC_FGD)
        if rows.size:
            left, right = min(left, columns.min()), max(right, columns.max() + 1)
            top, bottom = min(top, rows.min()), max(bottom, rows.max() + 1)
        return _whole_pixels(left, top, right, bottom, width, height)

    def _whole(self, belongs: Mask) -> Mask:
        """The largest piece; of pieces that a person has marked the largest of those."""
        count, pieces = cv2.connectedComponents(belongs.astype(np.uint8), connectivity=4)
        sizes = np.bincount(pieces.ravel(), minlength=count)
        sizes[0] = 0
        marked = np.bincount(pieces[self._said == cv2.GC_FGD], minlength=count)
        marked[0] = 0
        if marked.any():
            sizes[marked == 0] = 0
        return pieces == sizes.argmax() if sizes.any() else np.zeros_like(belongs)

    def _around(self, piece: Mask) -> Outline:
        left, top, right, bottom = self._box
        if piece.sum() * self._scale[0] * self._scale[1] < _LEAST * (right - left) * (bottom - top):
            return ()
        height, width = piece.shape
        grey = piece.astype(np.uint8) * 255
        finer = cv2.resize(grey, (width * _FINER, height * _FINER), interpolation=cv2.INTER_LINEAR) > 127
        contours, _ = cv2.findContours(finer.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return ()
        contour = cv2.approxPolyDP(max(contours, key=cv2.contourArea), _TOLERANCE * _FINER, closed=True)[:, 0]
        points = [self._outward((x + 0.5) / _FINER, (y + 0.5) / _FINER) for x, y in contour.tolist()]
        return tuple(points) if len(points) >= 3 else ()

    def _inward(self, x: float, y: float) -> tuple[float, float]:
        return (x - self._origin[0]) / self._scale[0], (y - self._origin[1]) / self._scale[1]

    def _outward(self, x: float, y: float) -> tuple[float, float]:
        return self._origin[0] + x * self._scale[0], self._origin[1] + y * self._scale[1]


def _part(box: Rectangle, width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    margin = max(_MIN_MARGIN, _MARGIN * max(right - left, bottom - top))
    return _whole_pixels(left - margin, top - margin, right + margin, bottom + margin, width, height)


def _whole_pixels(
    left: float, top: float, right: float, bottom: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """Every pixel that the rectangle touches, of a picture of this size."""
    start = max(0, math.floor(left)), max(0, math.floor(top))
    return *start, min(width, math.ceil(right)), min(height, math.ceil(bottom))


def _corners(box: Rectangle) -> Outline:
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)
