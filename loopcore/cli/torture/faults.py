"""The campaign of faults: every step of a fixed history fails once, in every way; and bits flip in what is stored."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

from loopcore.cli.torture.campaign import Finding, Progress, scratch_folder
from loopcore.cli.torture.promises import BrokenPromiseError, View
from loopcore.cli.torture.recording import Trouble
from loopcore.cli.torture.rig import Rig, Rules, World, sample
from loopcore.cli.torture.survey import BOX, lay, look
from loopcore.cli.torture.volume import Image
from loopcore.collect.outbox.records import Found, scan
from loopcore.files import DISK

KINDS = ("open", "write", "sync", "truncate", "sync_folder", "rename", "unlink", "mkdir", "commit")
CODES = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EDQUOT)
FLIPS = 400
_RULES = Rules(segment_bytes=5000, rejected_max_bytes=4000)


def faults(number: int, progress: Progress = lambda _: None) -> Finding:
    """Run the history once for each step that can fail and each error, until it fails nowhere any more.

    Args:
        number: The seed.
        progress: Is told of rounds.
    """
    begun = monotonic()
    finding = Finding(campaign="failing disk", what="rounds")
    with scratch_folder() as base:
        for kind, code, lasting in ((kind, code, last) for kind in KINDS for code in CODES for last in (False, True)):
            for after in _until_done(partial(_fail, base, kind, code, lasting, number, finding)):
                finding.count += after
                progress(after)
    finding.seconds = monotonic() - begun
    finding.detail = f"{len(KINDS)} kinds of steps, {len(CODES)} errors, each once and from then on"
    return finding


def _until_done(run: Callable[[int], bool]) -> Iterator[int]:
    after = 0
    while run(after):
        yield 1
        after += 1


def _fail(base: Path, kind: str, code: int, lasting: bool, number: int, finding: Finding, after: int) -> bool:
    """One round. Whether there was a step to fail."""
    folder = base / f"{kind}-{code}-{lasting}-{after}"
    folder.mkdir()
    trouble = Trouble(kind, code, after, lasting)
    rig = Rig(folder, World(), _RULES)
    try:
        for act in _history(rig):
            rig.disk.trouble = trouble
            act()
        rig.close()
        states = list(rig.states(random.Random(number), 1))
        for step, image, torn in states[-4:]:
            rig.promise_at(step).check(rig.survey(image).view, torn=torn)
    except BrokenPromiseError as exc:
        finding.note(exc.kind, f"{trouble}: {exc}")
    finally:
        rig.leave()
    return trouble.struck


def _history(rig: Rig) -> Iterator[Callable[[], object]]:
    """Everything that an outbox does, one turn after the other."""
    yield lambda: rig.turn([rig.accept(*sample(n, size=900)) for n in range(3)])
    yield lambda: rig.turn([rig.accept(*sample(1, size=900, tags=("again",)))])
    yield lambda: rig.turn([rig.accept(*sample(n, size=2500, urgent=n == 4)) for n in (4, 5)])
    for count in (1, 2):
        for lease in rig.lease("a", count):
            yield partial(_settle, rig, "a", lease.id, "delivered")
    for fate in ("rejected", "deferred", "rejected", "delivered"):
        for lease in rig.lease("b", 1):
            yield partial(_settle, rig, "b", lease.id, fate)
    for sink, name in sorted(rig.view.rejected):
        yield partial(_turn, rig, sink, name)
    yield lambda: rig.turn([rig.accept(*sample(0, size=900, truth=True))])
    yield lambda: rig.turn([rig.accept(*sample(6, size=6000)), rig.swept()])


def _turn(rig: Rig, sink: str | None, name: str) -> None:
    rig.turn([rig.retried(str(sink), name)])


def _settle(rig: Rig, sink: str, name: str, fate: str) -> None:
    lease = next(lease for lease in rig.leases[sink] if lease.id == name)
    rig.release(sink, lease)
    wish = {
        "delivered": lambda: rig.delivered(sink, [lease]),
        "rejected": lambda: rig.rejected(sink, lease),
        "deferred": lambda: rig.deferred(sink, lease),
    }[fate]()
    rig.turn([wish])


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
        *_, (_, image, _) = rig.states(rng, 0)
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
                del files[f"{BOX}/index.db"]
            try:
                _check_flip(rig, base / f"flip-{turn}", Image(files, image.folders), hurt, noticed=noticed)
            except BrokenPromiseError as exc:
                finding.note(exc.kind, f"a bit of {path} at {offset}: {exc}")
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
        look(store, rig.images, damage=True)
        view: View = look(store, rig.images)  # what was damaged is out of the way by now
    finally:
        store.close()
    if missing := {place for place in rig.promise.owed - view.places if place[1] != hurt}:
        raise BrokenPromiseError("lost", f"{len(missing)} places of others are gone")
    if {name for _, name in view.places} & {hurt}:
        raise BrokenPromiseError("half", "the damage was not noticed")
    if noticed and not view.put_aside:
        raise BrokenPromiseError("lost", "what was damaged was not put aside")
