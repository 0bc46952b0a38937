"""What `uncertain` costs for a picture of 10 boxes with 10,000 remembered, beside linear scans in the same run.

python benchmarks/selection_cost.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np

from loopcore.drivers.uncertain import Uncertain, UncertainOptions
from loopcore.types import Box, FrameInfo, Prediction

REMEMBERED = 10_000
BOXES = 10
ROUNDS = 200
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def scene(rng: random.Random, count: int, confidence: float = 0.45) -> tuple[Box, ...]:
    return tuple(
        Box(
            label="penguin",
            confidence=confidence,
            x=rng.uniform(0, 1800),
            y=rng.uniform(0, 1000),
            width=rng.uniform(8, 200),
            height=rng.uniform(8, 200),
        )
        for _ in range(count)
    )


def info(second: float) -> FrameInfo:
    return FrameInfo(width=1920, height=1080, time=NOON + timedelta(seconds=second), camera="gate")


def linear(history: list[Box], picture: tuple[Box, ...]) -> int:
    """The reference's way: every box against every remembered one."""
    found = 0
    for a in picture:
        for b in history:
            width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            common = max(width, 0) * max(height, 0)
            union = a.width * a.height + b.width * b.height - common
            found += union > 0 and common / union >= 0.5
    return found


def scanned(history: np.ndarray, picture: tuple[Box, ...]) -> int:
    """Every box against all remembered ones at once, in numpy; `history` is left, top, right, bottom, area."""
    left, top, right, bottom, area = history
    found = 0
    for a in picture:
        width = np.minimum(right, a.x + a.width) - np.maximum(left, a.x)
        height = np.minimum(bottom, a.y + a.height) - np.maximum(top, a.y)
        common = np.maximum(width, 0) * np.maximum(height, 0)
        found += int(np.count_nonzero(common >= 0.5 * (area + a.width * a.height - common)))
    return found


def micros(work: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    rng = random.Random(7)
    selector = Uncertain(UncertainOptions())
    history: list[Box] = []
    while len(history) < REMEMBERED:
        (box,) = scene(rng, 1)
        if selector.consider(info(0), Prediction(detections=(box,)), None):
            history.append(box)
    table = np.array([(b.x, b.y, b.x + b.width, b.y + b.height, b.width * b.height) for b in history]).T.copy()

    print(f"a picture of {BOXES} boxes, {REMEMBERED} remembered of one class and camera; µs, median (p99)")
    pictures = [scene(rng, BOXES, 0.9) for _ in range(ROUNDS)]  # sure of them: looked up, not remembered
    frames = [(info(1 + i), Prediction(detections=picture)) for i, picture in enumerate(pictures)]
    hashed = sorted(micros(partial(selector.consider, *frame, None)) for frame in frames)
    arrays = sorted(micros(partial(scanned, table, picture)) for picture in pictures)
    plain = sorted(micros(partial(linear, history, picture)) for picture in pictures[:5])
    for name, times in (("index", hashed), ("numpy scan", arrays), ("linear scan", plain)):
        print(f"{name:12} {statistics.median(times):10.0f} ({times[int(len(times) * 0.99)]:.0f})")


if __name__ == "__main__":
    main()
