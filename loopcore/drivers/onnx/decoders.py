"""What a head answers, as candidates: small pure functions on arrays, one for each name in `spec.decoder`.

Each gets the outputs for one frame, `float32`, without the axis of the batch, and the recipe. Boxes are corners in
pixels of the model's input, unclipped. Nothing below `recipe.confidence` is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from loopcore.drivers.onnx.spec import DecoderName, Recipe
from loopcore.geometry import corners

Floats: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = Sequence[Floats]

STRIDES = (8, 16, 32)


class Candidates(Struct, frozen=True, eq=False):
    """What a head sees.

    Attributes:
        boxes: `(n, 4)`, corners in pixels of the input; empty boxes for points, anything for a class of the whole.
        scores: `(n,)`.
        channels: `(n,)`: which of the answer's classes.
        kind: What they become.
        rivals: Boxes that overlap are told apart `within` a class, over `all` of them, or have `none`.
    """

    boxes: Floats
    scores: Floats
    channels: NDArray[np.intp]
    kind: Literal["box", "point", "classification"] = "box"
    rivals: Literal["within", "all", "none"] = "within"


def yolox(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(cells, 5 + classes)`, boxes not decoded: offsets to the cell and logarithms of the size, in strides.

    Cells run over the grids of the strides 8, 16 and 32, each row by row. Objectness and classes are probabilities.
    """
    (rows,) = outputs
    cells = _cells(recipe.width, recipe.height)
    found = _best(rows[:, 4], rows[:, 5:], recipe)
    x, y, stride = cells[found.index].T
    raw = rows[found.index, :4]
    with np.errstate(over="ignore"):
        size = np.exp(raw[:, 2:]) * stride[:, None]
    middle = (raw[:, :2] + np.stack((x, y), axis=1)) * stride[:, None]
    return Candidates(corners(np.concatenate((middle, size), axis=1)), found.scores, found.channels)


def fastestdet(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(5 + classes, rows, columns)`, one prediction a cell: objectness, box, classes.

    `score = objectness^0.6 * class^0.4`; the centre is `tanh` from the cell, the size `sigmoid` of the whole.
    """
    (grid,) = outputs
    height, width = grid.shape[1:]
    flat = grid.reshape(len(grid), -1)
    best = flat[5:].argmax(axis=0)
    likely = np.take_along_axis(flat[5:], best[None], axis=0)[0]
    scores = np.maximum(flat[0], 0) ** 0.6 * np.maximum(likely, 0) ** 0.4
    index = np.flatnonzero(~(scores < recipe.confidence))
    raw = flat[1:5, index]
    x = (np.tanh(raw[0]) + index % width) / width
    y = (np.tanh(raw[1]) + index // width) / height
    boxes = corners(np.stack((x, y, _sigmoid(raw[2]), _sigmoid(raw[3])), axis=1))
    return Candidates(boxes * _whole(recipe), scores[index], best[index])


def ultraface(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(n, 1 + classes)` probabilities, background first, and `(n, 4)` corners relative to the input; in any order."""
    first, second = outputs
    scores, boxes = (second, first) if first.shape[-1] == 4 and second.shape[-1] != 4 else (first, second)
    best = scores[:, 1:].argmax(axis=1)
    likely = np.take_along_axis(scores[:, 1:], best[:, None], axis=1)[:, 0]
    index = np.flatnonzero(~(likely < recipe.confidence))
    return Candidates(boxes[index] * _whole(recipe), likely[index], best[index] + 1)


def yolo(outputs: Outputs, recipe: Recipe) -> Candidates:
    """Centre, width and height in pixels of the input, then classes, all decoded.

    Version 5 and 7: `(n, 5 + classes)` with objectness before the classes. Version 8 and 11: `(4 + classes, n)`.
    """
    (rows,) = outputs
    count = len(recipe.classes)
    if rows.shape[1] == 5 + count and rows.shape[0] != 4 + count:
        found = _best(rows[:, 4], rows[:, 5:], recipe)
        return Candidates(corners(rows[found.index, :4]), found.scores, found.channels)
    likely = rows[4:].max(axis=0)
    index = np.flatnonzero(~(likely < recipe.confidence))
    return Candidates(corners(rows[:4, index].T), likely[index], rows[4:, index].argmax(axis=0))


def end2end(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(n, 6)`: corners in pixels of the input, score, class; the graph has already removed what overlaps."""
    (rows,) = outputs
    rows = rows[~(rows[:, 4] < recipe.confidence)]
    channels = np.nan_to_num(rows[:, 5], nan=-1).round().astype(np.intp)
    known = (channels >= 0) & (channels < len(recipe.classes))
    return Candidates(rows[known, :4], rows[known, 4], channels[known], rivals="none")


def classify(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(classes,)`, or with axes of length 1: probabilities, or what `recipe.activation` makes into them.

    With no activation named, an answer that is no distribution (0 to 1, sum 1) is taken for logits of a softmax.
    """
    scores = outputs[0].reshape(-1)
    activation = recipe.activation
    if activation is None:
        is_distribution = scores.min() >= 0 and scores.max() <= 1 and abs(float(scores.sum()) - 1) < 1e-2
        activation = "none" if is_distribution else "softmax"
    scores = _activate(scores, activation)
    channels = np.flatnonzero(~(scores < recipe.confidence))
    return Candidates(np.zeros((len(channels), 4), np.float32), scores[channels], channels, "classification", "none")


def heatmap(outputs: Outputs, recipe: Recipe) -> Candidates:
    """`(classes, rows, columns)`: for each cell how likely an object of each class has its centre there.

    The cells lie `recipe.stride` pixels of the input apart, and the map in the middle of the input, whether the graph
    pads its borders or not: the centre of cell `g` of `n` is `(size - (n - 1) * stride) / 2 + g * stride`. Without a
    stride it is the input's size by the map's, rounded.

    An object is where the best class of a cell is not the background, reaches the confidence, and is not exceeded by
    any of the eight neighbours; on a plateau, the first cell in reading order. Its width and height in pixels of the
    input come from a second output `(2, rows, columns)`, or are `recipe.box`; without either it is a point. Boxes that
    overlap by more than `recipe.iou` have one winner, whatever their classes.
    """
    scores = _activate(outputs[0], recipe.activation or "none")
    best = scores.argmax(axis=0)
    likely = np.take_along_axis(scores, best[None], axis=0)[0]
    background = np.array([index < 0 for index in recipe.classes])
    likely = np.where(background[best], np.float32(0), likely)
    at_y, at_x = np.nonzero(_peaks(likely) & (likely > 0) & ~(likely < recipe.confidence) | np.isnan(likely))
    rows, columns = likely.shape
    step_x = recipe.stride or max(1, round(recipe.width / columns))
    step_y = recipe.stride or max(1, round(recipe.height / rows))
    x = (recipe.width - (columns - 1) * step_x) / 2 + at_x * step_x
    y = (recipe.height - (rows - 1) * step_y) / 2 + at_y * step_y
    if len(outputs) > 1:
        width, height = outputs[1][:, at_y, at_x]
    else:
        width, height = (np.full(len(x), side) for side in recipe.box or (0, 0))
    boxes = corners(np.stack((x, y, width, height), axis=1)).astype(np.float32)
    is_point = len(outputs) == 1 and recipe.box is None
    return Candidates(boxes, likely[at_y, at_x], best[at_y, at_x], "point" if is_point else "box", "all")


DECODERS: dict[DecoderName, Callable[[Outputs, Recipe], Candidates]] = {
    "yolox": yolox,
    "fastestdet": fastestdet,
    "ultraface": ultraface,
    "yolo": yolo,
    "end2end": end2end,
    "heatmap": heatmap,
    "classify": classify,
}


class _Found(Struct, frozen=True, eq=False):
    index: NDArray[np.intp]
    scores: Floats
    channels: NDArray[np.intp]


def _best(objectness: Floats, classes: Floats, recipe: Recipe) -> _Found:
    # No class is likelier than 1, so most cells can be left out by their objectness. `~(a < b)` lets NaN through, which
    # the backend reports; `a >= b` would hide it.
    index = np.flatnonzero(~(objectness < recipe.confidence))
    likely = classes[index]
    channels = likely.argmax(axis=1)
    scores = objectness[index] * np.take_along_axis(likely, channels[:, None], axis=1)[:, 0]
    kept = ~(scores < recipe.confidence)
    return _Found(index[kept], scores[kept], channels[kept])


@lru_cache(maxsize=8)
def _cells(width: int, height: int) -> Floats:
    """`(n, 3)`: column, row and stride of each cell, in the order of the answer's rows."""
    grids = []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride].reshape(2, -1)
        grids.append(np.stack((x, y, np.full(len(x), stride)), axis=1))
    cells = np.concatenate(grids).astype(np.float32)
    cells.setflags(write=False)
    return cells


def _peaks(scores: Floats) -> NDArray[np.bool_]:
    rows, columns = scores.shape
    framed = np.pad(scores, 1, constant_values=-np.inf)
    peaks = np.ones(scores.shape, dtype=bool)
    for dy, dx in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        other = framed[dy : dy + rows, dx : dx + columns]
        peaks &= scores > other if (dy, dx) < (1, 1) else scores >= other
    return peaks


def _activate(scores: Floats, activation: Literal["none", "sigmoid", "softmax"]) -> Floats:
    if activation == "sigmoid":
        return _sigmoid(scores)
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float32)
    return scores


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)


def _whole(recipe: Recipe) -> Floats:
    return np.array((recipe.width, recipe.height) * 2, np.float32)
