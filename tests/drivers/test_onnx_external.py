"""A graph reads no file but those of its package, and a broken one is refused."""

from __future__ import annotations

import os
import resource
import sys
import time
import tracemalloc
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from loopcore.drivers.onnx import OnnxBackend
from loopcore.drivers.onnx.external import check_external
from loopcore.errors import ModelError
from loopcore.types import Model, ModelFile, ModelInfo

WEIGHTS = np.ones(3, np.float32).tobytes()


def tensor(entries: dict[str, str]) -> TensorProto:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 3, 1, 1], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    return weights


def graph(entries: dict[str, str], place: str = "initializer") -> bytes:
    outside = tensor(entries)
    nodes = [helper.make_node("Mul", ["image", "w"], ["scaled"])]
    initializers = [outside] if place == "initializer" else []
    if place == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=outside))
    if place == "subgraph":
        body = helper.make_graph(
            [helper.make_node("Constant", [], ["inner"], value=outside)],
            "body",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 3, 1, 1])],
        )
        initializers = [helper.make_tensor("yes", TensorProto.BOOL, [], [True])]
        nodes.insert(0, helper.make_node("If", ["yes"], ["w"], then_branch=body, else_branch=body))
    nodes.append(helper.make_node("GlobalAveragePool", ["scaled"], ["out"]))
    whole = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 1, 1])],
        initializers,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def package(folder: Path, data: bytes, *others: str) -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    files = [ModelFile(name=name, size=12, sha256="0" * 64) for name in ("model.onnx", *others)]
    return Model(info=ModelInfo(name="m", version="1", format="onnx", files=tuple(files)), path=folder)


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["initializer", "constant"])
async def test_tensors_in_a_file_of_the_package_are_read(tmp_path, place):
    model = package(
        tmp_path / "p", graph({"location": "weights.bin", "offset": "0", "length": "12"}, place), "weights.bin"
    )
    (model.path / "weights.bin").write_bytes(WEIGHTS)
    async with OnnxBackend(OnnxBackend.Options(), model) as backend:
        assert backend.recipe.decoder == "classify"


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret.bin"},
        {"location": "sub/../../secret.bin"},
        {"location": "/etc/passwd"},
        {"location": "unlisted.bin"},
        {"location": "symlink.bin"},
        {"location": "hardlink.bin"},
        {"location": "linked/secret.bin"},
        {"location": "folder"},
        {"location": "missing.bin"},
        {"location": "*/_ORT_MEM_ADDR_/*"},
        {"location": "weights.bin", "length": str(2**60)},
        {"location": "weights.bin", "offset": "13"},
        {"location": "weights.bin", "offset": "-1"},
        {"location": "weights.bin", "length": "9" * 5000},
        {"location": "weights.bin", "__class__": "x"},
        {"location": ""},
    ],
    ids=lambda entries: ",".join(f"{key}={value[:20]}" for key, value in entries.items()),
)
def test_a_tensor_anywhere_else_is_refused_before_anything_is_read(tmp_path, entries, place):
    (tmp_path / "secret.bin").write_bytes(WEIGHTS)
    names = ["weights.bin", "symlink.bin", "hardlink.bin", "linked/secret.bin", "folder", "missing.bin"]
    data = graph(entries, place)
    model = package(tmp_path / "p", data, *names)
    (model.path / "weights.bin").write_bytes(WEIGHTS)
    (model.path / "unlisted.bin").write_bytes(WEIGHTS)
    (model.path / "symlink.bin").symlink_to(tmp_path / "secret.bin")
    os.link(tmp_path / "secret.bin", model.path / "hardlink.bin")
    (model.path / "linked").symlink_to(tmp_path)
    (model.path / "folder").mkdir()
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(ModelError):
            check_external(data, model)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 10  # the bound is far above what it takes; a read of 2^60 bytes would not end


def test_the_check_agrees_with_the_onnx_package_on_real_graphs(shared_data, tmp_path):
    for path in sorted(shared_data.glob("models/*/*.onnx")):
        data = path.read_bytes()
        assert not any(each.external_data for each in onnx.load_from_string(data).graph.initializer)
        # The word alone is no reference: the whole graph is walked, and nothing is found.
        marked = onnx.load_from_string(data)
        helper.set_model_props(marked, {"note": "location"})
        assert check_external(marked.SerializeToString(), package(tmp_path / "p", data)) == ()


def test_a_compiled_part_is_refused_since_it_names_files_of_its_own(tmp_path):
    node = helper.make_node("EPContext", ["image"], ["out"], domain="com.microsoft", ep_cache_context="../../x")
    whole = helper.make_graph([node], "test", [], [])
    data = helper.make_model(whole).SerializeToString()
    with pytest.raises(ModelError, match="EPContext"):
        check_external(data, package(tmp_path / "p", data))


def test_a_graph_nested_without_end_is_refused(tmp_path):
    data = b"\x0a" + varint(8) + b"location"
    for tag in (b"\x32", b"\x2a", b"\x0a") * 200:  # a graph, in an attribute, of a node of a graph
        data = tag + varint(len(data)) + data
    with pytest.raises(ModelError, match="nested"):
        check_external(b"\x3a" + varint(len(data)) + data, package(tmp_path / "p", data))


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


FUZZ = """
import anyio, random, sys
from pathlib import Path
from loopcore.drivers.onnx import OnnxBackend
from loopcore.errors import ModelError
from loopcore.types import Model, ModelFile, ModelInfo

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
whole = (folder / "whole.onnx").read_bytes()
info = ModelInfo(name="m", version="1", format="onnx", files=(ModelFile(name="model.onnx", size=0, sha256="0" * 64),))

async def attempt():
    try:
        async with OnnxBackend(OnnxBackend.Options(), Model(info=info, path=folder)):
            return "opened"
    except ModelError:
        return "refused"

outcomes = set()
for seed in range(rounds):
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(chance.choice([1, 4, 30])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)):]
    (folder / "model.onnx").write_bytes(data)
    outcomes.add(anyio.run(attempt))
print(*sorted(outcomes))
"""


def test_a_graph_with_flipped_bytes_opens_or_is_a_model_error(tmp_path):
    (tmp_path / "whole.onnx").write_bytes(graph({}, "constant").replace(b"\x70\x01", b"\x70\x00"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    command: list[Any] = [sys.executable, "-c", FUZZ, tmp_path, "150"]
    child = run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.split()[-1] == "refused"
