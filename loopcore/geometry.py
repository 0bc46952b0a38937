"""Where a picture's pixels go in a model's input, and what to do with boxes. Pure functions on arrays.

Boxes are arrays `(n, 4)`, float: corners `x1, y1, x2, y2` unless a name says otherwise. Coordinates are continuous: the
left edge of the first pixel is 0, the right edge of the last one is the width.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from loopcore.types import RGB

Floats: TypeAlias = NDArray[np.floating]
Indices: TypeAlias = NDArray[np.intp]
Placement: TypeAlias = Literal["center", "top_left"]

_TOGETHER = 200
"""Up to so many boxes, all groups are looked at in one matrix; beyond, one for each group is less work."""


class Fit(Struct, frozen=True):
    """How a picture lies in a model's input: it covers `width` × `height` pixels of it from `left`, `top` on.

    Attributes:
        scale_x: Pixels of the input for one of the picture, across.
        scale_y: The same, down.
    """

    left: int
    top: int
    width: int
    height: int
    scale_x: float
    scale_y: float

    def forward(self, boxes: Floats) -> Floats:
        """Boxes of the picture, in pixels of the input."""
        return boxes * self._scales() + self._offsets()

    def inverse(self, boxes: Floats) -> Floats:
        """Boxes of the input, in pixels of the picture. Nothing is clipped."""
        return (boxes - self._offsets()) / self._scales()

    def _scales(self) -> Floats:
        return np.array((self.scale_x, self.scale_y) * 2)

    def _offsets(self) -> Floats:
        return np.array((self.left, self.top) * 2, dtype=float)


def squash(source: tuple[int, int], target: tuple[int, int]) -> Fit:
    """Fill the input, whatever becomes of the proportions. Sizes are width, height."""
    return Fit(0, 0, *target, target[0] / source[0], target[1] / source[1])


def letterbox(source: tuple[int, int], target: tuple[int, int], placement: Placement = "center") -> Fit:
    """Keep the proportions and leave a margin. Sizes are width, height."""
    ratio = min(target[0] / source[0], target[1] / source[1])
    width = min(target[0], max(1, round(source[0] * ratio)))
    height = min(target[1], max(1, round(source[1] * ratio)))
    left, top = ((target[0] - width) // 2, (target[1] - height) // 2) if placement == "center" else (0, 0)
    return Fit(left, top, width, height, width / source[0], height / source[1])


def resize(pixels: RGB, width: int, height: int, out: RGB | None = None) -> RGB:
    """Resample to another size; into `out`, which may be a part of a larger picture, if it is given.

    Every pixel counts when a picture shrinks, as with Pillow's bilinear filter and at a fifth of its cost.
    """
    import cv2

    # Halving even sides is the one shrinking that OpenCV does at once; by any other factor it takes ten times as long.
    while pixels.shape[1] > 2 * width and pixels.shape[0] > 2 * height and not (pixels.shape[0] | pixels.shape[1]) & 1:
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), np.uint8)
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    if across == down == 1:
        if out is None:
            return pixels.copy()
        np.copyto(out, pixels)
        return out
    method = cv2.INTER_LINEAR
    if max(across, down) > 2:
        method = cv2.INTER_AREA
    elif max(across, down) > 1:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (3, 3), sigmaX=_sigma(across), sigmaY=_sigma(down)), np.uint8)
    resized: Any = cv2.resize(pixels, (width, height), dst=out, interpolation=method)
    return cast("RGB", resized)


def resample(pixels: RGB, width: int, height: int) -> RGB:
    """Resample with the triangle filter that Pillow calls bilinear: what most models were trained with."""
    from PIL import Image

    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8)


def _sigma(shrink: float) -> float:
    """What makes linear interpolation see all pixels: it is a triangle of variance 1/6 and should be one of shrink²/6.

    The taps `a, 1 - 2a, a` have the variance `2a`; a Gaussian's outer tap is `exp(-1 / (2 sigma²))` of its middle.
    """
    tap = max((shrink * shrink - 1) / 12, 1e-6)
    return math.sqrt(-0.5 / math.log(tap / (1 - 2 * tap)))


def corners(boxes: Floats) -> Floats:
    """Boxes given as centre x, centre y, width, height, as corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def centers(boxes: Floats) -> Floats:
    """Boxes given as corners, as centre x, centre y, width, height."""
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of each box of the first `(n, 4)` with each of the second `(m, 4)`: `(n, m)`, 0 to 1.

    A box without area has 0 with everything, itself included.
    """
    across = np.minimum.outer(first[:, 2], second[:, 2]) - np.maximum.outer(first[:, 0], second[:, 0])
    down = np.minimum.outer(first[:, 3], second[:, 3]) - np.maximum.outer(first[:, 1], second[:, 1])
    shared = np.maximum(across, 0) * np.maximum(down, 0)
    union = np.add.outer(_areas(first), _areas(second)) - shared
    return cast("Floats", np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _areas(boxes: Floats) -> Floats:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return cast("Floats", sides[:, 0] * sides[:, 1])


def nms(boxes: Floats, scores: Floats, threshold: float, groups: Indices | None = None, limit: int = 1000) -> Indices:
    """Non-maximum suppression: of boxes that overlap by more than `threshold`, only the one with the best score stays.

    Args:
        boxes: `(n, 4)`.
        scores: `(n,)`.
        threshold: An IoU.
        groups: `(n,)`, such as the class: boxes suppress only those of their own group. Without it, all are one.
        limit: Only this many of the best scores take part.

    Returns:
        The indices of those that stay, best score first; equal scores in the order given.
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) > limit:
        order = order[:limit]
    if groups is None or len(order) <= _TOGETHER:
        return _suppress(boxes, order, threshold, groups)
    kept = [_suppress(boxes, order[groups[order] == group], threshold) for group in np.unique(groups[order])]
    stays = np.concatenate(kept) if kept else order
    return stays[np.lexsort((stays, -scores[stays]))]


def _suppress(boxes: Floats, order: Indices, threshold: float, groups: Indices | None = None) -> Indices:
    if len(order) < 2:
        return order
    ranked = boxes[order]
    rivals = np.triu(iou(ranked, ranked) > threshold, 1)
    if groups is not None:
        rivals &= np.equal.outer(groups[order], groups[order])
    alive = np.ones(len(order), dtype=bool)
    for index in np.flatnonzero(rivals.any(axis=1)).tolist():
        if alive[index]:
            alive[rivals[index]] = False
    return order[alive]
