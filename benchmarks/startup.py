"""How long it takes until something happens, in fresh processes, with 50 more packages to scan than there are.

    python -m benchmarks.startup [--rounds 7]

The cases take turns in every round; medians of wall milliseconds. From `loopcore run` to the first answer, a model of
1 MB is loaded, warmed up and asked over HTTP.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.small_model import running_node, write_model

PACKAGES = 50
GOALS_MS = {"import loopcore": 60, "loopcore --help": 150, "loopcore run, first answer": 800}
IMPORT = "from time import perf_counter as t; s = t(); import loopcore; print((t() - s) * 1e3)"


def write_packages(folder: Path) -> None:
    """What pip leaves of packages: every second one with entry points, every tenth one with a driver."""
    for index in range(PACKAGES):
        info = folder / f"fake_package_{index}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-package-{index}\nVersion: 1.0\n")
        (info / "RECORD").touch()
        points = f"[console_scripts]\nfake{index} = json:dumps\n" if index % 2 == 0 else ""
        points += f"[loopcore.sinks]\nfake{index} = fake_{index}:Sink\n" if index % 10 == 0 else ""
        if points:
            (info / "entry_points.txt").write_text(points)


def wall(environment: dict[str, str], *command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_model(root / "model")
        write_packages(root / "packages")
        environment = {**os.environ, "PYTHONPATH": str(root / "packages")}

        def imported() -> float:
            printed = subprocess.run([sys.executable, "-c", IMPORT], env=environment, check=True, capture_output=True)
            return float(printed.stdout)

        def answered() -> float:
            with running_node(root / f"node-{time.monotonic_ns()}", environment) as (_, seconds):
                return seconds * 1e3

        cases: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: wall(environment, "-c", "pass"),
            "import loopcore": imported,
            "loopcore --help": lambda: wall(environment, "-m", "loopcore", "--help"),
            "loopcore run, first answer": answered,
        }
        took: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                took[name].append(case())
    print("| | median ms | best ms | goal |")
    print("|---|---|---|---|")
    for name, each in took.items():
        print(f"| {name} | {median(each):.0f} | {min(each):.0f} | {GOALS_MS.get(name, '')} |")


if __name__ == "__main__":
    main()
