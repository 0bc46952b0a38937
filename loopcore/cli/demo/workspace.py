"""The demo's folder: what is put into it before the node runs, and how an earlier run is cleared away."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np

from loopcore.cli.demo.scenes import COMMON, LABELS, RARE, Material, Slip, make_scene
from loopcore.errors import ConfigError
from loopcore.imaging import encode_jpeg

MARKER = ".loopcore-demo"
_OURS = (
    "scenes/scene-*.jpg", "model/model.json", "model/model.onnx", "samples/*/*/*.json", "samples/*/*/*.jpg",
    "pictures/scene-*.jpg", "truth.json", "loop.toml", "journal.py", "journal.jsonl", "report.html", MARKER,
)  # fmt: skip
BAND = (0.3, 0.6)
"""Which confidence counts as uncertain."""
BEGIN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_STEP = timedelta(minutes=1)
_RARE_SHARE = 0.3

CONFIG = f"""\
# Written by `loopcore demo`: the node that it ran. `loopcore check loop.toml` explains itself.

[node]
name = "demo"
data_dir = "data"            # the outbox, and what else must survive

[server]
port = 0                     # any that is free

[backend]
driver = "onnx"
model = "./model"            # made by the demo: handwriting, fitted in seconds

[inference]
threads = 1                  # one frame after the other, so that every run picks the same

[[sources]]
driver = "folder"
path = "scenes"
captured = "mtime"           # the time of a picture is its file's
watch = false                # read what is there, then end
state = "data/scenes.seen"   # which of them it has handed over

[[selectors]]                # the model is in two minds
driver = "uncertain"
min = {BAND[0]}
max = {BAND[1]}

[[selectors]]                # and a sample of the ordinary, by the frames' own time
driver = "interval"
every = "20 min"

[[sinks]]
driver = "folder"
path = "samples"

[outbox]
max_bytes = "200 MB"
min_free = "20 MB"

[plugins]
files = ["./journal.py"]     # notes what the node did, for the report
"""


def prepare(out: Path) -> None:
    """Make the folder, or clear an earlier demo out of it. Files of others stay.

    Raises:
        ConfigError: It cannot be written to, or holds files that the demo would overwrite and did not make.
    """
    try:
        if (out / MARKER).is_file():
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("data", *(pattern.split("/")[0] for pattern in _OURS if "/" not in pattern)):
            if (out / name).exists():
                raise ConfigError(f"{out / name} is in the way, and not from a demo; name another folder with --out")
        (out / MARKER).write_text(
            "This folder was filled by `loopcore demo`, which may clear its own files out of it.\n"
        )
        for name in ("scenes", "model", "samples", "pictures"):
            (out / name).mkdir(exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot use the folder {out}: {exc.strerror or exc}") from exc


def _clear(out: Path) -> None:
    for pattern in _OURS:
        for path in out.glob(pattern):
            path.unlink()
    if (out / "data").is_dir() and not (out / "data").is_symlink():
        shutil.rmtree(out / "data")
    for pattern in ("samples/*/*", "samples/*", "samples", "scenes", "model", "pictures"):
        for folder in out.glob(pattern):
            with suppress(OSError):  # not empty: someone else's files are in it
                folder.rmdir()


def write_scenes(out: Path, material: Material, *, count: int, seed: int) -> None:
    """Write the scenes as JPEG files, a minute apart, and beside their folder what truly is in them."""
    rng = np.random.default_rng([seed, 1])
    weights = [_RARE_SHARE / len(RARE) if label in RARE else (1 - _RARE_SHARE) / len(COMMON) for label in LABELS]
    truth: dict[str, tuple[Slip, ...]] = {}
    for number in range(1, count + 1):
        scene = make_scene(material, rng, count=int(rng.integers(1, 5)), hard=0.2, weights=weights)
        path = out / "scenes" / f"scene-{number:03}.jpg"
        path.write_bytes(encode_jpeg(scene.pixels, quality=92))
        taken = (BEGIN + _STEP * number).timestamp()
        os.utime(path, (taken, taken))
        truth[path.name] = scene.slips
    (out / "truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(truth), indent=1))


def write_node(out: Path) -> Path:
    """Write the node's TOML and its single-file plugin; returns the TOML."""
    plugin = files("loopcore.cli.demo") / "journal.py"
    (out / "journal.py").write_bytes(plugin.read_bytes())
    config = out / "loop.toml"
    config.write_text(CONFIG, encoding="utf-8")
    return config
