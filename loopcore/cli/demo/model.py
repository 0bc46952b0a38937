"""The demo's own model: a small network fitted on handwriting in seconds, written as a convolutional ONNX graph.

Fixed filters measure brightness and edges in eight directions, averaged over cells of 2×2 pixels; a multi-layer
perceptron, fitted here, sees windows of 12×12 cells. As a graph that is a convolution with the window as its kernel,
followed by 1×1 convolutions: it looks at every place of a picture at once and gives a heatmap for each label.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from loopcore.cli.demo.scenes import COMMON, HEIGHT, LABELS, SLIP, WIDTH, Material, Scene, make_scene
from loopcore.files import write_atomic
from loopcore.package import write_package
from loopcore.types import ModelInfo

Floats = NDArray[np.float32]

SCALE = 2
"""How many pixels of a scene make one of the model's."""
STRIDE = 4
_CELL = 2
_STEP = STRIDE // _CELL
_WINDOW = 12
_PAD = (_WINDOW - _STEP) // 2
_ROWS, _COLUMNS = HEIGHT // SCALE // STRIDE, WIDTH // SCALE // STRIDE
_CALM = 1.5
"""Softens the confidence, which a network fitted on so few examples exaggerates."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Recipe(Struct, frozen=True, kw_only=True):
    """How the model is fitted; that it has seen few of the rare digits is what makes it worth improving.

    Attributes:
        scenes: How many scenes it learns from.
        slips: How many slips each of them holds.
        rare: The share of rare digits among them.
        background: How many windows without a digit are taken of each scene.
        hidden: Width of the network.
        epochs: How often it sees each window, once for each round.
        rounds: After each but the last, windows that it wrongly took for digits are added to what it learns from.
    """

    scenes: int = 130
    slips: int = 10
    rare: float = 0.3
    background: int = 60
    hidden: int = 48
    epochs: int = 8
    rounds: int = 3


def fit_model(material: Material, into: Path, *, seed: int, recipe: Recipe | None = None) -> None:
    """Fit the network and write the model package `into` an existing folder. Needs the extra `demo`.

    Raises:
        StorageError: It could not be written.
    """
    weights, biases = _fit(material, np.random.default_rng(seed), recipe or Recipe(), seed)
    write_atomic(into / "model.onnx", _graph(weights, biases))
    spec = {
        "size": [WIDTH // SCALE, HEIGHT // SCALE], "resize": "squash", "decoder": "heatmap", "stride": STRIDE,
        "box": SLIP // SCALE, "confidence": 0.3, "iou": 0.2,
    }  # fmt: skip
    made = {"made_by": "loopcore demo", "seed": seed}
    write_package(
        into,
        ModelInfo(name="handwriting", version=f"1.{seed}", format="onnx", labels=LABELS, spec=spec, extra=made),
    )


def _fit(material: Material, rng: np.random.Generator, recipe: Recipe, seed: int) -> tuple[list[Floats], list[Floats]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    network = MLPClassifier(
        (recipe.hidden,), max_iter=recipe.epochs, alpha=0.02, batch_size=128, warm_start=True, random_state=seed
    )
    share = recipe.rare / (len(LABELS) - len(COMMON))
    odds = [(1 - recipe.rare) / len(COMMON) if label in COMMON else share for label in LABELS]
    scenes = [make_scene(material, rng, count=recipe.slips, hard=0.1, weights=odds) for _ in range(recipe.scenes)]
    views = [_windows(scene) for scene in scenes]
    truths = [_truth(scene) for scene in scenes]
    chosen = [(t > 0) | ((t == 0) & (rng.random(t.shape) < recipe.background / t.size)) for t in truths]
    # One thread: several add up in another order each time, and take longer where others want the cores, too.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is meant
        for remaining in reversed(range(recipe.rounds)):
            windows = np.concatenate(
                [view[mask].reshape(mask.sum(), -1) for view, mask in zip(views, chosen, strict=True)]
            )
            network.learning_rate_init = 3e-3 if remaining else 1e-3  # the last round settles
            network.fit(windows, np.concatenate([t[mask] for t, mask in zip(truths, chosen, strict=True)]))
            for view, truth, mask in zip(views, truths, chosen, strict=True) if remaining else ():
                tried = (truth == 0) & (rng.random(truth.shape) < 0.3)
                mask[tried] |= network.predict_proba(view[tried].reshape(tried.sum(), -1))[:, 0] < 0.9
    return network.coefs_, network.intercepts_


def _truth(scene: Scene) -> NDArray[np.int64]:
    """What the network is to say of each cell: 0 for nothing, label index + 1 for a digit, -1 for beside one."""
    answers = np.zeros((_ROWS, _COLUMNS), np.int64)
    rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
    step = STRIDE * SCALE
    for slip in scene.slips:
        dx = np.abs((columns + 0.5) * step - slip.x - slip.width / 2)
        dy = np.abs((rows + 0.5) * step - slip.y - slip.height / 2)
        answers[np.maximum(dx, dy) < 2 * step] = -1
        answers[np.maximum(dx, dy) < 0.75 * step] = LABELS.index(slip.label) + 1
    return answers


def _filters() -> Floats:
    """`(9, 3, 3)`: brightness, then the slope in eight directions."""
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32) / 4
    turns = [np.deg2rad(angle) for angle in range(0, 360, 45)]
    slopes = [np.cos(turn) * across + np.sin(turn) * across.T for turn in turns]
    middle = np.zeros((3, 3), np.float32)
    middle[1, 1] = 1
    return np.stack([middle, *slopes]).astype(np.float32)


def _windows(scene: Scene) -> Floats:
    """`(rows, columns, filters, 12, 12)`: what the perceptron sees at each cell, computed as the graph computes it."""
    small = cv2.resize(scene.pixels, (WIDTH // SCALE, HEIGHT // SCALE), interpolation=cv2.INTER_AREA)
    grey = small.astype(np.float32) @ _LUMA / 255
    edges = [np.maximum(cv2.filter2D(grey, -1, f, borderType=cv2.BORDER_CONSTANT), 0) for f in _filters()]
    cells = np.stack(edges).reshape(len(edges), _ROWS * _STEP, _CELL, _COLUMNS * _STEP, _CELL).mean((2, 4))
    padded = np.pad(cells, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW, _WINDOW), (1, 2))
    return views[:, ::_STEP, ::_STEP].transpose(1, 2, 0, 3, 4)


def _graph(weights: list[Floats], biases: list[Floats]) -> bytes:
    """The network as ONNX: RGB 0..255 in, `(1, labels, rows, columns)` probabilities out."""
    from onnx import TensorProto, checker, helper, numpy_helper

    filters = _filters()
    arrays = {
        "filters": filters[:, None] * _LUMA[None, :, None, None] / 255,
        "window": weights[0].T.reshape(-1, len(filters), _WINDOW, _WINDOW),
        "window_bias": biases[0],
        "head": weights[1].T[..., None, None] / _CALM,
        "head_bias": biases[1] / _CALM,
    }
    ends = {"first": 1, "last": len(LABELS) + 1, "axis": 1}
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a, np.float32), name) for name, a in arrays.items()]
    tensors += [numpy_helper.from_array(np.array([end], np.int64), name) for name, end in ends.items()]
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["image", "filters"], ["slopes"], pads=[1] * 4),
            node("Relu", ["slopes"], ["edges"]),
            node("AveragePool", ["edges"], ["cells"], kernel_shape=[_CELL] * 2, strides=[_CELL] * 2),
            node("Conv", ["cells", "window", "window_bias"], ["hidden"], strides=[_STEP] * 2, pads=[_PAD] * 4),
            node("Relu", ["hidden"], ["active"]),
            node("Conv", ["active", "head", "head_bias"], ["logits"]),
            node("Softmax", ["logits"], ["all"], axis=1),
            node("Slice", ["all", "first", "last", "axis"], ["heatmap"]),
        ],
        "handwriting",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, HEIGHT // SCALE, WIDTH // SCALE])],
        [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, [1, len(LABELS), _ROWS, _COLUMNS])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
