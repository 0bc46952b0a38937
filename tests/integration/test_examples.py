"""The examples work as they are: the package is built, installed and tested, and all three carry a node."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from loopcore.imaging import encode_jpeg
from loopcore.package import write_package
from loopcore.types import ModelInfo

EXAMPLES = Path(__file__).parents[2] / "examples"
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
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the plugin, in a place where nothing else of this repository is."""
    copy = tmp_path_factory.mktemp("plugin") / "sink_plugin"
    shutil.copytree(EXAMPLES / "sink_plugin", copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    return copy


@pytest.fixture(scope="module")
def python(plugin: Path) -> Path:
    """The Python of a fresh environment with the plugin in it, and what is installed here within reach."""
    uv = shutil.which("uv")
    assert uv, "uv builds and installs the plugin; pip install uv"
    run(uv, "venv", "--python", sys.executable, "venv", cwd=plugin.parent)
    python = plugin.parent / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=plugin.parent).strip()
    # A plain path in a .pth would not read the .pth files over there, and loopcore itself is one of them.
    here = sysconfig.get_path("purelib")
    (Path(site) / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    run(uv, "pip", "install", "--python", python, "--no-deps", plugin, cwd=plugin.parent)
    return python


def test_plugin_passes_its_own_tests(plugin: Path, python: Path) -> None:
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=plugin)
    assert " passed" in printed
    assert "skipped" not in printed


def test_plugin_is_listed_with_its_package(plugin: Path, python: Path) -> None:
    listed = json.loads(run(python, "-m", "loopcore", "plugins", "--json", cwd=plugin.parent))
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
