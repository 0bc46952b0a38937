"""Opening what a power cut has left, and looking at all of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from loopcore.cli.torture.promises import BrokenPromiseError, View
from loopcore.cli.torture.recording import RecordingDisk
from loopcore.cli.torture.volume import Commit, Image, Step
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.turns import Job
from loopcore.errors import LoopcoreError
from loopcore.files import Disk
from loopcore.types import Sample

BOX = "box"
T = TypeVar("T")
Opener = Callable[[Path, Disk], Store]
"""Makes the outbox of a folder."""


class Survey(Struct):
    """What was found, and the steps that opening took."""

    view: View
    steps: Sequence[Step]


def ask(store: Store, run: Callable[[], T]) -> T:
    """Run something in a turn of its own.

    Raises:
        LoopcoreError: As it does.
    """
    job = Job(run)
    store.turn([job])
    if job.error:
        raise job.error
    result: T = job.result
    return result


def look(store: Store, images: Mapping[str, bytes], *, damage: bool = False) -> View:
    """All that an outbox would hand out, of what is not in hand.

    Args:
        store: The outbox.
        images: The bytes of each sample's image.
        damage: Something may be damaged; it is left out then.

    Raises:
        BrokenPromiseError: Something in it is damaged, or not what was accepted.
    """
    status, waiting, listed, rejected, dropped = ask(store, partial(_asked, store))
    samples: dict[str, list[Sample]] = {sink: [] for sink in waiting}
    for sink, leases in waiting.items():
        store.leases.release(sink, leases)
        for lease, sample in zip(leases, store.sending.read(leases), strict=True):
            if sample is None and damage:
                ask(store, partial(store.sending.read_again, lease))
            else:
                samples[sink].append(_whole(lease.id, sample, images))
    read = {sample.info.id for found in samples.values() for sample in found}
    for one in listed:
        if one.id not in read and not damage:
            _whole(one.id, ask(store, partial(store.desk.show, one.id)), images)
    if status["operator_deleted"]:
        raise BrokenPromiseError("lost", "a file is counted as removed by hand")
    drops = Counter((row["sink"], row["id"]) for row in dropped if row["rule"] != "rejected_max_bytes")
    return View(
        present={one.id: one.seq for one in listed},
        waiting=samples,
        rejected=frozenset((row["sink"], row["id"]) for row in rejected),
        drops=drops,
        put_aside=status["quarantined"],
    )


def _asked(store: Store) -> tuple[Any, ...]:
    """All of it in one turn, which shares its transaction with what was before."""
    status = store.desk.status()
    waiting = {sink: store.sending.lease(sink, 10_000, 1 << 60)[0] for sink in status["sinks"]}
    return status, waiting, store.desk.list(0, 10_000), store.desk.list_rejected(None), store.desk.list_drops()


def _whole(name: str, sample: Sample | None, images: Mapping[str, bytes]) -> Sample:
    if sample is None or sample.image != images.get(name):
        raise BrokenPromiseError("half", f"{name[:8]} cannot be read")
    return sample


def survey(
    image: Image, scratch: Path, opener: Opener, images: Mapping[str, bytes], settled: set[tuple[Any, ...]]
) -> Survey:
    """Lay out an image, open the outbox in it, look at it, close it, open it again, and compare.

    Args:
        image: What the disk holds.
        scratch: A folder that is made, and removed.
        opener: Makes the outbox.
        images: The bytes of each sample's image.
        settled: What other images came to by being opened, and what opening again did not change. Many come to the
            same.

    Raises:
        BrokenPromiseError: It does not open, holds something damaged, miscounts, or changes when it is opened again.
    """
    lay(image, scratch)
    try:
        disk = RecordingDisk(scratch, image)
        with closing(_open(scratch, disk, opener)) as store:
            steps = tuple(disk.steps)
            view = look(store, images)
        first = _kept(scratch, disk)
        if (key := (first[0], *first[1].items())) not in settled:
            with closing(_open(scratch, disk, opener)):
                pass
            second = _kept(scratch, disk)
            if first != second:
                raise BrokenPromiseError("unstable", f"opening it again changed {_differences(first, second)}")
            _recount(*second)
            settled.add(key)
    finally:
        shutil.rmtree(scratch)
    return Survey(view, steps)


def lay(image: Image, folder: Path) -> None:
    """Make the files of an image."""
    root = str(folder)
    os.mkdir(root)  # noqa: PTH102 - this and the next are done some hundred times a second
    for path in image.folders:
        os.mkdir(f"{root}/{path}")  # noqa: PTH102
    for path, data in image.files.items():
        with open(f"{root}/{path}", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(data)


def _open(root: Path, disk: Disk, opener: Opener) -> Store:
    store = opener(root / BOX, disk)
    try:
        store.open()
    except LoopcoreError as exc:
        raise BrokenPromiseError("open", str(exc)) from exc
    return store


def _kept(root: Path, disk: RecordingDisk) -> tuple[bytes, dict[str, int]]:
    """The index as it was last committed, and the sizes of the files in folders."""
    commits = (step.data for step in reversed(disk.steps) if isinstance(step, Commit))
    index = next(commits)
    folder = str(root / BOX)
    sizes = {
        f"{path[len(folder) + 1 :]}/{name}": os.stat(f"{path}/{name}").st_size  # noqa: PTH116
        for path, _, names in os.walk(folder)
        if path != folder
        for name in names
    }
    return index, sizes


def _recount(index: bytes, sizes: Mapping[str, int]) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(index)
        for name, (total, recount) in _RECOUNTS.items():
            said, true = db.execute(total).fetchall(), db.execute(recount).fetchall()
            if said != true:
                raise BrokenPromiseError("counts", f"{name}: says {said}, has {true}")
        known = {f"segments/{number:016d}.seg": size for number, size in db.execute(_SEGMENTS)}
    there = {path: size for path, size in sizes.items() if path.startswith("segments/")}
    if known != there:
        raise BrokenPromiseError("counts", f"the index says {known}, the folder has {there}")


def _differences(first: tuple[bytes, Mapping[str, int]], second: tuple[bytes, Mapping[str, int]]) -> str:
    tables = []
    for index, _ in (first, second):
        with closing(sqlite3.connect(":memory:")) as db:
            db.deserialize(index)
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables.append({name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names})  # noqa: S608
    rows = [
        f"{name}: {tables[0][name]} → {tables[1][name]}" for name in tables[0] if tables[0][name] != tables[1][name]
    ]
    files = sorted({*first[1].items()} ^ {*second[1].items()})
    return "; ".join([*rows, *map(str, files)]) or "the pages of the index, not its rows"


_SEGMENTS = "SELECT segment, size FROM segments"
_RECOUNTS = {
    "samples": ("SELECT count, bytes FROM state", "SELECT count(*), coalesce(sum(length), 0) FROM samples"),
    "places": (
        "SELECT sink, waiting, bytes FROM sinks ORDER BY sink",
        """SELECT s.sink, count(seq), coalesce(sum(t.bytes), 0) FROM sinks s LEFT JOIN todo t USING (sink)
        GROUP BY s.sink ORDER BY s.sink""",
    ),
    "segments": (
        "SELECT segment, live, live_bytes FROM segments ORDER BY segment",
        """SELECT g.segment, count(seq), coalesce(sum(length), 0) FROM segments g LEFT JOIN samples s
        ON s.segment = g.segment GROUP BY g.segment ORDER BY g.segment""",
    ),
    "owners": (
        "SELECT count(*) FROM todo",
        "SELECT count(*) FROM todo JOIN samples USING (seq) JOIN sinks USING (sink)",
    ),
    "numbers": ("SELECT 0", "SELECT count(*) FROM samples, state WHERE seq >= next_seq"),
}
