"""The backend runs small real graphs and gives boxes in pixels of the original."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from loopcore.drivers.onnx import OnnxBackend
from loopcore.errors import BackendError, ModelError
from loopcore.options import decode
from loopcore.types import Box, Classification, Frame, FrameInfo, Model, ModelFile, ModelInfo, Point

pytestmark = pytest.mark.anyio

Make = Callable[..., Model]


def graph_of(nodes: list[Any], tensors: list[Any], inputs: Sequence[Any], outputs: list[Any], dtype: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", dtype, inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def canned(answers: list[np.ndarray], inputs: Sequence[Any] = (1, 3, 64, 64)) -> bytes:
    """A graph that always gives these answers."""
    tensors = [numpy_helper.from_array(answer.astype(np.float32), f"a{i}") for i, answer in enumerate(answers)]
    tensors.append(numpy_helper.from_array(np.float32(0), "zero"))
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        *(helper.make_node("Add", [f"a{i}", "nothing"], [f"o{i}"]) for i in range(len(answers))),
    ]
    outputs = [(f"o{i}", answer.shape) for i, answer in enumerate(answers)]
    return graph_of(nodes, tensors, inputs, outputs, TensorProto.FLOAT)


def brightness(
    batch: int | str = 1, side: int | str = 64, layout: str = "nchw", dtype: int = TensorProto.FLOAT
) -> bytes:
    """A heatmap of stride 8 of the three colours: the mean of each cell of 8 × 8, divided by 255."""
    shape = [batch, 3, side, side] if layout == "nchw" else [batch, side, side, 3]
    cells = side // 8 if isinstance(side, int) else "cells"
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 1, 2, 3] if layout == "nchw" else [0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Div", ["means", "full"], ["map"]),
    ]
    tensors = [numpy_helper.from_array(np.float32(255), "full")]
    return graph_of(nodes, tensors, shape, [("map", [batch, 3, cells, cells])], dtype)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(graph: bytes, *, labels: Sequence[str] = (), **spec: Any) -> Model:
        (tmp_path / "model.onnx").write_bytes(graph)
        file = ModelFile(name="model.onnx", size=len(graph), sha256=sha256(graph).hexdigest())
        info = ModelInfo(name="m", version="7", format="onnx", labels=tuple(labels), files=(file,), spec=spec)
        return Model(info=info, path=tmp_path)

    return make


def frame(pixels: np.ndarray, width: int | None = None, height: int | None = None) -> Frame:
    height, width = height or pixels.shape[0], width or pixels.shape[1]
    return Frame(info=FrameInfo(width=width, height=height, time=datetime.now(UTC)), pixels=pixels)


def opened(model: Model, **options: Any) -> OnnxBackend:
    return OnnxBackend(decode(options, OnnxBackend.Options), model)


def spot(
    width: int, height: int, x: int, y: int, color: tuple[int, int, int] = (255, 0, 0), side: int = 8
) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + side, x : x + side] = color
    return pixels


def yolo5() -> np.ndarray:
    rows = np.zeros((1, 252, 8), np.float32)
    rows[0, 10] = [32, 32, 16, 8, 0.9, 0.1, 0.9, 0]
    rows[0, 11] = [32, 32, 16, 9, 0.8, 0.1, 0.9, 0]  # the same thing again
    rows[0, 12] = [32, 32, 16, 8, 0.9, 0.8, 0.1, 0]  # another class at the same place
    return rows


def yolo8() -> np.ndarray:
    rows = np.zeros((1, 7, 84), np.float32)
    rows[0, :, 10] = [32, 32, 16, 8, 0.1, 0.81, 0]
    rows[0, :, 11] = [32, 32, 16, 9, 0.1, 0.72, 0]
    rows[0, :, 12] = [32, 32, 16, 8, 0.72, 0, 0]
    return rows


@pytest.mark.parametrize("answer", [yolo5(), yolo8()], ids=["version 5", "version 8"])
async def test_yolo_boxes_come_back_in_pixels_of_the_original(make, answer):
    async with opened(make(canned([answer]), labels=["a", "b", "c"])) as backend:
        assert backend.recipe.decoder == "yolo"
        prediction = backend.infer([frame(np.zeros((50, 100, 3), np.uint8), 200, 100)])[0]
    # 200 × 100 lies in the 64 × 64 input as 64 × 32, 16 from the top.
    first, second = prediction.detections
    assert (first.label, second.label) == ("b", "a")
    assert isinstance(first, Box)
    np.testing.assert_allclose([first.x, first.y, first.width, first.height], [75, 37.5, 50, 25], atol=1e-4)
    assert first.confidence == pytest.approx(0.81, abs=1e-6)
    assert (prediction.model, prediction.model_version) == ("m", "7")
    assert prediction.infer_ms > 0


async def test_end2end_boxes_that_overlap_both_stay_and_may_reach_over_the_edge(make):
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, :2] = [[-8, 0, 72, 64, 0.9, 1], [-8, 0, 72, 64, 0.8, 1]]
    async with opened(make(canned([rows]), labels=["a", "b"])) as backend:
        detections = backend.infer([frame(np.zeros((128, 128, 3), np.uint8))])[0].detections
    assert [(found.label, found.x, found.width) for found in detections] == [("b", -16, 160), ("b", -16, 160)]


async def test_a_classifier_answers_the_most_likely_label(make):
    async with opened(make(canned([np.array([[0.1, 4, 1]])]), labels=["a", "b", "c"])) as backend:
        (found,) = backend.infer([frame(np.zeros((10, 10, 3), np.uint8))])[0].detections
    assert isinstance(found, Classification)
    assert found.label == "b"
    assert found.confidence == pytest.approx(np.exp(4) / np.exp([0.1, 4, 1]).sum(), rel=1e-5)


async def test_a_background_without_a_label_is_left_out(make):
    model = make(canned([np.array([[0.2, 0.1, 0.7]])]), labels=["a", "b"], background=2, max_detections=3)
    async with opened(model) as backend:
        found = backend.infer([frame(np.zeros((10, 10, 3), np.uint8))])[0].detections
    assert [(one.label, round(one.confidence, 3)) for one in found] == [("a", 0.2), ("b", 0.1)]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
@pytest.mark.parametrize(("channels", "label"), [("rgb", "red"), ("bgr", "blue")])
async def test_a_picture_reaches_the_graph_in_its_layout_type_and_order_of_colours(
    make, layout, dtype, channels, label
):
    model = make(brightness(layout=layout, dtype=dtype), labels=["red", "green", "blue"], channels=channels, box=16)
    async with opened(model) as backend:
        (found,) = backend.infer([frame(spot(64, 64, 24, 40))])[0].detections
    assert (found.label, found.x, found.y, found.width) == (label, 20, 36, 16)
    assert found.confidence == pytest.approx(1)


async def test_values_are_scaled_and_shifted_as_the_spec_says(make):
    spec = {"scale": 1 / 255, "mean": [0.25, 0, 0], "std": [0.5, 1, 1], "stride": 8, "confidence": 0.001}
    async with opened(make(brightness(), labels=["r", "g", "b"], **spec)) as backend:
        (found,) = backend.infer([frame(spot(64, 64, 24, 40))])[0].detections
    assert isinstance(found, Point)
    assert (found.x, found.y) == (28, 44)
    assert found.confidence == pytest.approx((1 - 0.25) / 0.5 / 255, rel=1e-4)


async def test_the_margin_of_a_letterbox_is_the_pad_even_after_other_pictures(make):
    spec = {"resize": "letterbox", "pad": 0, "confidence": 0.2, "box": 8}
    async with opened(make(brightness(), labels=["r", "g", "b"], **spec)) as backend:
        white = np.full((64, 64, 3), 255, np.uint8)
        alone = backend.infer([frame(spot(128, 64, 0, 0, side=16))])[0].detections
        backend.infer([frame(white)])
        backend.infer([frame(white[:, :20])])
        again = backend.infer([frame(spot(128, 64, 0, 0, side=16))])[0].detections
    assert len(alone) == 1
    assert alone == again


async def test_a_batch_gives_what_each_frame_gives_alone(make):
    frames = [frame(spot(64, 64, 8 * n, 40), 64 * (n + 1), 64) for n in range(4)]
    async with opened(make(brightness("n"), labels=["r", "g", "b"], box=8)) as backend:
        assert backend.max_batch == 4
        together = [prediction.detections for prediction in backend.infer(frames)]
        alone = [backend.infer([one])[0].detections for one in frames]
    assert together == alone
    assert [found[0].x for found in together] == [8 * n * (n + 1) for n in range(4)]


async def test_a_graph_for_a_fixed_batch_also_takes_fewer_frames(make):
    async with opened(make(brightness(3), labels=["r", "g", "b"], box=8)) as backend:
        assert backend.max_batch == 3
        (prediction,) = backend.infer([frame(spot(64, 64, 16, 0))])
    assert prediction.detections[0].x == 16


async def test_several_threads_get_their_own_answers(make):
    frames = [frame(spot(64, 64, 8 * (n % 8), 8 * (n // 8))) for n in range(64)]
    async with opened(make(brightness(), labels=["r", "g", "b"], box=8)) as backend:
        assert backend.max_overlap >= 1
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda one: backend.infer([one])[0].detections[0], frames * 4))
    assert [(found.x, found.y) for found in answers] == [(8 * (n % 8), 8 * (n // 8)) for n in range(64)] * 4


async def test_the_decode_size_is_what_the_picture_covers_in_the_input(make):
    async with opened(make(brightness(), box=8, resize="letterbox")) as backend:
        assert backend.decode_size(1920, 1080) == (64, 36)
    async with opened(make(brightness(), box=8, resize="squash")) as backend:
        assert backend.decode_size(1920, 1080) == (64, 64)


async def test_options_override_the_spec_and_labels_are_read_from_a_file(make, tmp_path):
    (tmp_path / "names.txt").write_text("rot\ngrün\nblau\n")
    model = make(brightness(), labels=["r", "g", "b"], box=8, confidence=0.9)
    dim = frame(spot(64, 64, 8, 8, (0, 150, 0)))
    async with opened(model) as backend:
        assert backend.infer([dim])[0].detections == ()
    async with opened(model, confidence=0.5, labels=str(tmp_path / "names.txt"), iou=0.1) as backend:
        assert backend.recipe.iou == 0.1
        assert [found.label for found in backend.infer([dim])[0].detections] == ["grün"]


async def test_labels_and_size_are_taken_from_the_metadata_that_ultralytics_writes(make):
    model = onnx.load_from_string(brightness("n", "side"))
    helper.set_model_props(model, {"names": "{0: 'r', 1: 'g', 2: 'b'}", "imgsz": "[64, 128]"})
    async with opened(make(model.SerializeToString(), box=8)) as backend:
        assert (backend.recipe.width, backend.recipe.height) == (128, 64)
        assert backend.recipe.labels == ("r", "g", "b")
        assert backend.infer([frame(spot(128, 64, 96, 8))])[0].detections[0].x == 96


async def test_a_graph_for_any_size_needs_one_in_the_spec(make):
    with pytest.raises(ModelError, match=r"spec\.size"):
        async with opened(make(brightness("n", "side"))):
            pass
    async with opened(make(brightness("n", "side"), size=32, box=8)) as backend:
        assert backend.recipe.width == 32


@pytest.mark.parametrize(
    ("spec", "labels", "message"),
    [
        ({"size": 128}, (), "the graph takes 64 × 64"),
        ({"decoder": "yolox"}, (), "does not fit"),
        ({"channels": "gray"}, (), "has 3 of them"),
        ({"mean": [1, 2]}, (), r"spec\.mean"),
        ({"decoder": "heatmap"}, ("a", "b"), "2 labels"),
        ({"file": "other.onnx"}, (), r"spec\.file"),
        ({"wrong": 1}, (), "wrong"),
    ],
)
async def test_a_spec_that_does_not_fit_the_graph_is_refused(make, spec, labels, message):
    with pytest.raises(ModelError, match=message):
        async with opened(make(brightness(), labels=labels, **spec)):
            pass


async def test_whole_numbers_cannot_be_normalised_before_the_graph(make):
    with pytest.raises(ModelError, match="uint8"):
        async with opened(make(brightness(dtype=TensorProto.UINT8), scale=0.5)):
            pass


@pytest.mark.parametrize("graph", [b"", b"not a graph", brightness()[:200], b"\x08\x09" * 50], ids=range(4))
async def test_what_is_no_graph_is_a_model_error(make, graph):
    with pytest.raises(ModelError):
        async with opened(make(graph)):
            pass


async def test_a_provider_that_is_not_there_is_named(make):
    with pytest.raises(ModelError, match="NoSuchProvider"):
        async with opened(make(brightness()), providers=["NoSuchProvider"]):
            pass


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_an_answer_that_is_not_finite_fails_the_frame(make, bad):
    rows = yolo5()
    rows[0, 10, 2] = bad
    async with opened(make(canned([rows]), labels=["a", "b", "c"])) as backend:
        with pytest.raises(BackendError, match="finite"):
            backend.infer([frame(np.zeros((10, 10, 3), np.uint8))])


async def test_confidences_stay_within_0_and_1(make):
    async with opened(make(canned([np.array([[1.0000002, 0]])]), labels=["a", "b"], activation="none")) as backend:
        assert backend.infer([frame(np.zeros((10, 10, 3), np.uint8))])[0].detections[0].confidence == 1


async def test_a_backend_that_has_been_left_answers_no_more(make):
    async with opened(make(brightness(), box=8)) as backend:
        pass
    with pytest.raises(BackendError):
        backend.infer([frame(spot(64, 64, 0, 0))])


def test_importing_the_backend_imports_neither_onnxruntime_nor_opencv():
    code = "import sys, loopcore.drivers.onnx; sys.exit(bool({'onnxruntime', 'cv2', 'PIL', 'onnx'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
