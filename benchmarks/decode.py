"""What decoding a JPEG for a model of 640 × 640 costs, against simplejpeg's own scaled decode and Pillow's full one.

    python -m benchmarks.decode [--rounds 15]

The rivals take turns with ours in every round, so that noise hits all alike; medians of CPU milliseconds. The pictures
are made in a process of their own: one that has freed large arrays keeps their memory, and then Pillow's full decode
costs half.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
from PIL import Image

from loopcore import imaging
from loopcore.geometry import letterbox

SIDE = 640
LIMITS = {"HD": (1.1, 0.40), "4K": (1.1, 0.25)}
SIZES = {"HD": (1920, 1080), "4K": (3840, 2160)}


def picture(width: int, height: int) -> bytes:
    """A smooth scene with the noise of a sensor, about 1.5 bits a pixel."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 60, width // 60, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (scene + rng.integers(-12, 12, scene.shape)).clip(0, 255).astype(np.uint8)
    return imaging.encode_jpeg(noisy, 85)


def make(folder: Path) -> None:
    for name, (width, height) in SIZES.items():
        (folder / name).write_bytes(picture(width, height))


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: median(taken) * 1000 for name, taken in times.items()}


def rivals(data: bytes, width: int, height: int) -> dict[str, Callable[[], object]]:
    def ours() -> object:
        return imaging.decode(data, size=(width, height))

    def scaled() -> object:
        return simplejpeg.decode_jpeg(
            data, "RGB", fastdct=True, fastupsample=True, min_width=width, min_height=height
        )  # fmt: skip

    def full() -> object:
        return np.array(Image.open(BytesIO(data)))

    return {"ours": ours, "simplejpeg": scaled, "pillow": full}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make)
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "benchmarks.decode", "--make", scratch], check=True)
        pictures = {name: (Path(scratch) / name).read_bytes() for name in SIZES}
    print("| picture | ours ms | simplejpeg scaled ms | Pillow full ms | to simplejpeg (limit) | to Pillow (limit) |")
    print("|---|---|---|---|---|---|")
    for name, (width, height) in SIZES.items():
        data = pictures[name]
        fit = letterbox((width, height), (SIDE, SIDE))
        took = medians(rivals(data, fit.width, fit.height), arguments.rounds)
        ratios = took["ours"] / took["simplejpeg"], took["ours"] / took["pillow"]
        limits = LIMITS[name]
        print(
            f"| {name}, {len(data) // 1000} KB | {took['ours']:.2f} | {took['simplejpeg']:.2f} | {took['pillow']:.2f} "
            f"| {ratios[0]:.2f} ({limits[0]:.2f}) | {ratios[1]:.2f} ({limits[1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
