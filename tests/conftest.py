"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcore.package import write_package
from loopcore.types import ModelInfo

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Everything below `server` runs on both; a module of the server and above overrides this with asyncio alone."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def spots_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model package in ONNX: a detector of what is bright. The mean over squares of eight pixels is its heatmap."""
    from onnx import TensorProto, helper, save

    folder = tmp_path_factory.mktemp("spots")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 64, 64])
    heat = helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["n", 1, 8, 8])
    steps = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["heat"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    graph = helper.make_graph(steps, "spots", [image], [heat])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, str(folder / "model.onnx"))
    reading = {"decoder": "heatmap", "scale": 1 / 255, "stride": 8, "box": 12, "confidence": 0.3, "iou": 0.9}
    feeding = {"resize": "letterbox", "pad": 0}
    write_package(folder, ModelInfo(name="spots", version="1", format="onnx", labels=("spot",), spec=reading | feeding))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models, photos and clips; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder shared/data, with real models and pictures, is not beside this checkout")
    return SHARED_DATA
