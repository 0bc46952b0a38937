"""Which decoder fits a graph, and what is usual for it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from loopcore.drivers.onnx.decoders import STRIDES
from loopcore.drivers.onnx.spec import DecoderName, Spec
from loopcore.errors import ModelError

Shape: TypeAlias = tuple[int, ...]


class Graph(Struct, frozen=True, kw_only=True):
    """What the decision rests on.

    Attributes:
        size: Width and height of the input.
        outputs: The shape of each output without the axis of the batch.
        labels: The class names, if they are known.
    """

    size: tuple[int, int]
    outputs: tuple[Shape, ...]
    labels: tuple[str, ...] = ()


class Misfit(Exception):  # noqa: N818 - an answer, not a failure
    """Why a decoder cannot read a graph."""


Count: TypeAlias = Callable[[Graph], int]
"""How many classes the graph's answer holds, background included; raises `Misfit` where the shapes are impossible."""


def _yolox(graph: Graph) -> int:
    rows, width = _only(graph, 2, "(cells, 5 + classes)")
    if rows != _grid(graph):
        raise Misfit(f"it would have {_grid(graph)} rows for this input, not {rows}")
    return _at_least(width - 5)


def _fastestdet(graph: Graph) -> int:
    depth, _, _ = _only(graph, 3, "(5 + classes, rows, columns)")
    return _at_least(depth - 5)


def _ultraface(graph: Graph) -> int:
    shapes = graph.outputs
    if len(shapes) != 2 or any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise Misfit("it has two outputs (n, 1 + classes) and (n, 4)")
    widths = sorted((shape[1] for shape in shapes), key=lambda width: width == 4)
    if widths[1] != 4:
        raise Misfit("neither output is (n, 4)")
    return 1 + _at_least(widths[0] - 1)


def _yolo(graph: Graph) -> int:
    first, second = _only(graph, 2, "(n, 5 + classes) or (4 + classes, n)")
    return _at_least(second - 5 if first > second else first - 4)


def _end2end(graph: Graph) -> int:
    _, width = _only(graph, 2, "(n, 6)")
    if width != 6:
        raise Misfit("its rows have 6 numbers")
    return len(graph.labels) or 1000


def _classify(graph: Graph) -> int:
    if len(graph.outputs) != 1 or any(side != 1 for side in graph.outputs[0][1:]):
        raise Misfit("it has one output (classes)")
    return _at_least(graph.outputs[0][0])


def _heatmap(graph: Graph) -> int:
    shapes = graph.outputs
    if len(shapes) > 2 or any(len(shape) != 3 for shape in shapes):
        raise Misfit("it has an output (classes, rows, columns)")
    if len(shapes) == 2 and shapes[1] != (2, *shapes[0][1:]):
        raise Misfit("its second output is (2, rows, columns)")
    return _at_least(shapes[0][0])


COUNTS: dict[DecoderName, Count] = {
    "ultraface": _ultraface,
    "end2end": _end2end,
    "fastestdet": _fastestdet,
    "yolox": _yolox,
    "yolo": _yolo,
    "classify": _classify,
    "heatmap": _heatmap,
}

HABITS: dict[DecoderName, Spec] = {
    "yolox": Spec(channels="bgr", resize="letterbox", placement="top_left", confidence=0.35, iou=0.5),
    "fastestdet": Spec(channels="bgr", scale=1 / 255, resize="squash", resample="exact", confidence=0.6, iou=0.5),
    "ultraface": Spec(channels="rgb", mean=127.0, std=128.0, resize="squash", background=0, confidence=0.7, iou=0.3),
    "yolo": Spec(scale=1 / 255, resize="letterbox", confidence=0.25, iou=0.5),
    "end2end": Spec(scale=1 / 255, resize="letterbox", confidence=0.25),
    "heatmap": Spec(resize="squash", confidence=0.5, iou=0.3),
    "classify": Spec(
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize="squash",
        confidence=0.0,
        max_detections=1,
    ),
}
"""What is usual where the spec says nothing."""


def guess(graph: Graph) -> DecoderName:
    """The one decoder that fits.

    Raises:
        ModelError: None does, or several do; the message says why for each.
    """
    fitting: list[DecoderName] = []
    tried = []
    for name, count in COUNTS.items():
        try:
            _check_plausible(name, graph, count(graph))
        except Misfit as misfit:
            tried.append(f"{name}: {misfit}")
        else:
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    shapes = " and ".join(str(list(shape)) for shape in graph.outputs)
    about = f"with outputs {shapes} for a frame of {graph.size[0]} × {graph.size[1]} and {len(graph.labels)} labels"
    if fitting:
        raise ModelError(f"a graph {about} may be {' or '.join(fitting)}: name the decoder, or give the labels")
    raise ModelError(f"no decoder is known for a graph {about} (tried {'; '.join(tried)})")


def count_classes(name: DecoderName, graph: Graph) -> int:
    """How many classes, background included, the answer holds if it is read by this decoder.

    Raises:
        ModelError: It cannot be read by it.
    """
    try:
        return COUNTS[name](graph)
    except Misfit as misfit:
        raise ModelError(f"the decoder {name!r} does not fit outputs of shape {graph.outputs}: {misfit}") from misfit


def parse_names(text: str) -> tuple[str, ...]:
    """The labels in the metadata that Ultralytics writes, `{0: 'person', 1: 'bicycle'}`; empty if it is not that."""
    try:
        names = ast.literal_eval(text) if len(text) < 1_000_000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _check_plausible(name: DecoderName, graph: Graph, classes: int) -> None:
    labels = len(graph.labels)
    is_whole = name in ("ultraface", "heatmap", "classify")  # may name the background too
    if labels and classes != labels and not (is_whole and classes == labels + 1) and name != "end2end":
        raise Misfit(f"it would tell {classes} classes apart")
    shape = graph.outputs[0]
    grid = _grid(graph)
    match name:
        case "end2end" if shape[0] > 1000 or shape[0] in (grid, 3 * grid):
            raise Misfit("it has at most 1000 rows, fewer than cells")
        case "yolo" if shape[0] > shape[1] and shape[0] == grid:
            raise Misfit("with one row a cell it is yolox")
        case "yolo" if not labels and grid not in (shape[1], shape[0] // 3):
            raise Misfit(f"it would have {grid} or {3 * grid} boxes for this input")
        case "yolo" if shape[1] == 6 and shape[0] <= 1000 and shape[0] != 3 * grid:
            raise Misfit(f"it would have {3 * grid} rows for this input")
        case "fastestdet" if not labels and classes != 80:
            raise Misfit("without labels it is only known by the 80 classes of COCO")
        case "heatmap" if not labels and len(graph.outputs) == 1 and shape[0] == 85:
            raise Misfit("85 channels without labels are fastestdet's")
        case "heatmap" if shape[1] == 1 and shape[2] == 1:
            raise Misfit("a map has more than one cell")


def _only(graph: Graph, axes: int, wanted: str) -> Shape:
    if len(graph.outputs) != 1 or len(graph.outputs[0]) != axes:
        raise Misfit(f"it has one output {wanted}")
    return graph.outputs[0]


def _at_least(classes: int) -> int:
    if classes < 1:
        raise Misfit("no channel is left for a class")
    return classes


def _grid(graph: Graph) -> int:
    width, height = graph.size
    return sum((width // stride) * (height // stride) for stride in STRIDES)
