"""A model of one megabyte and a node in a process of its own that serves it, for the benchmarks of whole nodes."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from loopcore.imaging import encode_jpeg
from loopcore.package import write_package
from loopcore.testing import make_picture
from loopcore.types import ModelInfo

SIDE = 160
CHANNELS = (3, 32, 64, 128, 128)
STRIDES = (2, 2, 2, 1)
LIMIT_S = 30.0


def write_model(folder: Path) -> Path:
    """A package in ONNX: four convolutions and a heatmap, 1 MB of weights without meaning."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    nodes, weights, name = [], [], "image"
    for index, (inner, outer, stride) in enumerate(zip(CHANNELS, CHANNELS[1:], STRIDES, strict=False)):
        kernel = random.normal(0, (9 * inner) ** -0.5, (outer, inner, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        square, pads = [3, 3], [1, 1, 1, 1]
        nodes.append(
            helper.make_node(
                "Conv", [name, f"w{index}"], [f"c{index}"], kernel_shape=square, strides=[stride, stride], pads=pads
            )
        )
        name = f"r{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [name]))
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, (2, CHANNELS[-1], 1, 1)).astype(np.float32), "head"))
    nodes.append(helper.make_node("Conv", [name, "head"], ["raw"], kernel_shape=[1, 1]))
    nodes.append(helper.make_node("Sigmoid", ["raw"], ["heat"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    heat = helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["n", 2, SIDE // 8, SIDE // 8])
    graph = helper.make_graph(nodes, "small", [image], [heat], weights)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, str(folder / "model.onnx"))
    spec = {"decoder": "heatmap", "scale": 1 / 255, "stride": 8, "box": 16, "confidence": 0.5}
    write_package(folder, ModelInfo(name="small", version="1", format="onnx", labels=("a", "b"), spec=spec))
    return folder


@contextmanager
def running_node(
    folder: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """`loopcore run` on a model of this kind; gives the process, and the seconds from its start to its first answer.

    Args:
        folder: An empty folder, for its data; `folder.parent / "model"` is the model.
        environment: Added to this process's own.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder.mkdir()
    (folder / "loop.toml").write_text(
        f'node = {{ data_dir = "data" }}\nserver = {{ port = {port} }}\n'
        'backend = { driver = "onnx", model = "../model" }\n'
        'selectors = [{ driver = "uncertain" }]\nsinks = [{ driver = "folder", path = "kept" }]\n'
        "outbox = { min_free = 0 }\n"
    )
    picture = encode_jpeg(make_picture(0, 640, 480))
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE
    ) as node:
        try:
            while ask(port, picture) != 200:
                if node.poll() is not None or time.perf_counter() - start > LIMIT_S:
                    node.kill()
                    raise RuntimeError(
                        f"the node does not answer: {node.stderr.read().decode() if node.stderr else ''}"
                    )
                time.sleep(0.002)
            yield node, time.perf_counter() - start
        finally:
            node.terminate()
            node.wait(LIMIT_S)


def ask(port: int, picture: bytes) -> int | None:
    """The status of `POST /predict`; nothing while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("POST", "/predict?keep=none", picture, {"Content-Type": "image/jpeg"})
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()
