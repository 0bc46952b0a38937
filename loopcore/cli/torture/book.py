"""The book of what an outbox owes: what it was asked, what it answered, and what follows from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

from loopcore.cli.torture.promises import BrokenPromiseError, Place, Promise, View, merged_infos, observed
from loopcore.cli.torture.world import SINKS, places_of
from loopcore.collect.outbox.turns import Job
from loopcore.errors import OutboxFullError
from loopcore.types import SampleInfo, joined


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

    @property
    def job(self) -> Job:
        """For the store, new each time."""
        return Job(self.run, durable=self.durable, writes=1 if self.accepts or self.requeues else 0)


class Book:
    """Kept from the first day of an outbox, over all power cuts.

    Attributes:
        promise: What is owed now.
        view: What the outbox has shown last.
    """

    def __init__(self) -> None:
        self.promise = Promise()
        self._known: dict[str, tuple[SampleInfo, ...]] = {}
        self._ghosts: dict[str, tuple[SampleInfo, ...]] = {}
        self._half_queued: frozenset[Place] = frozenset()
        self._refused: frozenset[Place] = frozenset()
        self._unranked: frozenset[Place] = frozenset()
        self.view = View(present={}, waiting={}, rejected=frozenset(), drops={}, put_aside=0)

    def open(self, view: View, *, torn: bool) -> None:
        """The outbox was opened and has shown this.

        Args:
            view: What it holds.
            torn: As in `Promise.check`.

        Raises:
            BrokenPromiseError: It holds something else than what is owed.
        """
        self.promise.check(view, torn=torn)
        self.view = view
        self.promise = self._with_ghosts(observed(view, self.promise.infos, self._unranked))

    def turn(self, wishes: Sequence[Wish], jobs: Sequence[Job], view: View, *, torn: bool) -> Promise:
        """These jobs were done, and the outbox has shown this then; `torn` as in `Promise.check`.

        Returns:
            What was owed meanwhile.

        Raises:
            BrokenPromiseError: The outbox has forgotten something.
        """
        before, shown, self.view = self.promise, self.view, view
        good = [wish for wish, job in zip(wishes, jobs, strict=True) if job.error is None]
        bad = [wish for wish, job in zip(wishes, jobs, strict=True) if job.error is not None]
        self._half_queued |= _requeued(bad)
        infos, passing = self._note_infos(before.infos, wishes, jobs)
        fresh = {place: n for place, n in view.drops.items() if n > shown.drops.get(place, 0)}
        self._refused |= view.rejected
        if view.put_aside > shown.put_aside and not torn:
            raise BrokenPromiseError("half", "a record was put aside as damaged, while running")
        self._check_running(before, good, fresh)
        self.promise = self._with_ghosts(self._outcome(before, good, infos))
        self.promise.check(view)
        return before.until(self.promise).along(_came(good), passing)

    def interrupt(self, wishes: Sequence[Wish]) -> None:
        """The process has ended somewhere in this turn: anything of it may have been done."""
        before = self.promise
        for wish in wishes:
            if wish.accepts is not None:
                self._note_ghost(wish.accepts, before.infos)
        self._half_queued |= _requeued(wishes)
        self._unranked |= all_of(wish.unranks for wish in wishes)
        self.promise = self._with_ghosts(self._interrupted(before, wishes))

    def cut(self, promise: Promise) -> None:
        """The power was cut while this was owed."""
        self.promise = promise
        self._ghosts = {}
        self._half_queued = frozenset()
        self._unranked = promise.unranked

    def without_index(self, promise: Promise, *, max_backlog: bool) -> Promise:
        """What is owed of it if the index is lost.

        Args:
            promise: What is owed else.
            max_backlog: Whether places of the sink b may have been given up: its record may not name it then.
        """
        everywhere = all_of(places_of(infos[0]) for infos in self._known.values())
        given_up = frozenset((sink, name) for sink, name in everywhere if sink == "b" and max_backlog)
        return promise.without_index(everywhere, self._known, self._refused | given_up)

    def _interrupted(self, before: Promise, wishes: Sequence[Wish]) -> Promise:
        """Anything that these may do may have been done, and anything may have been dropped, if it is on record."""
        settled = all_of(wish.settles for wish in wishes)
        settled |= {(None, name) for _, name in settled}
        requeued = all_of(wish.requeues for wish in wishes)
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

    def _note_infos(
        self, known: Mapping[str, tuple[SampleInfo, ...]], wishes: Sequence[Wish], jobs: Sequence[Job]
    ) -> tuple[dict[str, tuple[SampleInfo, ...]], dict[str, tuple[SampleInfo, ...]]]:
        """What is known of each sample now, and what was known of some in between."""
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
        settled = all_of(wish.settles for wish in good)
        ended = {name for _, name in (*settled, *fresh)}
        for sink, name in before.owed - there:
            over = name in ended if sink is None else (sink, name) in settled or {(sink, name), (None, name)} & {*fresh}
            if not over:
                raise BrokenPromiseError("lost", f"{name[:8]} for {sink or 'anybody'}, while running")
        came = {wish.accepts.id for wish in good if wish.accepts} | {*self._ghosts}
        came |= {name for _, name in all_of(wish.requeues for wish in good) | self._half_queued}
        for sink, name in there - before.owed - before.open:
            if name not in came:
                raise BrokenPromiseError("again", f"{name[:8]} for {sink or 'anybody'}, while running")

    def _outcome(self, before: Promise, good: Sequence[Wish], infos: Mapping[str, tuple[SampleInfo, ...]]) -> Promise:
        self._unranked |= all_of(wish.unranks for wish in good)
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
        """What was not accepted may turn up; so may what was to come back from `rejected/`, as it was when it went."""
        infos = {**promise.infos}
        for name in {name for _, name in self._half_queued}:
            infos[name] = merged_infos(infos, self._known, name)
        for name in self._ghosts:
            infos[name] = merged_infos(infos, self._ghosts, name)
        places = self._half_queued.union(*(places_of(known[0]) for known in self._ghosts.values()))
        order = {name: seq for name, seq in promise.order.items() if name not in self._ghosts}
        return structs.replace(promise, open=promise.open | (places - promise.owed), infos=infos, order=order)


def all_of(places: Iterable[frozenset[Place]]) -> frozenset[Place]:
    """The union of these."""
    return frozenset[Place]().union(*places)


def _came(wishes: Iterable[Wish]) -> frozenset[Place]:
    return all_of(places_of(wish.accepts) for wish in wishes if wish.accepts)


def _requeued(wishes: Iterable[Wish]) -> frozenset[Place]:
    return all_of(wish.requeues | {(None, name) for _, name in wish.requeues} for wish in wishes)
