"""What was done to a disk since the last power cut, what was owed meanwhile, and what another cut may leave."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from msgspec import Struct

from loopcore.cli.torture.promises import Promise
from loopcore.cli.torture.steps import Commit, Step, Sync, SyncFolder
from loopcore.cli.torture.volume import Image, Volume


class _Moment(Struct):
    start: int
    end: int
    during: Promise
    promise: Promise


class State(Struct, frozen=True):
    """What a power cut leaves.

    Attributes:
        step: How many steps were done.
        image: What is on the disk.
        torn: Whether some of what was not synced is there, rather than all or nothing.
    """

    step: int
    image: Image
    torn: bool = False


class Timeline:
    """Follows a disk.

    Args:
        image: What was on it at first.
        promise: What was owed then.
        steps: What is done to it; grows.
    """

    def __init__(self, image: Image, promise: Promise, steps: Sequence[Step]) -> None:
        self._image = image
        self._promise = promise
        self._steps = steps
        self._moments: list[_Moment] = []

    def tell(self, start: int, end: int, during: Promise, promise: Promise) -> None:
        """From `start` to `end` of the steps `during` has held; then `promise` was told."""
        self._moments.append(_Moment(start, end, during, promise))

    def promise_at(self, step: int) -> Promise:
        """What is owed if the power is cut after this many steps."""
        before = self._promise
        for moment in self._moments:
            if step < moment.end:
                return before if step <= moment.start else moment.during
            before = moment.promise
        return before

    def states(self, rng: random.Random, torn: int, share: float = 1.0) -> Iterator[State]:
        """What may be left: after each step everything or nothing of what was not synced, and some of it.

        Args:
            rng: Decides what is torn.
            torn: How many times, at most, if something was not synced that was before the step, or the other way.
            share: After how many of the steps, from 0 to 1.
        """
        volume = Volume(self._image)
        lost, kept = volume.lost(), volume.kept()
        yield State(0, lost)
        before, durable, changed = (0, 0), False, False
        for number, step in enumerate(self._steps, 1):
            volume.apply(step)
            durable |= isinstance(step, Sync | SyncFolder | Commit)
            changed |= not isinstance(step, Sync | SyncFolder)
            if share < 1.0 and rng.random() >= share:
                continue
            lost = volume.lost() if durable else lost
            kept = volume.kept() if changed else kept
            durable = changed = False
            yield State(number, lost)
            yield State(number, kept)
            writes, names = unsynced = volume.unsynced
            if unsynced != before and (writes or names):
                for _ in range(torn if writes else min(torn, names)):
                    yield State(number, volume.torn(rng), torn=True)
            before = unsynced

    def cut(self, rng: random.Random) -> State:
        """What is left if the power is cut during what was done last."""
        step = rng.randint(self._moments[-1].start, len(self._steps))
        volume = Volume(self._image)
        for done in self._steps[:step]:
            volume.apply(done)
        torn = rng.random() < 0.5
        return State(step, volume.torn(rng) if torn else rng.choice((volume.lost, volume.kept))(), torn)
