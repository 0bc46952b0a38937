"""Real clips through a real detector into a folder: whole pictures, and nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from loopcore.types import image_id

TOML = """
[node]
data_dir = "data"

[server]
port = 0

[backend]
driver = "onnx"
model = "{model}"
confidence = 0.3

[[sources]]
driver = "video"
path = "{clips}/*.mp4"
camera_from = "name"
every = "2 s"

[[selectors]]
driver = "uncertain"

[[selectors]]
driver = "interval"
every = "20 s"

[[sinks]]
driver = "folder"
path = "samples"
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml", "--until-done"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def stored(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted((folder / "samples").rglob("*")) if path.is_file()}


@pytest.fixture
def node(shared_data: Path, tmp_path: Path) -> Path:
    model = shared_data / "models" / "fastestdet-coco" / "fastestdet.onnx"
    (tmp_path / "loop.toml").write_text(TOML.format(model=model, clips=shared_data / "videos"))
    return tmp_path


def test_every_sample_of_a_clip_is_a_whole_picture_with_its_json_and_a_second_run_adds_nothing(node: Path) -> None:
    first = run(node)
    assert first.returncode == 0, first.stderr
    files = stored(node)
    pictures = [path for path in files if path.suffix == ".jpg"]
    notes = {path: json.loads(data)["sample"] for path, data in files.items() if path.suffix == ".json"}
    assert len(pictures) == len(notes) == len(files) // 2
    assert len(pictures) > 20
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
        note = notes[path.with_suffix(".json")]
        assert note["image_id"] == image_id(files[path])
        assert (note["width"], note["height"]) == picture.size
        assert note["reasons"]
    cameras = {note["camera"] for note in notes.values()}
    assert cameras == {"bottle-detection", "car-detection", "one-by-one-person-detection"}
    assert {reason for note in notes.values() for reason in note["reasons"]} >= {"uncertain", "interval"}
    second = run(node)
    assert second.returncode == 0, second.stderr
    assert stored(node) == files
