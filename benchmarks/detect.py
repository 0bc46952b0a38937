"""A detector's answers to its clients, beside the reference's and a hand-written server's, in one run.

    python -m benchmarks.detect [--suites small,large,null,sockets,yolox] [--rounds 5] [--secs 1]

Runs the kit in `benchmarks/kit`: the reference (learning-loop-node 0.27.0, in an environment of its own), loopcore and
the floor take turns, on the same model and pictures. Printed are the kit's tables, and the ratios that are promised.
Environments, pictures and the model are made at the first run and kept in the cache of `tests/peers`. The suite `yolox`
needs the model in `../shared/data`. Install wrk: the other load generator takes a core for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT / "benchmarks" / "kit"
YOLOX = ROOT.parent / "shared" / "data" / "models" / "yolox-nano-coco"
PHOTO = ROOT.parent / "shared" / "data" / "photos" / "china.jpg"
HTTP = "reference,loopcore,floor-scaled"


@dataclass(frozen=True)
class Suite:
    """One run of the kit."""

    targets: str
    files: str
    clients: str
    model: str = "real"
    secs: float = 1.0


@dataclass
class Results:
    """What runs have given: all slices of a server on a file with so many clients, and the memory of each server."""

    slices: dict[tuple[str, str, str, int], list[dict[str, float]]] = field(default_factory=dict)
    memory: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def of(self, suite: str, server: str, file: str, clients: int, figure: str) -> float | None:
        found = self.slices.get((suite, server, file, clients))
        return median(one[figure] for one in found if figure in one) if found else None

    def ratio(
        self, suite: str, file: str, clients: int, figure: str, server: str = "loopcore", to: str = "reference"
    ) -> float | None:
        ours, theirs = (self.of(suite, one, file, clients, figure) for one in (server, to))
        return ours / theirs if ours and theirs else None


SUITES = {
    "small": Suite(f"{HTTP},limit-scaled", "small.jpg", "1,4,16,64"),
    "large": Suite(f"{HTTP},limit-scaled", "hd.jpg,uhd.jpg", "1,4", secs=2),
    "null": Suite(HTTP, "tiny.jpg", "1,16", model="null"),
    "sockets": Suite(
        "loopcore, array;loopcore, JPEG;loopcore, array unread;loopcore, JPEG unread",
        "small.jpg,uhd.jpg",
        "1,4",
        secs=2,
    ),
    "yolox": Suite(HTTP, "small.jpg", "8", secs=2),
}


def goals(results: Results) -> Iterator[tuple[str, float | None, Callable[[float], bool], str]]:
    """What is promised: words, the figure, whether it is good, and the goal."""

    def at_least(goal: float) -> tuple[Callable[[float], bool], str]:
        return (lambda value: value >= goal), f"≥ {goal:.2f}"

    def at_most(goal: float) -> tuple[Callable[[float], bool], str]:
        return (lambda value: value <= goal), f"≤ {goal:.2f}"

    ratio = results.ratio
    for clients in (4, 16, 64):
        words = f"640×480, {clients} clients, requests a second to the"
        yield f"{words} reference", ratio("small", "small.jpg", clients, "rps"), *at_least(1.9)
        yield f"{words} floor", ratio("small", "small.jpg", clients, "rps", to="floor-scaled"), *at_least(0.92)
    yield "640×480, 1 client, p50", ratio("small", "small.jpg", 1, "p50"), *at_most(0.60)
    yield "640×480, 16 clients, p99", ratio("small", "small.jpg", 16, "p99"), *at_most(0.45)
    yield "640×480, CPU a request", ratio("small", "small.jpg", 4, "cpu_ms"), *at_most(0.65)
    for name, file, rate, p50, cpu in (("HD", "hd.jpg", 2.2, 0.45, 0.50), ("4K", "uhd.jpg", 3.5, 0.38, 0.30)):
        yield f"{name}, 4 clients, requests a second", ratio("large", file, 4, "rps"), *at_least(rate)
        yield f"{name}, the same to the floor", ratio("large", file, 4, "rps", to="floor-scaled"), *at_least(0.95)
        yield f"{name}, 1 client, p50", ratio("large", file, 1, "p50"), *at_most(p50)
        yield f"{name}, CPU a request", ratio("large", file, 4, "cpu_ms"), *at_most(cpu)
    for clients in (1, 16):
        words = f"tiny picture, no model, {clients} clients, CPU a request"
        yield words, ratio("null", "tiny.jpg", clients, "cpu_ms"), *at_most(0.40)
    for suite, file, goal in (("small", "small.jpg", 0.60), ("large", "uhd.jpg", 0.35)):
        ours, theirs = (results.memory.get((suite, server, file)) for server in ("loopcore", "reference"))
        yield f"memory (PSS) after {file}", ours / theirs if ours and theirs else None, *at_most(goal)
    for file in ("small.jpg", "uhd.jpg"):
        jpeg = ratio("sockets", file, 1, "cpu_ms", "loopcore, JPEG unread", "loopcore, array unread")
        yield f"Socket.IO, {file}, bringing a JPEG to bringing the array, CPU", jpeg, *at_most(0.40)
    whole = ratio("sockets", "uhd.jpg", 1, "p50", "loopcore, JPEG", "loopcore, array")
    yield "Socket.IO, 4K, detect on a JPEG to the array, p50", whole, *at_most(0.40)
    yield "YOLOX-Nano, 8 clients, requests a second", ratio("yolox", "small.jpg", 8, "rps"), *at_least(1.7)


def pythons() -> dict[str, Path]:
    """The environments of those that are compared."""
    sys.path.insert(0, str(ROOT / "tests"))
    from peers import python_of  # type: ignore[import-not-found]

    return {name: python_of(name, KIT) for name in ("reference", "tools")} | {"loopcore": Path(sys.executable)}


def assets(tools: Path, *more: str) -> Path:
    """The folder with model and pictures; made once."""
    folder = tools.parents[1] / ("assets-yolox" if more else "assets")
    if not (folder / "model.json").exists():
        subprocess.run([tools, KIT / "make_assets.py", "--out", folder, *more], check=True)
    return folder


def run(name: str, suite: Suite, python: dict[str, Path], rounds: int, secs: float, results: Results) -> None:
    more = ("--photo", str(PHOTO), "--onnx", str(YOLOX / "yolox_nano.onnx"), "--format", "yolox", "--conf", "0.35")
    folder = assets(python["tools"], *(more if name == "yolox" else ()))
    separator = ";" if ";" in suite.targets else ","
    with tempfile.TemporaryDirectory() as scratch:
        told = json.loads((KIT / "targets.json").read_text(encoding="utf-8"))
        chosen = {target: told[target] for target in suite.targets.split(separator)}
        (Path(scratch) / "targets.json").write_text(json.dumps(chosen), encoding="utf-8")
        out = Path(scratch) / "out.json"
        command: list[str | Path] = [python["tools"], KIT / "bench_detect.py", "--targets", f"{scratch}/targets.json"]
        command += [f"--py={key}={path}" for key, path in python.items()]
        command += ["--files", suite.files, "--conc", suite.clients, "--models", suite.model]
        command += ["--secs", str(secs * suite.secs), "--rounds", str(rounds), "--out", out]
        print(f"\n## {name}\n", flush=True)
        subprocess.run(command, check=True, env={**os.environ, "BENCH_ASSETS": str(folder)})
        read = json.loads(out.read_text(encoding="utf-8"))
    rows: list[Any] = read["rows"]
    for _, file, clients, server, slices in rows:
        results.slices[name, server, file, clients] = slices
    for server, _, file, megabytes in read["mems"]:
        results.memory[name, server, file] = megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=1.0, help="of a slice; some suites take twice as long")
    options = parser.parse_args()
    python, results = pythons(), Results()
    for name in options.suites.split(","):
        if name == "yolox" and not YOLOX.is_dir():
            print("yolox is left out: its model is not beside this checkout")
            continue
        run(name, SUITES[name], python, options.rounds, options.secs, results)
    busy = [one["other"] for slices in results.slices.values() for one in slices if "other" in one]
    print(f"\n## loopcore to the reference (others used {median(busy):.0%} of the machine)\n")
    print("| | measured | goal | |\n|---|---|---|---|")
    for words, value, is_good, goal in goals(results):
        if value is not None:
            print(f"| {words} | {value:.2f} | {goal} | {'' if is_good(value) else 'missed'} |")


if __name__ == "__main__":
    main()
