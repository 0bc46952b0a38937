"""The examples work as they are: packages are built, installed and tested, and nodes run with them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from loop import ANNOTATOR, ANNOTATOR_IMAGE, LoopServer
from peers.processes import Program, free_port

from loopcore.imaging import encode_jpeg
from loopcore.package import write_package
from loopcore.testing import make_jpeg
from loopcore.types import ModelInfo

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGINS = sorted(file.parent.name for file in EXAMPLES.glob("*/pyproject.toml"))
LIMIT_S = 60

DRIVERS = """
from loopcore import hookimpl
from loopcore.testing import AlwaysSelector, FixedBackend, MemorySource

FixedBackend.name, MemorySource.name, AlwaysSelector.name = "fixed", "memory", "always"

@hookimpl
def loopcore_drivers():
    return [FixedBackend, MemorySource, AlwaysSelector]
"""
NODE = """
node = { name = "example", data_dir = "data" }
server = { port = 0 }
plugins = { files = ["drivers.py"] }
backend = { driver = "fixed", model = "./model" }
sources = [{ driver = "memory", count = 3 }]
selectors = [{ driver = "always" }]
sinks = [{ driver = "sqlite", path = "samples.db" }]
outbox = { min_free = 0 }
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run to the end and return what it printed; anything but exit code 0 fails the test with all of it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTEST_", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the plugins, in a place where nothing else of this repository is."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in PLUGINS:
        ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(EXAMPLES / name, folder / name, ignore=ignore)
    return folder


@pytest.fixture(scope="module")
def python(copies: Path) -> Path:
    """The Python of a fresh environment with the plugins in it, and what is installed here within reach."""
    uv = shutil.which("uv")
    assert uv, "uv builds and installs the plugins; pip install uv"
    run(uv, "venv", "--python", sys.executable, "venv", cwd=copies)
    python = copies / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=copies).strip()
    # A plain path in a .pth would not read the .pth files over there, and loopcore itself is one of them.
    here = sysconfig.get_path("purelib")
    (Path(site) / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    run(uv, "pip", "install", "--python", python, "--no-deps", *(copies / name for name in PLUGINS), cwd=copies)
    return python


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugin_passes_its_own_tests(plugin: str, copies: Path, python: Path) -> None:
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=copies / plugin)
    assert " passed" in printed
    assert "skipped" not in printed


def test_plugin_is_listed_with_its_package(tmp_path: Path, python: Path) -> None:
    listed = json.loads(run(python, "-m", "loopcore", "plugins", "--json", cwd=tmp_path))
    (entry,) = [entry for entry in listed if entry["name"] == "sqlite"]
    assert (entry["kind"], entry["package"], entry["version"]) == ("sink", "loopcore-sqlite", "0.1.0")


def test_plugin_receives_what_a_node_picks(tmp_path: Path, python: Path) -> None:
    (tmp_path / "loop.toml").write_text(NODE)
    (tmp_path / "drivers.py").write_text(DRIVERS)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("none")
    write_package(tmp_path / "model", ModelInfo(name="fixed", version="1", format="null"))
    run(python, "-m", "loopcore", "run", "loop.toml", "--until-done", cwd=tmp_path)
    with closing(sqlite3.connect(tmp_path / "samples.db")) as database:
        rows = database.execute("SELECT camera, labels, reasons, length(image) FROM samples").fetchall()
    assert [row[:3] for row in rows] == [("memory", "thing", "always")] * 3
    assert all(row[3] > 100 for row in rows)


@pytest.fixture
def example(tmp_path: Path, spots_model: Path) -> Callable[[str], Path]:
    """Copies an example, gives it a model and pictures as `loopcore demo --out demo` would, and lets its node end."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(spots_model, folder / "demo" / "model")
        (folder / "demo" / "scenes").mkdir()
        for name, grey in (("clear", 255), ("faint", 110), ("empty", 0)):
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[16:32, 16:32] = grey
            (folder / "demo" / "scenes" / f"{name}.jpg").write_bytes(encode_jpeg(pixels))
        toml = (folder / "loop.toml").read_text(encoding="utf-8")
        ending = toml.replace(
            'driver = "folder"\npath = "demo/scenes"', 'driver = "folder"\nwatch = false\npath = "demo/scenes"'
        )
        assert ending != toml
        (folder / "loop.toml").write_text(f"{ending}\n[server]\nport = 0\n", encoding="utf-8")
        return folder

    return copy


def test_detect_folder_keeps_what_the_model_is_unsure_of(example: Callable[[str], Path]) -> None:
    folder = example("detect_folder")
    run(sys.executable, "-m", "loopcore", "run", "loop.toml", "--until-done", cwd=folder)
    (kept,) = (folder / "kept").rglob("*.jpg")
    assert kept.read_bytes() == (folder / "demo" / "scenes" / "faint.jpg").read_bytes()
    assert kept.with_suffix(".json").exists()


def test_single_file_plugin_lists_what_the_model_is_unsure_of(example: Callable[[str], Path]) -> None:
    folder = example("single_file_plugin")
    for _ in range(2):
        run(sys.executable, "-m", "loopcore", "run", "loop.toml", "--until-done", cwd=folder)
    with (folder / "uncertain.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["camera"], row["reasons"], row["labels"]) == ("demo", "uncertain", "spot")


# Against a Loop


@pytest.fixture
def anyio_backend() -> str:
    """The nodes are processes of their own; whoever waits for them may as well be asyncio."""
    return "asyncio"


@asynccontextmanager
async def node(python: Path, name: str, folder: Path, loop: LoopServer) -> AsyncGenerator[tuple[Program, str]]:
    """An example at work as its TOML says, with this Loop and another port; its address."""
    toml = (EXAMPLES / name / "loop.toml").read_text(encoding="utf-8")
    port = free_port()
    changed = toml.replace("http://localhost:8080", loop.url)
    changed = re.sub(r"port = \d+", f"port = {port}", changed)
    assert changed.count(loop.url) == changed.count(str(port)) == 1
    (folder / "loop.toml").write_text(f"{changed}\n[outbox]\nmin_free = 0\n", encoding="utf-8")
    environment = {"LOOP_PASSWORD": loop.accounts["me"]}
    async with Program([python, "-m", "loopcore", "run", "loop.toml"], environment, folder) as running:
        await running.says("The node is up")
        yield running, f"http://127.0.0.1:{port}"
        assert await running.end() == 0


@pytest.mark.anyio
async def test_mock_detector_follows_the_demo_project_and_delivers_to_it(tmp_path: Path, python: Path) -> None:
    async with LoopServer(accounts={"me": "krill"}) as loop, node(python, "mock_detector", tmp_path, loop) as (_, url):
        await loop.detectors.until(lambda report: report.body["current_model"] == "1.1")
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            found = (await client.post("/detect", files={"file": make_jpeg(1)})).json()
        (upload,) = await loop.uploads.wait(1)
    categories = {category["name"]: category["id"] for category in loop.store[loop.demo].categories}
    for kind in ("box", "point", "segmentation"):
        (one,) = found[f"{kind}_detections"]
        assert one["category_id"] == categories[one["category_name"]]
    assert "uncertain" in upload.metadata["tags"]
    assert not list(loop.complaints)


@pytest.mark.anyio
async def test_mock_converter_adds_the_format_that_a_model_lacks(tmp_path: Path, python: Path) -> None:
    """The operability test of the reference: after an upload in `format_a`, it is there in `format_b`, too."""
    async with LoopServer(accounts={"me": "krill"}) as loop:
        model = loop.store[loop.demo].add_model("2.0", format_a={"weights": b"abc"})
        async with node(python, "mock_converter", tmp_path, loop):
            (upload,) = await loop.model_uploads.wait(1)
        assert (upload.model_id, upload.format, upload.files["weights"]) == (model.id, "format_b", b"cba")
        assert sorted(loop.store[loop.demo].models[model.id].formats) == ["format_a", "format_b"]
        assert not list(loop.complaints)


@pytest.mark.anyio
async def test_mock_annotator_serves_the_people_of_a_loop(tmp_path: Path, python: Path) -> None:
    async with LoopServer(accounts={"me": "krill"}) as loop, node(python, "mock_annotator", tmp_path, loop):
        organization, project = ANNOTATOR.split("/")
        said = {
            "coordinate": {"x": 10, "y": 10},
            "event_type": "left_mouse_down",
            "context": {"organization": organization, "project": project},
            "image_uuid": ANNOTATOR_IMAGE,
            "category": loop.store[ANNOTATOR].categories[0],
        }
        released = {"event_type": "left_mouse_up", "coordinate": {"x": 30, "y": 20}}
        for more in ({}, released, {"event_type": "key_up", "key_up": "Enter"}):
            ack = await loop.sockets.handle_user_input({"frontend_id": "ada", "data": said | more})
            assert ack["success"], ack
        (annotation,) = loop.annotations
        corners = [(point["x"], point["y"]) for point in annotation.body["shape"]["points"]]
        assert corners == [(10, 10), (30, 10), (30, 20), (10, 20)]
        assert not list(loop.complaints)


@pytest.mark.anyio
async def test_mock_trainer_trains_for_a_loop(tmp_path: Path, python: Path) -> None:
    """From `begin_training` to what the model finds on the Loop's images, with the backend of `mock_detector`."""
    async with LoopServer(accounts={"me": "krill"}) as loop, node(python, "mock_trainer", tmp_path, loop):
        assert (await loop.sockets.begin_training(loop.demo, 7))["success"] is True
        (upload,) = await loop.model_uploads.wait(1, within=40)
        idle = await loop.trainers.until(lambda report: report.body["state"] == "idle", after=len(loop.trainers))
        states = list(dict.fromkeys(report.body["state"] for report in loop.trainers))
    assert idle.body["errors"] == {}
    assert (upload.format, upload.training) == ("mocked", 7)
    assert {"data_downloading", "running", "train_model_uploading", "idle"} <= set(states)
    assert {report.body["training_number"] for report in loop.trainings} == {7}
    seen = {item["image_id"] for one in loop.detections for item in one.items}
    assert seen == set(loop.store[loop.demo].images)
    assert not list(loop.complaints)
