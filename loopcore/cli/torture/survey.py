"""Opening what a power cut has left, and looking at all of it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from loopcore.cli.torture.promises import BrokenPromiseError, View
from loopcore.cli.torture.recording import RecordingDisk
from loopcore.cli.torture.recount import INDEX, Kept, differences, kept, recount
from loopcore.cli.torture.steps import Step
from loopcore.cli.torture.volume import Image
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.terms import Lease
from loopcore.collect.outbox.turns import Job
from loopcore.errors import LoopcoreError
from loopcore.files import Disk
from loopcore.types import Sample

BOX = "box"
T = TypeVar("T")
Opener = Callable[[Path, Disk], Store]
"""Makes the outbox of a folder."""
Recorder = Callable[[Path, Image], RecordingDisk]
"""Makes the disk in a folder that holds an image."""


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


def look(store: Store, images: Mapping[str, bytes]) -> View:
    """All that an outbox would hand out, of what is not in hand. What it finds damaged is out of the way then.

    Args:
        store: The outbox.
        images: The bytes of each sample's image.

    Raises:
        BrokenPromiseError: Something in it is not what was accepted, and not known to be damaged.
    """
    status, waiting, listed, rejected, dropped = ask(store, partial(_asked, store))
    samples: dict[str, list[Sample]] = {sink: [] for sink in waiting}
    damaged = set()
    for sink, leases in waiting.items():
        store.leases.release(sink, leases)
        for lease, sample in zip(leases, store.sending.read(leases), strict=True):
            if sample is None:
                ask(store, partial(_read_again, store, lease))
                damaged.add(lease.id)
            else:
                samples[sink].append(_whole(lease.id, sample, images))
    read = damaged.union(sample.info.id for found in samples.values() for sample in found)
    for one in listed:
        if one.id not in read and (shown := ask(store, partial(_shown, store, one.id))):
            _whole(one.id, shown, images)
        elif one.id not in read:
            damaged.add(one.id)
    if damaged:
        return look(store, images)
    for row in rejected:
        _check_rejected(store, row["sink"], row["id"], images)
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


def _read_again(store: Store, lease: Lease) -> Sample | None:
    return store.sending.read_again(lease)  # whose parts are new if the index had to be made anew


def _shown(store: Store, name: str) -> Sample | None:
    return store.desk.show(name)


def _whole(name: str, sample: Sample, images: Mapping[str, bytes]) -> Sample:
    if sample.image != images.get(name):
        raise BrokenPromiseError("half", f"{name[:8]} is not what was accepted")
    return sample


def _check_rejected(store: Store, sink: str, name: str, images: Mapping[str, bytes]) -> None:
    found = ask(store, lambda: store.desk.show_rejected(name))
    if (sink, images[name]) not in [(refusal.sink, image) for refusal, image in found]:
        raise BrokenPromiseError("lost", f"{name[:8]} from {sink}'s folder in rejected/")


def without_index(image: Image) -> Image:
    """The same, once somebody has removed the index."""
    return Image({path: data for path, data in image.files.items() if path != f"{BOX}/{INDEX}"}, image.folders)


class Surveyor:
    """Opens what power cuts have left of one outbox.

    Args:
        scratch: A folder that is made for each of them, and removed.
        recorder: Makes the disk.
        opener: Makes the outbox.
        images: The bytes of each sample's image.
    """

    def __init__(self, scratch: Path, recorder: Recorder, opener: Opener, images: Mapping[str, bytes]) -> None:
        self._scratch = scratch
        self._recorder = recorder
        self._opener = opener
        self._images = images
        self._settled: set[Kept] = set()  # many states come to the same when they are opened

    def survey(self, image: Image) -> Survey:
        """Lay out an image, open the outbox in it, look at it, close it, open it again, and compare.

        Raises:
            BrokenPromiseError: It does not open, hands out something else than was accepted, miscounts, or changes when
                it is opened again.
        """
        lay(image, self._scratch)
        try:
            disk = self._recorder(self._scratch, image)
            with closing(self._open(disk)) as store:
                steps = tuple(disk.steps)
                view = look(store, self._images)
            first = kept(self._scratch / BOX)
            if first not in self._settled:
                self._open(disk).close()
                second = kept(self._scratch / BOX)
                if first != second:
                    raise BrokenPromiseError("unstable", f"opening it again changed {differences(first, second)}")
                recount(second)
                self._settled.add(second)
        finally:
            shutil.rmtree(self._scratch)
        return Survey(view, steps)

    def _open(self, disk: Disk) -> Store:
        store = self._opener(self._scratch / BOX, disk)
        try:
            store.open()
        except LoopcoreError as exc:
            raise BrokenPromiseError("open", str(exc)) from exc
        return store


def lay(image: Image, folder: Path) -> None:
    """Make the files of an image."""
    root = str(folder)
    os.mkdir(root)  # noqa: PTH102 - this and the next are done some hundred times a second
    for path in image.folders:
        os.mkdir(f"{root}/{path}")  # noqa: PTH102
    for path, data in image.files.items():
        with open(f"{root}/{path}", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(data)
