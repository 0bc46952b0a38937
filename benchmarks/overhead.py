"""What a frame costs besides the model: a whole node in this process, and a source that hands over one frame at a time.

    python -m benchmarks.overhead [--frames 3000]

The time of `Service.predict`, less what the backend says that its graph took: the wait for a thread, decoding, feeding
the graph and reading its answer, one selector, and the way back. Nothing is kept. Goal: 150 µs p50.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio
import numpy as np
from anyio.abc import TaskStatus

from loopcore import config, node
from loopcore.abc import Driver, Service, Source
from loopcore.package import write_package
from loopcore.registry import Registry
from loopcore.testing import MemorySink, NullBackend, make_jpeg, make_picture
from loopcore.types import Encoded, Image, Keep, ModelInfo, Pixels

GOAL_US = 150
WARM_UP = 300
SIDE = 32


class Stopwatch(Source):
    """Hands over the same image again and again and notes what each round took."""

    image: ClassVar[Image]
    frames: ClassVar[int]
    took_us: ClassVar[list[float]]

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        for index in range(-WARM_UP, self.frames):
            start = time.perf_counter()
            answer = await service.predict(self.image, camera="bench", keep=Keep.SELECTED)
            took = time.perf_counter() - start
            if index >= 0:
                self.took_us.append(took * 1e6 - 1e3 * (answer.prediction.infer_ms or 0))


def write_null(folder: Path) -> Path:
    """A package whose graph does next to nothing: a classifier of 32 × 32 pixels by their mean colour."""
    from onnx import TensorProto, helper, save

    folder.mkdir()
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    step = helper.make_node("ReduceMean", ["image"], ["scores"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph([step], "null", [image], [scores])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, str(folder / "model.onnx"))
    spec = {"decoder": "classify", "scale": 1 / 255, "activation": "none", "confidence": 1.0}
    write_package(folder, ModelInfo(name="null", version="1", format="onnx", labels=("r", "g", "b"), spec=spec))
    return folder


def measure(folder: Path, backend: Mapping[str, Any], image: Image, frames: int) -> tuple[float, float]:
    """p50 and p99 in µs."""
    Stopwatch.image, Stopwatch.frames, Stopwatch.took_us = image, frames, []
    table = {
        "node": {"data_dir": str(folder)},
        "server": {"port": 0},
        "backend": backend,
        "sources": [{"driver": "stopwatch"}],
        "selectors": [{"driver": "below", "confidence": 0.0}],
        "sinks": [{"driver": "memory"}],
        "outbox": {"min_free": 0},
    }
    drivers: dict[str, dict[str, type[Driver]]] = {
        "backend": {"null": NullBackend},
        "source": {"stopwatch": Stopwatch},
        "sink": {"memory": MemorySink},
    }
    anyio.run(
        lambda: node.run(config.parse(table), registry=Registry(drivers), until_done=True),
        backend_options={"use_uvloop": True},
    )
    p50, p99 = np.percentile(Stopwatch.took_us, (50, 99))
    return float(p50), float(p99)


def measure_hop(rounds: int) -> tuple[float, float]:
    """p50 and p99 in µs of going to a worker thread and back with nothing to do: what the machine charges at least."""
    took_us: list[float] = []

    async def hop() -> None:
        limiter = anyio.CapacityLimiter(1)
        for index in range(-WARM_UP, rounds):
            start = time.perf_counter()
            await anyio.to_thread.run_sync(int, limiter=limiter)
            if index >= 0:
                took_us.append((time.perf_counter() - start) * 1e6)

    anyio.run(hop, backend_options={"use_uvloop": True})
    p50, p99 = np.percentile(took_us, (50, 99))
    return float(p50), float(p99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=3000)
    frames = parser.parse_args().frames
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "nothing").mkdir()
        (root / "nothing" / "weights").touch()
        write_package(root / "nothing", ModelInfo(name="nothing", version="1", format="null"))
        null = {"driver": "null", "model": str(root / "nothing")}
        onnx = {"driver": "onnx", "model": str(write_null(root / "null"))}
        pixels, encoded = Pixels(make_picture(0, SIDE, SIDE)), Encoded(make_jpeg(0, SIDE, SIDE), "image/jpeg")
        print("| backend, image of 32 × 32 | p50 µs | p99 µs | goal p50 |")
        print("|---|---|---|---|")
        cases: list[tuple[str, Mapping[str, Any], Image]] = [
            ("none at all, pixels", null, pixels),
            ("none at all, JPEG", null, encoded),
            ("onnx with a null graph, pixels", onnx, pixels),
            ("onnx with a null graph, JPEG", onnx, encoded),
        ]
        p50, p99 = measure_hop(frames)
        print(f"| a bare hop to a thread and back | {p50:.0f} | {p99:.0f} | |", flush=True)
        for index, (name, backend, image) in enumerate(cases):
            p50, p99 = measure(root / f"data-{index}", backend, image, frames)
            print(f"| {name} | {p50:.0f} | {p99:.0f} | {GOAL_US} |", flush=True)


if __name__ == "__main__":
    main()
