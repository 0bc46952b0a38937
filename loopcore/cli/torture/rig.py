"""An outbox at work on a recorded disk, with a book of what it owes at each moment."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from loopcore.cli.torture.promises import BrokenPromiseError, Place, Promise, View, merged_infos, observed
from loopcore.cli.torture.recording import KilledError, RecordingDisk
from loopcore.cli.torture.survey import BOX, Survey, ask, lay, look, survey
from loopcore.cli.torture.volume import Commit, Image, Sync, SyncFolder, Volume
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.terms import Lease, Taker
from loopcore.collect.outbox.turns import Job
from loopcore.config import OutboxTable
from loopcore.errors import OutboxFullError
from loopcore.files import Disk
from loopcore.options import Duration, Size
from loopcore.types import Box, SampleInfo, image_id, joined, sample_id

_NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
SINKS = ("a", "b")
"""The first wants everything, the second what has an even number as its source."""


class Rules(Struct, frozen=True, kw_only=True):
    """How the outbox is configured; bounds as in `[outbox]`, `max_backlog` for the sink b."""

    max_bytes: int = 1 << 20
    max_count: int | None = None
    max_age: float | None = None
    when_full: Literal["reject", "drop_oldest", "drop_least_valuable"] = "reject"
    rejected_max_bytes: int = 1 << 20
    max_backlog: int | None = None
    segment_bytes: int = 4096


class World:
    """What a rig is made of. A test of the campaign itself makes one with a flaw.

    Attributes:
        disk: The disk.
        store: The outbox.
        notes_at_once: Whether a settlement is in the index before the sink's peer is believed.
    """

    disk: type[RecordingDisk] = RecordingDisk
    store: type[Store] = Store
    notes_at_once = True


class Moment(Struct):
    """From `start` to `end` of the steps something was done, while `during` held; then `promise` was told."""

    start: int
    end: int
    during: Promise
    promise: Promise


class Wish(Struct, kw_only=True):
    """A job for a turn, and what it is for the book.

    Attributes:
        run: The job.
        durable: As in `Job`.
        accepts: The sample that it takes in.
        settles: The places that it ends.
        requeues: The places that it makes.
        unranks: The places whose order it changes.
    """

    run: Callable[[], Any]
    durable: bool = False
    accepts: SampleInfo | None = None
    settles: frozenset[Place] = frozenset()
    requeues: frozenset[Place] = frozenset()
    unranks: frozenset[Place] = frozenset()


class Rig:
    """Does things with an outbox, and keeps the book.

    Args:
        scratch: An empty folder.
        world: What it is made of.
        rules: The configuration.

    Attributes:
        rules: The configuration.
        store: The outbox at work.
        disk: What it writes to.
        view: What it holds.
        promise: What it owes.
        images: The bytes of each sample's image.
        leases: What is in hand, by sink.
        cuts: How often the power was cut.
        torn: Whether the last cut left something in part.
    """

    def __init__(self, scratch: Path, world: World, rules: Rules) -> None:
        self.images: dict[str, bytes] = {}
        self.leases: dict[str, list[Lease]] = {}
        self.promise = Promise()
        self.cuts = 0
        self._scratch = scratch
        self._world = world
        self.rules = rules
        self._now, self._up = _NOON, 1000.0
        self._ghosts: dict[str, tuple[SampleInfo, ...]] = {}
        self._settled: set[tuple[Any, ...]] = set()
        self._known: dict[str, tuple[SampleInfo, ...]] = {}
        self._half_queued: frozenset[Place] = frozenset()
        self._refused: frozenset[Place] = frozenset()
        self._unranked: frozenset[Place] = frozenset()
        self._begin(Image({}, ()), Promise())

    def _begin(self, image: Image, promise: Promise, *, torn: bool = False) -> None:
        root = self._scratch / f"epoch-{self.cuts}"
        lay(image, root)
        self._base, self._owed_at_first = image, promise
        self._moments: list[Moment] = []
        self._root = root
        self.disk = self._world.disk(root, image)
        self.torn = torn
        self._open(promise)

    def _open(self, promise: Promise) -> None:
        start = len(self.disk.steps)
        self.leases = {}
        self.store = self.make(self._root / BOX, self.disk)
        self.store.open()
        self.view = look(self.store, self.images)
        promise.check(self.view, torn=self.torn)
        self._tell(start, promise, self._with_ghosts(observed(self.view, promise.infos, self._unranked)))

    def make(self, folder: Path, disk: Disk) -> Store:
        """An outbox of this configuration, not opened."""
        rules = self.rules
        table = OutboxTable(
            max_bytes=Size(rules.max_bytes),
            max_count=rules.max_count,
            max_age=None if rules.max_age is None else Duration(rules.max_age),
            when_full=rules.when_full,
            min_free=Size(0),
            rejected_max_bytes=Size(rules.rejected_max_bytes),
        )
        takers = [Taker(name="a"), Taker(name="b", wants=_even, max_backlog=rules.max_backlog)]
        return self._world.store(
            folder,
            table,
            takers,
            disk=disk,
            now=lambda: self._now,
            uptime=lambda: self._up,
            segment_bytes=rules.segment_bytes,
        )

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
        self._now += timedelta(seconds=seconds)
        self._up += seconds

    def turn(self, wishes: Sequence[Wish]) -> list[Job]:
        """Run a turn, and note what it has promised.

        Raises:
            BrokenPromiseError: The running outbox has forgotten something.
        """
        start, before, shown = len(self.disk.steps), self.promise, self.view
        writes = [1 if wish.accepts or wish.requeues else 0 for wish in wishes]
        jobs = [
            Job(wish.run, durable=wish.durable and self._world.notes_at_once, writes=size)
            for wish, size in zip(wishes, writes, strict=True)
        ]
        self.store.turn(jobs)
        self.disk.trouble = lambda _: None
        end = len(self.disk.steps)
        self.view = self._look()
        good = [wish for wish, job in zip(wishes, jobs, strict=True) if job.error is None]
        self._half_queued |= _all(
            wish.requeues | {(None, name) for _, name in wish.requeues}
            for wish, job in zip(wishes, jobs, strict=True)
            if job.error is not None
        )
        infos, passing = self._note_infos(before.infos, wishes, jobs)
        fresh = {place: n for place, n in self.view.drops.items() if n > shown.drops.get(place, 0)}
        self._refused |= self.view.rejected
        self._check_running(before, good, fresh)
        self.promise = self._with_ghosts(self._outcome(before, good, infos))
        during = before.until(self.promise).along(_came(good), passing)
        self._moments.append(Moment(start, end, during, self.promise))
        self.promise.check(self.view)
        return jobs

    def kill(self, wishes: Sequence[Wish], after: int) -> None:
        """Run a turn, kill the process after so many steps of it, and start it again."""
        start, before = len(self.disk.steps), self.promise
        countdown = iter(range(after))

        def ended(_: str) -> None:
            if next(countdown, None) is None:
                raise KilledError

        self.disk.trouble = ended
        with suppress(KilledError):
            self.store.turn([Job(wish.run, durable=wish.durable) for wish in wishes])
        countdown = iter(())
        with suppress(KilledError):
            self.store.close()
        self.disk.trouble = lambda _: None
        for wish in wishes:
            if wish.accepts is not None:
                self._note_ghost(wish.accepts, before.infos)
        self._half_queued |= _all(wish.requeues | {(None, name) for _, name in wish.requeues} for wish in wishes)
        self._unranked |= _all(wish.unranks for wish in wishes)
        during = self._with_ghosts(self._interrupted(before, wishes))
        self._moments.append(Moment(start, len(self.disk.steps), during, during))
        self._open(during)

    def _interrupted(self, before: Promise, wishes: Sequence[Wish]) -> Promise:
        """Anything that these may do may have been done, and anything may have been dropped, if it is on record."""
        settled = _all(wish.settles for wish in wishes)
        settled |= {(None, name) for _, name in settled}
        requeued = _all(wish.requeues for wish in wishes)
        trimmed = before.rejected if settled else requeued
        again = {wish.accepts.id for wish in wishes if wish.accepts is not None}
        noted = {place: self.view.drops_of(place) + 1 for place in before.owed - settled}
        return structs.replace(
            before,
            owed=frozenset(),
            open=before.owed | before.open,
            drops={**noted, **before.drops},
            order={name: seq for name, seq in before.order.items() if name not in again},
            unranked=self._unranked,
            rejected=before.rejected - trimmed,
            rejected_open=before.rejected_open | trimmed | settled,
        )

    def _look(self) -> View:
        """With what is in hand."""
        for sink, leases in self.leases.items():
            self.store.leases.release(sink, leases)
        view = look(self.store, self.images)
        for sink, leases in self.leases.items():
            self.store.leases.take(sink, leases)
        self.store.leases.confirm()
        return view

    def _note_infos(
        self, known: Mapping[str, tuple[SampleInfo, ...]], wishes: Sequence[Wish], jobs: Sequence[Job]
    ) -> tuple[dict[str, tuple[SampleInfo, ...]], dict[str, tuple[SampleInfo, ...]]]:
        infos = dict(known)
        passing: dict[str, tuple[SampleInfo, ...]] = {}
        for wish, job in zip(wishes, jobs, strict=True):
            if wish.accepts is None:
                continue
            name = wish.accepts.id
            if job.error is None:
                info, _ = job.result
                if (info,) != infos.get(name):
                    self._unranked -= {(sink, name) for sink in SINKS}
                infos[name] = (info,)
                self._known[name] = (*self._known.get(name, ()), info)
                passing[name] = (*passing.get(name, ()), info)
            elif not isinstance(job.error, OutboxFullError):
                self._note_ghost(wish.accepts, infos)
        return infos, passing

    def _note_ghost(self, info: SampleInfo, infos: Mapping[str, tuple[SampleInfo, ...]]) -> None:
        """It was not accepted, but may turn up."""
        ghosts = self._ghosts.get(info.id, ())
        merged = [joined(old, info) for old in (*infos.get(info.id, ()), *ghosts)]
        self._ghosts[info.id] = (*ghosts, info, *merged)
        self._known[info.id] = (*self._known.get(info.id, ()), info, *merged)

    def _check_running(self, before: Promise, good: Sequence[Wish], fresh: Mapping[Place, int]) -> None:
        there = self.view.places
        settled = _all(wish.settles for wish in good)
        ended = {name for _, name in (*settled, *fresh)}
        for sink, name in before.owed - there:
            over = name in ended if sink is None else (sink, name) in settled or {(sink, name), (None, name)} & {*fresh}
            if not over:
                raise BrokenPromiseError("lost", f"{name[:8]} for {sink or 'anybody'}, while running")
        came = {wish.accepts.id for wish in good if wish.accepts} | {*self._ghosts}
        came |= {name for _, name in _all(wish.requeues for wish in good) | self._half_queued}
        for sink, name in there - before.owed - before.open:
            if name not in came:
                raise BrokenPromiseError("again", f"{name[:8]} for {sink or 'anybody'}, while running")

    def _outcome(self, before: Promise, good: Sequence[Wish], infos: Mapping[str, tuple[SampleInfo, ...]]) -> Promise:
        self._unranked |= _all(wish.unranks for wish in good)
        view, owed = self.view, self.view.places
        certain = observed(view, infos, self._unranked)
        if any(wish.durable for wish in good):
            return certain
        came = _came(good)  # and perhaps went again at once, by a drop
        gone = (before.owed | before.open | came) - owed
        new = frozenset(place for place in came if (None, place[1]) not in before.owed | before.open)
        noted = {place: view.drops_of(place) for place in (before.owed | new) - owed}
        return structs.replace(
            certain,
            open=gone,
            drops={**{place: n for place, n in before.drops.items() if place in gone}, **noted},
            rejected_open=(before.rejected | before.rejected_open) - view.rejected,
        )

    def _with_ghosts(self, promise: Promise) -> Promise:
        """What was not accepted may turn up."""
        places = self._half_queued.union(*(_wanted(infos[0]) for infos in self._ghosts.values()))
        infos = {name: merged_infos(promise.infos, self._ghosts, name) for name in {*promise.infos, *self._ghosts}}
        order = {name: seq for name, seq in promise.order.items() if name not in self._ghosts}
        return structs.replace(promise, open=promise.open | (places - promise.owed), infos=infos, order=order)

    def _tell(self, start: int, before: Promise, promise: Promise) -> None:
        self.promise = promise
        self._moments.append(Moment(start, len(self.disk.steps), before.until(promise), promise))

    # and how it ends

    def close(self) -> None:
        """Close the outbox in order."""
        self.store.close()
        self._tell(self._moments[-1].end, self.promise, self.promise)

    def restart(self) -> None:
        """Close and open."""
        self.close()
        self._open(self.promise)

    def cut(self, rng: random.Random, *, lose_index: bool = False) -> None:
        """Cut the power during what was done last, and go on from what is left, perhaps without the index."""
        last = self._moments[-1]
        step = rng.randint(last.start, len(self.disk.steps))
        volume = Volume(self._base)
        for done in self.disk.steps[:step]:
            volume.apply(done)
        torn = rng.random() < 0.5
        image = volume.torn(rng) if torn else rng.choice((volume.lost, volume.kept))()
        promise = self.promise_at(step)
        if lose_index:
            image = Image(
                {path: data for path, data in image.files.items() if path != f"{BOX}/index.db"}, image.folders
            )
            everywhere = _all(_wanted(infos[0]) for infos in self._known.values())
            undone = self._refused
            if self.rules.max_backlog is not None:  # a record may not name b because its place was given up with it
                undone |= {(sink, name) for sink, name in everywhere if sink == "b"}
            promise = promise.without_index(everywhere, self._known, undone)
        self.leave()
        self.cuts += 1
        self._ghosts = {}
        self._half_queued = frozenset()
        self._unranked = promise.unranked
        self._begin(image, promise, torn=torn)

    def leave(self) -> None:
        """End the process, without a trace on the disk that counts."""
        self.store.close()
        self.disk.abandon()
        shutil.rmtree(self._root)

    def promise_at(self, step: int) -> Promise:
        """What is owed if the power is cut after this many steps."""
        before = self._owed_at_first
        for moment in self._moments:
            if step < moment.end:
                return before if step <= moment.start else moment.during
            before = moment.promise
        return before

    def states(self, rng: random.Random, torn: int) -> Iterator[tuple[int, Image, bool]]:
        """What power cuts since the last may leave: after each step everything or nothing of what was not synced, and
        up to so many times some of it. The number tells how many steps were done, the flag whether it is some.
        """
        volume = Volume(self._base)
        lost = kept = volume.lost()
        yield 0, lost, False
        before = (0, 0)
        for number, step in enumerate(self.disk.steps, 1):
            volume.apply(step)
            durable = isinstance(step, Sync | SyncFolder | Commit)
            lost = volume.lost() if durable else lost
            kept = volume.kept() if not durable or isinstance(step, Commit) else kept
            yield number, lost, False
            yield number, kept, False
            writes, names = unsynced = volume.unsynced
            if unsynced != before and (writes or names):
                for _ in range(torn if writes else min(torn, names)):
                    yield number, volume.torn(rng), True
            before = unsynced

    def survey(self, image: Image) -> Survey:
        """Open what is left."""
        return survey(image, self._scratch / "survey", self.make, self.images, self._settled)


def sample(
    number: int,
    *,
    size: int,
    tags: tuple[str, ...] = (),
    truth: bool | None = None,
    urgent: bool = False,
) -> tuple[SampleInfo, bytes]:
    """A sample: the same number and size, the same image and id; annotated with a box (`truth`) or with nothing."""
    image = random.Random(number).randbytes(size)
    digest = image_id(image)
    boxes = (Box(label="p", x=1, y=1, width=1, height=1),) if truth else ()
    info = SampleInfo(
        id=sample_id(digest, None, None),
        image_id=digest,
        media="image/jpeg",
        image_bytes=size,
        width=1,
        height=1,
        kept=_NOON,
        source=str(number),
        tags=tags,
        annotations=None if truth is None else boxes,
        urgent=urgent,
    )
    return info, image


def _even(info: SampleInfo) -> bool:
    return int(info.source or 0) % 2 == 0


def _came(wishes: Iterable[Wish]) -> frozenset[Place]:
    return _all(_wanted(wish.accepts) for wish in wishes if wish.accepts)


def _wanted(info: SampleInfo) -> frozenset[Place]:
    sinks = SINKS if _even(info) else SINKS[:1]
    return frozenset([(None, info.id), *((sink, info.id) for sink in sinks)])


def _all(places: Iterable[frozenset[Place]]) -> frozenset[Place]:
    return frozenset[Place]().union(*places)
