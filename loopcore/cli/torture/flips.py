"""The campaign of bits: what is stored changes by one bit, anywhere; it is noticed, and costs one sample."""

from __future__ import annotations

import random
from pathlib import Path
from time import monotonic

from loopcore.cli.torture.campaign import Finding, Progress, scratch_folder
from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.cli.torture.recount import INDEX
from loopcore.cli.torture.rig import Rig
from loopcore.cli.torture.survey import BOX, lay, look
from loopcore.cli.torture.volume import Image
from loopcore.cli.torture.world import Rules, World, sample
from loopcore.collect.outbox.records import Found, scan
from loopcore.files import DISK

FLIPS = 400
_RULES = Rules(segment_bytes=5000)


def flips(number: int, progress: Progress = lambda _: None) -> Finding:
    """Flip one bit of a record, open, and see that it was noticed and that all others are there.

    Args:
        number: The seed.
        progress: Is told of rounds.
    """
    begun, rng = monotonic(), random.Random(number)
    finding = Finding(campaign="flipped bits", what="rounds")
    with scratch_folder() as base:
        rig = Rig(base, World(), _RULES)
        for start in range(0, 9, 3):
            rig.turn([rig.accept(*sample(n, size=300 * n + 40)) for n in range(start, start + 3)])
        rig.close()
        *_, last = rig.timeline.states(rng, 0)
        image = last.image
        paths = sorted(path for path in image.files if path.endswith(".seg"))
        records = {path: _records(base / "record", image.files[path]) for path in paths}
        for turn in range(FLIPS):
            path = rng.choice(paths)
            offset = rng.randrange(len(image.files[path]))
            _, end, hurt = next(record for record in records[path] if record[0] <= offset < record[1])
            data = bytearray(image.files[path])
            data[offset] ^= 1 << rng.randrange(8)
            files = {**image.files, path: bytes(data)}
            noticed = True
            if turn % 2:  # without the index the end of a segment may as well be what a power cut has torn
                noticed = end != len(data)
                del files[f"{BOX}/{INDEX}"]
            with finding.trying(f"a bit of {path} at {offset}"):
                _check_flip(rig, base / f"flip-{turn}", Image(files, image.folders), hurt, noticed=noticed)
            finding.count += 1
            progress(1)
        rig.leave()
    finding.seconds = monotonic() - begun
    finding.detail = "in every part of a record, with the index and without"
    return finding


def _records(path: Path, data: bytes) -> list[tuple[int, int, str]]:
    path.write_bytes(data)
    return [
        (found.offset, found.offset + found.length, found.entry.info.id)
        for found in scan(path)
        if isinstance(found, Found)
    ]


def _check_flip(rig: Rig, folder: Path, image: Image, hurt: str, *, noticed: bool) -> None:
    lay(image, folder)
    store = rig.make(folder / BOX, DISK)
    store.open()
    try:
        view = look(store, rig.images)
    finally:
        store.close()
    if missing := {place for place in rig.book.promise.owed - view.places if place[1] != hurt}:
        raise BrokenPromiseError("lost", f"{len(missing)} places of others are gone")
    if {name for _, name in view.places} & {hurt}:
        raise BrokenPromiseError("half", "the damage was not noticed")
    if noticed and not view.put_aside:
        raise BrokenPromiseError("lost", "what was damaged was not put aside")
