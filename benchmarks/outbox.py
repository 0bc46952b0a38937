"""What a durable accept costs, beside what this disk allows in the same minute, and what opening a full outbox costs.

    python benchmarks/outbox.py [DIR] [--rounds 5] [--count 300] [--waiting 100000]

The two yardsticks are the plainest durable ways to store 60 KB and 2 KB: a blob in SQLite (WAL, synchronous FULL, one
commit each) for one caller, and a file for each (eight threads, fsync, one folder sync at the end) for eight callers.
Rounds alternate, medians of ratios are printed. The goals are 0.70 and 0.50; 0.5 ms of CPU an image; 50 ms for 100,000
waiting samples and 200 ms for 1,000,000 (the index alone, made here), with an accept at no more than 1.2 of an empty
outbox's.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio

from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable
from loopcore.types import Box, Prediction, SampleInfo, image_id, sample_id

IMAGE = os.urandom(60_000)
META = b'{"x":1}' * 300
DETECTIONS = tuple(
    Box(label=f"label {n}", confidence=0.5, x=n * 10.5, y=n * 3.25, width=100.125, height=50.5) for n in range(15)
)
Sample = tuple[SampleInfo, bytes]


def sample(number: int) -> Sample:
    image = number.to_bytes(8, "big") + IMAGE[8:]
    digest = image_id(image)
    info = SampleInfo(
        id=sample_id(digest, "gate", None),
        image_id=digest,
        media="image/jpeg",
        image_bytes=len(image),
        width=640,
        height=480,
        kept=datetime.now(UTC),
        camera="gate",
        reasons=("uncertain",),
        prediction=Prediction(detections=DETECTIONS, model="m", model_version="1"),
    )
    return info, image


def sqlite_blobs(folder: Path, count: int) -> float:
    db = sqlite3.connect(folder / "q.db", isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=FULL")
    db.execute("create table q(id integer primary key, meta text, jpg blob)")
    begun = time.perf_counter()
    for _ in range(count):
        db.execute("begin immediate")
        db.execute("insert into q(meta, jpg) values (?, ?)", (META, IMAGE))
        db.execute("commit")
    took = time.perf_counter() - begun
    db.close()
    return count / took


def files_by_threads(folder: Path, count: int, threads: int = 8) -> float:
    def store(first: int) -> None:
        for number in range(first, count, threads):
            descriptor = os.open(folder / f"{number}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(descriptor, META + IMAGE)
            os.fsync(descriptor)
            os.close(descriptor)
            (folder / f"{number}.tmp").rename(folder / str(number))

    begun = time.perf_counter()
    workers = [threading.Thread(target=store, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return count / (time.perf_counter() - begun)


def accepts(folder: Path, samples: Sequence[Sample], callers: int) -> tuple[float, float]:
    """Images a second, and CPU ms an image."""

    async def call(outbox: Outbox, share: Sequence[Sample]) -> None:
        for info, image in share:
            await outbox.accept(info, image)

    async def main() -> tuple[float, float]:
        async with Outbox(folder / "outbox", OutboxTable(), [Taker(name="sink")]) as outbox:
            begun, cpu = time.perf_counter(), time.process_time()
            async with anyio.create_task_group() as group:
                for first in range(callers):
                    group.start_soon(call, outbox, samples[first::callers])
            took, used = time.perf_counter() - begun, time.process_time() - cpu
            return len(samples) / took, used / len(samples) * 1e3

    return anyio.run(main, backend_options={"use_uvloop": True})


def compare(base: Path, rounds: int, count: int) -> None:
    rows: dict[str, list[tuple[float, float, float]]] = {"one caller": [], "eight callers": []}
    for turn in range(rounds):
        samples = [sample(turn * count + number) for number in range(count)]
        for name, yardstick, callers in (("one caller", sqlite_blobs, 1), ("eight callers", files_by_threads, 8)):
            folders = [Path(tempfile.mkdtemp(dir=base)) for _ in range(2)]
            reference = yardstick(folders[0], count)
            rate, cpu = accepts(folders[1], samples, callers)
            rows[name].append((reference, rate, cpu))
            for folder in folders:
                shutil.rmtree(folder)
    for name, figures in rows.items():
        middle = [statistics.median(column) for column in zip(*figures, strict=True)]
        ratio = statistics.median(rate / reference for reference, rate, _ in figures)
        print(
            f"{name}: yardstick {middle[0]:.0f}/s, outbox {middle[1]:.0f}/s, ratio {ratio:.2f}, CPU {middle[2]:.2f} ms"
        )


def fill(folder: Path, waiting: int) -> None:
    """Make an outbox whose index knows of many samples, without their images."""

    async def start() -> None:
        async with Outbox(folder, OutboxTable(), [Taker(name="sink")]):
            pass

    anyio.run(start)
    each, per_segment = 62_000, 540
    db = sqlite3.connect(folder / "index.db")
    places = (
        (n, os.urandom(32), 0, 1 + n // per_segment, n % per_segment * each, each, 60_000, 0, 0.0, 1.0, None)
        for n in range(1, waiting + 1)
    )
    db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", places)
    db.execute("INSERT INTO todo SELECT seq, 1, 1, 0, image_bytes FROM samples")
    db.execute(
        "INSERT INTO segments SELECT segment, max(offset + length), count(*), sum(length), NULL FROM samples GROUP BY 1"
    )
    db.execute("UPDATE sinks SET waiting = ?, bytes = ?, crc = NULL", (waiting, waiting * 60_000))
    last = 2 + waiting // per_segment
    db.execute(
        "UPDATE state SET next_seq = ?, count = ?, bytes = ?, segment = ?, crc = NULL",
        (waiting + 1, waiting, waiting * each, last),
    )
    db.commit()
    db.close()


def opening(base: Path, waiting: int) -> None:
    folder = Path(tempfile.mkdtemp(dir=base)) / "outbox"
    fill(folder, waiting)
    samples = [sample((1 << 40) + number) for number in range(300)]
    room = OutboxTable(max_bytes=type(OutboxTable().max_bytes)(1 << 50))

    async def measure(folder: Path) -> tuple[float, float, float]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        async with Outbox(folder, room, [Taker(name="sink")]) as outbox:
            took = time.perf_counter() - begun
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            begun = time.perf_counter()
            for info, image in samples:
                await outbox.accept(info, image)
            accept = (time.perf_counter() - begun) / len(samples)
        return took * 1e3, grown / 1e3, accept * 1e3

    took, grown, full = anyio.run(measure, folder)
    empty = anyio.run(measure, folder.with_name("empty"))[2]
    print(
        f"{waiting} waiting: opens in {took:.1f} ms, +{grown:.1f} MB at most, "
        f"accept {full:.2f} ms beside {empty:.2f} ms when empty ({full / empty:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), help="a folder on the disk in question")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--waiting", type=int, nargs="*", default=[100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outbox", dir=options.dir) as base:
        for waiting in options.waiting:
            opening(Path(base), waiting)
        compare(Path(base), options.rounds, options.count)


if __name__ == "__main__":
    main()
