"""An outbox at work on a recorded disk, with a book of what it owes, through power cuts and kills."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from loopcore.cli.torture.book import Book, Wish
from loopcore.cli.torture.promises import BrokenPromiseError, Promise, View
from loopcore.cli.torture.survey import BOX, Survey, Surveyor, ask, lay, look, without_index
from loopcore.cli.torture.timeline import Timeline
from loopcore.cli.torture.trouble import Kill, KilledError, Trouble, no_trouble
from loopcore.cli.torture.volume import Image
from loopcore.cli.torture.world import SINKS, Clock, Rules, World
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.terms import Lease, Listed
from loopcore.collect.outbox.turns import Job
from loopcore.errors import LoopcoreError
from loopcore.files import Disk
from loopcore.types import SampleInfo


class Rig:
    """Does things with an outbox, and sees that it keeps its word.

    Args:
        scratch: An empty folder.
        world: What it is made of.
        rules: The configuration.

    Attributes:
        rules: The configuration.
        store: The outbox at work.
        disk: What it writes to.
        book: What it owes.
        timeline: What was done since the last power cut.
        images: The bytes of each sample's image.
        leases: What is in hand, by sink.
        cuts: How often the power was cut.
        torn: Whether a cut has left something in part, which may be met much later.
    """

    def __init__(self, scratch: Path, world: World, rules: Rules) -> None:
        self.rules = rules
        self.book = Book()
        self.images: dict[str, bytes] = {}
        self.cuts = 0
        self.torn = False
        self._scratch = scratch
        self._world = world
        self._clock = Clock()
        self._surveyor = Surveyor(scratch / "survey", world.disk, self.make, self.images)
        self._begin(Image({}, ()))

    def _begin(self, image: Image) -> None:
        self._root = self._scratch / f"epoch-{self.cuts}"
        lay(image, self._root)
        self.disk = self._world.disk(self._root, image)
        self.timeline = Timeline(image, self.book.promise, self.disk.steps)
        self._open()

    def _open(self) -> None:
        start, before = len(self.disk.steps), self.book.promise
        self.leases: dict[str, list[Lease]] = {}
        self.store = self.make(self._root / BOX, self.disk)
        self.store.open()
        self.book.open(look(self.store, self.images), torn=self.torn)
        self.timeline.tell(start, len(self.disk.steps), before.until(self.book.promise), self.book.promise)

    def make(self, folder: Path, disk: Disk) -> Store:
        """An outbox of this configuration, not opened."""
        return self._world.outbox(folder, disk, self.rules, self._clock)

    # what can be done

    def accept(self, info: SampleInfo, image: bytes) -> Wish:
        self.images[info.id] = image
        return Wish(run=lambda: self.store.accepting.accept(info, image), accepts=info)

    def delivered(self, sink: str, leases: Sequence[Lease]) -> Wish:
        places = frozenset((sink, lease.id) for lease in leases)
        return Wish(run=lambda: self.store.sending.delivered(sink, leases), durable=True, settles=places)

    def rejected(self, sink: str, lease: Lease) -> Wish:
        return Wish(
            run=lambda: self.store.sending.rejected(sink, lease, "refused"),
            durable=True,
            settles=frozenset([(sink, lease.id)]),
        )

    def deferred(self, sink: str, lease: Lease) -> Wish:
        return Wish(run=lambda: self.store.sending.defer(sink, lease), unranks=frozenset([(sink, lease.id)]))

    def retried(self, sink: str, sample: str) -> Wish:
        return Wish(run=lambda: self.store.desk.retry(sink, sample), durable=True, requeues=frozenset([(sink, sample)]))

    def swept(self) -> Wish:
        return Wish(run=lambda: self.store.desk.sweep(), durable=True)

    def forgotten(self, sink: str) -> Wish:
        places = frozenset(place for place in self.book.view.places if place[0] == sink)
        return Wish(run=lambda: self.store.desk.forget(sink), durable=True, settles=places)

    def moved_out(self, listed: Sequence[Listed], sink: str | None) -> Wish:
        lines = [(one.seq, one.revision, one.id) for one in listed]
        sinks = SINKS if sink is None else (sink,)
        places = frozenset((sink, one.id) for one in listed for sink in sinks)
        return Wish(run=lambda: self.store.desk.move_out(lines, sink), durable=True, settles=places)

    def listed(self, sink: str | None) -> Sequence[Listed]:
        """What is there, or waits for a sink."""
        return ask(self.store, lambda: self.store.desk.list(0, 100, sink))

    def lease(self, sink: str, count: int) -> list[Lease]:
        """Take some in hand."""
        leases, _ = ask(self.store, partial(self.store.sending.lease, sink, count, 1 << 60))
        self.leases.setdefault(sink, []).extend(leases)
        return leases

    def release(self, sink: str, lease: Lease) -> None:
        """Give one back."""
        self.leases[sink].remove(lease)
        self.store.leases.release(sink, [lease])

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self._clock.passes(seconds)

    def turn(self, wishes: Sequence[Wish]) -> list[Job]:
        """Run a turn, and note what it has promised.

        Raises:
            BrokenPromiseError: The running outbox has forgotten something.
        """
        start = len(self.disk.steps)
        jobs = [wish.job for wish in wishes]
        self.store.turn(jobs)
        self.disk.trouble = no_trouble
        end = len(self.disk.steps)
        during = self.book.turn(wishes, jobs, self._look(), torn=self.torn)
        self.timeline.tell(start, end, during, self.book.promise)
        return jobs

    def kill(self, wishes: Sequence[Wish], kill: Kill) -> None:
        """Run a turn, kill the process somewhere in it, and start it again."""
        start = len(self.disk.steps)
        self.disk.trouble = kill
        with suppress(KilledError):
            self.store.turn([wish.job for wish in wishes])
        self.disk.trouble = Kill(0)
        with suppress(KilledError):
            self.store.close()
        self.disk.trouble = no_trouble
        self.book.interrupt(wishes)
        self.timeline.tell(start, len(self.disk.steps), self.book.promise, self.book.promise)
        self._open()

    def _look(self) -> View:
        """With what is in hand."""
        for sink, leases in self.leases.items():
            self.store.leases.release(sink, leases)
        view = look(self.store, self.images)
        for sink, leases in self.leases.items():
            self.store.leases.take(sink, leases)
        self.store.leases.confirm()
        if wrong := ask(self.store, lambda: self.store.checking.index(mend=False)):
            raise BrokenPromiseError("counts", "; ".join(wrong))
        return view

    # and how it ends

    def close(self) -> None:
        """Close the outbox in order."""
        start = len(self.disk.steps)
        self.store.close()
        self.timeline.tell(start, len(self.disk.steps), self.book.promise, self.book.promise)

    def restart(self, trouble: Trouble | Kill | None) -> None:
        """Close and open; if there is trouble with that, open once more without."""
        self.close()
        if trouble is not None:
            start = len(self.disk.steps)
            self.disk.trouble = trouble
            with suppress(LoopcoreError, KilledError):
                store = self.make(self._root / BOX, self.disk)
                store.open()
                store.close()
            self.disk.trouble = no_trouble
            self.disk.abandon()
            self.timeline.tell(start, len(self.disk.steps), self.book.promise, self.book.promise)
        self._open()

    def cut(self, rng: random.Random, *, lose_index: bool = False) -> None:
        """Cut the power during what was done last, and go on from what is left, perhaps without the index."""
        state = self.timeline.cut(rng)
        image, promise = state.image, self.timeline.promise_at(state.step)
        if lose_index:
            image, promise = without_index(image), self.promise_without_index(promise)
        self.leave()
        self.cuts += 1
        self.torn |= state.torn
        self.book.cut(promise)
        self._begin(image)

    def promise_without_index(self, promise: Promise) -> Promise:
        """What is owed of this if the index is lost, too."""
        return self.book.without_index(promise, max_backlog=self.rules.max_backlog is not None)

    def leave(self) -> None:
        """End the process, without a trace on the disk that counts."""
        self.store.close()
        self.disk.abandon()
        shutil.rmtree(self._root)

    def survey(self, image: Image) -> Survey:
        """Open what a power cut has left."""
        return self._surveyor.survey(image)
