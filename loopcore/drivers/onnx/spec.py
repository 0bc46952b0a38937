"""The `spec` of a model package in the formats `onnx…`: how to feed the graph and how to read its answer."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from loopcore.errors import ModelError
from loopcore.geometry import Placement
from loopcore.types import Confidence, ModelInfo

Channels: TypeAlias = Literal["rgb", "bgr", "gray"]
Layout: TypeAlias = Literal["nchw", "nhwc"]
DecoderName: TypeAlias = Literal["yolox", "fastestdet", "ultraface", "yolo", "end2end", "heatmap", "classify"]
Activation: TypeAlias = Literal["none", "sigmoid", "softmax"]

_Side = Annotated[int, Meta(ge=1, le=16384)]
_Pair = Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=2, max_length=2)]
_PerChannel = Annotated[tuple[float, ...], Meta(min_length=1, max_length=3)]
_Divisors = Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1, max_length=3)]
_Level = Annotated[int, Meta(ge=0, le=255)]


class Size(Struct, frozen=True, forbid_unknown_fields=True):
    """An input size in words: `{"x": 320, "y": 240}`."""

    x: _Side
    y: _Side


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the maker of a model may say. Whatever is absent is guessed from the graph, else usual for the decoder.

    Each value of the input is `(pixel * scale - mean) / std`, with pixels 0 to 255.

    Attributes:
        file: The graph, if the package has several `.onnx` files.
        size: Width and height of the input in pixels: `416`, `[320, 240]` or `{"x": 320, "y": 240}`.
        channels: The order of colours; `gray` where the input has one channel.
        layout: The order of the input's axes.
        scale: See above.
        mean: See above; one number, or one for each channel in the model's order.
        std: See above; likewise.
        resize: `letterbox` keeps the proportions and leaves a margin; `squash` fills the input.
        placement: Where the picture lies in a letterbox.
        pad: The margin's grey, 0 to 255.
        resample: `exact` is the filter that most models are trained with, for small ones whose scores hang on it;
            `fast` is near it, at a fifth of its cost.
        decoder: How to read the answer.
        confidence: What is less likely is left out.
        iou: Of boxes of one label that overlap by more, only the best stays.
        max_detections: At most this many, the most likely ones.
        stride: Pixels of the input from one cell of a heatmap to the next.
        box: Width and height of a heatmap's boxes, in pixels of the input.
        activation: What a classifier's or heatmap's scores still need to be probabilities.
        background: The channel that means "nothing", for a classifier or heatmap; it has no label.
    """

    file: str | None = None
    size: _Side | Annotated[tuple[_Side, ...], Meta(min_length=2, max_length=2)] | Size | None = None
    channels: Channels | None = None
    layout: Layout | None = None
    scale: float | None = None
    mean: float | _PerChannel | None = None
    std: Annotated[float, Meta(gt=0)] | _Divisors | None = None
    resize: Literal["letterbox", "squash"] | None = None
    placement: Placement | None = None
    pad: _Level | None = None
    resample: Literal["fast", "exact"] | None = None
    decoder: DecoderName | None = None
    confidence: Confidence | None = None
    iou: Confidence | None = None
    max_detections: Annotated[int, Meta(ge=1)] | None = None
    stride: Annotated[float, Meta(gt=0)] | None = None
    box: Annotated[float, Meta(gt=0)] | _Pair | None = None
    activation: Activation | None = None
    background: Annotated[int, Meta(ge=0)] | None = None

    def input_size(self) -> tuple[int, int] | None:
        """Width and height, if they are said."""
        match self.size:
            case int(side):
                return side, side
            case Size(x=x, y=y):
                return x, y
            case (x, y):
                return x, y
        return None

    def over(self, other: Spec) -> Spec:
        """This, and where it says nothing, the other."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(other, **said)


class Recipe(Struct, frozen=True, kw_only=True):
    """A `Spec` with nothing left open.

    Attributes:
        factor: Each value of the input is `pixel * factor + shift`; one for each channel in the model's order.
        shift: See there.
        labels: One for each class.
        classes: For each channel of the answer its label's index, or -1 for the background.
    """

    decoder: DecoderName
    width: int
    height: int
    channels: Channels
    layout: Layout
    factor: tuple[float, ...]
    shift: tuple[float, ...]
    letterbox: bool
    placement: Placement
    pad: int
    exact: bool
    confidence: float
    iou: float
    max_detections: int
    stride: float | None
    box: tuple[float, float] | None
    activation: Activation | None
    labels: tuple[str, ...]
    classes: tuple[int, ...]


def read_spec(info: ModelInfo) -> Spec:
    """The spec that a model package brings.

    Raises:
        ModelError: A key is unknown or has a wrong value; the message ends with the path to it.
    """
    try:
        return msgspec.convert(info.spec, Spec)
    except msgspec.ValidationError as exc:
        raise ModelError(f"the spec of {info.name} {info.version} is wrong: {exc}") from exc


def complete(
    spec: Spec,
    *,
    decoder: DecoderName,
    size: tuple[int, int],
    layout: Layout,
    depth: int,
    channels: int,
    labels: tuple[str, ...],
) -> Recipe:
    """Close what is open.

    Args:
        spec: What is said, or usual for the decoder.
        decoder: How the answer is read.
        size: Width and height of the graph's input.
        layout: The order of its axes.
        depth: How many colours it has.
        channels: How many classes the answer has, with the background.
        labels: Their names; made up if there are none.

    Raises:
        ModelError: Labels, colours or numbers do not fit the graph.
    """
    background = spec.background
    if background is not None and len(labels) == channels:
        labels = labels[:background] + labels[background + 1 :]
    classes = [index for index in range(channels) if index != background]
    if labels and len(labels) != len(classes):
        raise ModelError(f"the graph tells {len(classes)} classes apart, but there are {len(labels)} labels")
    order = spec.channels or ("gray" if depth == 1 else "rgb")
    if (order == "gray") != (depth == 1):
        raise ModelError(f"spec.channels is {order!r}, but the graph's input has {depth} of them")
    mean, std = _each(spec.mean, 0.0, depth, "mean"), _each(spec.std, 1.0, depth, "std")
    scale = 1.0 if spec.scale is None else spec.scale
    box = spec.box
    return Recipe(
        decoder=decoder,
        width=size[0],
        height=size[1],
        channels=order,
        layout=layout,
        factor=tuple(scale / each for each in std),
        shift=tuple(-middle / each for middle, each in zip(mean, std, strict=True)),
        letterbox=spec.resize == "letterbox",
        placement=spec.placement or "center",
        pad=114 if spec.pad is None else spec.pad,
        exact=spec.resample == "exact",
        confidence=0.25 if spec.confidence is None else spec.confidence,
        iou=0.5 if spec.iou is None else spec.iou,
        max_detections=spec.max_detections or 300,
        stride=spec.stride,
        box=(box[0], box[1]) if isinstance(box, tuple) else (box, box) if box is not None else None,
        activation=spec.activation,
        labels=labels or tuple(str(index) for index in range(len(classes))),
        classes=tuple(classes.index(index) if index in classes else -1 for index in range(channels)),
    )


def _each(value: float | tuple[float, ...] | None, default: float, depth: int, key: str) -> tuple[float, ...]:
    if not isinstance(value, tuple):
        return (default if value is None else value,) * depth
    if len(value) == 1:
        return value * depth
    if len(value) != depth:
        raise ModelError(f"spec.{key} has {len(value)} numbers, but the graph's input has {depth} channels")
    return value
