"""The campaign of faults: every step of a fixed history fails once, in every way."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path
from time import monotonic

from loopcore.cli.torture.campaign import Finding, Progress, scratch_folder
from loopcore.cli.torture.rig import Rig
from loopcore.cli.torture.trouble import Trouble
from loopcore.cli.torture.world import Rules, World, sample

KINDS = ("open", "write", "sync", "truncate", "sync_folder", "rename", "unlink", "mkdir", "commit")
CODES = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EDQUOT)
_RULES = Rules(segment_bytes=5000, rejected_max_bytes=4000)


def faults(progress: Progress = lambda _: None, kinds: Sequence[str] = KINDS, world: World | None = None) -> Finding:
    """Run the history once for each step that can fail and each error, until it fails nowhere any more.

    Args:
        progress: Is told of rounds.
        kinds: Of steps.
        world: What the outbox is made of.
    """
    begun = monotonic()
    finding = Finding(campaign="failing disk", what="rounds")
    with scratch_folder() as base:
        for kind, code, lasting in product(kinds, CODES, (False, True)):
            folder = base / f"{kind}-{code}-{lasting}"
            folder.mkdir()
            for after in count():
                trouble = Trouble(kind, code, after, lasting)
                if not _strikes(folder / str(after), trouble, world or World(), finding):
                    break
                finding.count += 1
                progress(1)
    finding.seconds = monotonic() - begun
    finding.detail = f"{len(kinds)} kinds of steps, {len(CODES)} errors, each once and from then on"
    return finding


def _strikes(folder: Path, trouble: Trouble, world: World, finding: Finding) -> bool:
    """One round. Whether there was a step to fail."""
    folder.mkdir()
    rig = Rig(folder, world, _RULES)
    with finding.trying(trouble):
        for act in _history(rig):
            rig.disk.trouble = trouble
            act()
        rig.close()
        for state in list(rig.timeline.states(random.Random(0), 1))[-4:]:
            rig.timeline.promise_at(state.step).check(rig.survey(state.image).view, torn=state.torn)
    rig.leave()
    return trouble.struck


def _history(rig: Rig) -> Iterator[Callable[[], object]]:
    """Everything that an outbox does, one turn after the other."""
    yield lambda: rig.turn([rig.accept(*sample(n, size=900)) for n in range(3)])
    yield lambda: rig.turn([rig.accept(*sample(1, size=900, tags=("again",)))])
    yield lambda: rig.turn([rig.accept(*sample(n, size=2500, urgent=n == 4)) for n in (4, 5)])
    for number in (1, 2):
        for lease in rig.lease("a", number):
            yield partial(_settle, rig, "a", lease.id, "delivered")
    for fate in ("rejected", "deferred", "rejected", "delivered"):
        for lease in rig.lease("b", 1):
            yield partial(_settle, rig, "b", lease.id, fate)
    for sink, name in sorted(rig.book.view.rejected):
        yield partial(_retry, rig, str(sink), name)
    yield lambda: rig.turn([rig.accept(*sample(0, size=900, truth=True))])
    yield lambda: rig.turn([rig.accept(*sample(6, size=6000)), rig.swept()])


def _retry(rig: Rig, sink: str, name: str) -> None:
    rig.turn([rig.retried(sink, name)])


def _settle(rig: Rig, sink: str, name: str, fate: str) -> None:
    lease = next(lease for lease in rig.leases[sink] if lease.id == name)
    rig.release(sink, lease)
    wish = {
        "delivered": lambda: rig.delivered(sink, [lease]),
        "rejected": lambda: rig.rejected(sink, lease),
        "deferred": lambda: rig.deferred(sink, lease),
    }[fate]()
    rig.turn([wish])
