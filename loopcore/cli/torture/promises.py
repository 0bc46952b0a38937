"""What an outbox owes to those that it has told something, and whether it keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from loopcore.types import Sample, SampleInfo

Place = tuple[str | None, str]
"""A sink and a sample that waits for it; `None` for the sample's being there at all."""


class BrokenPromiseError(Exception):
    """An outbox has broken its word.

    Attributes:
        kind: `lost`, `half`, `again` (sent, though it was acknowledged), `order`, `counts`, `open` (it did not) or
            `unstable` (opening it once more changed something).
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class View(Struct):
    """An outbox as one who asks it sees it.

    Attributes:
        present: The samples in order of arrival, each with its number in the queue.
        waiting: For each sink what it would get, in order.
        rejected: Sinks and samples in `rejected/`.
        drops: How often a sample was dropped, and for which sink (`None`: for all).
        put_aside: How many damaged records were met since ever.
    """

    present: dict[str, int]
    waiting: dict[str, list[Sample]]
    rejected: frozenset[Place]
    drops: Mapping[Place, int]
    put_aside: int

    @property
    def places(self) -> frozenset[Place]:
        waiting = ((sink, sample.info.id) for sink, samples in self.waiting.items() for sample in samples)
        return frozenset([*waiting, *((None, name) for name in self.present)])

    def drops_of(self, place: Place) -> int:
        """How often a drop has ended this place."""
        sink, name = place
        return sum(n for (whose, which), n in self.drops.items() if which == name and {sink, whose} & {None, sink})


class Promise(Struct, frozen=True):
    """What may be found after a power cut.

    Attributes:
        owed: Places that must be there.
        open: Places that may be there or not: a settlement or drop was on its way, or an accept that failed.
        drops: Those of them that are gone only if so many drops are on record.
        infos: What may be known of each sample; the bytes of its image never change.
        order: Each sample's number in the queue.
        unranked: Places whose order is not certain: deferred, or perhaps so.
        rejected: What must be in `rejected/`.
        rejected_open: What may be.
        put_aside: How many records may have been found damaged.
    """

    owed: frozenset[Place] = frozenset()
    open: frozenset[Place] = frozenset()
    drops: Mapping[Place, int] = field(default_factory=dict)
    infos: Mapping[str, tuple[SampleInfo, ...]] = field(default_factory=dict)
    order: Mapping[str, int] = field(default_factory=dict)
    unranked: frozenset[Place] = frozenset()
    rejected: frozenset[Place] = frozenset()
    rejected_open: frozenset[Place] = frozenset()
    put_aside: int = 0

    def until(self, after: Promise) -> Promise:
        """What holds while the work that leads to `after` is being done."""
        owed = self.owed & after.owed
        return Promise(
            owed=owed,
            open=(self.owed | after.owed | self.open | after.open) - owed,
            drops={
                place: n
                for place, n in {**after.drops, **self.drops}.items()
                if place not in owed and (place in self.owed or place in self.drops)
            },
            infos={name: merged_infos(self.infos, after.infos, name) for name in {*self.infos, *after.infos}},
            order={name: seq for name, seq in self.order.items() if after.order.get(name) == seq},
            unranked=self.unranked | after.unranked,
            rejected=self.rejected & after.rejected,
            rejected_open=self.rejected | self.rejected_open | after.rejected | after.rejected_open,
            put_aside=max(self.put_aside, after.put_aside),
        )

    def along(self, places: frozenset[Place], infos: Mapping[str, tuple[SampleInfo, ...]]) -> Promise:
        """The same while these come and perhaps go again."""
        return replace(
            self,
            open=self.open | (places - self.owed),
            infos={name: merged_infos(self.infos, infos, name) for name in {*self.infos, *infos}},
        )

    def without_index(
        self, places: frozenset[Place], infos: Mapping[str, tuple[SampleInfo, ...]], undone: frozenset[Place]
    ) -> Promise:
        """The same if the index is lost: what was delivered may be sent once more, and drops are forgotten.

        Args:
            places: All that there ever were.
            infos: All that was ever known.
            undone: Those which a power cut may end again: by a drop that is forgotten, or by a return to `rejected/`.
        """
        gone = undone | {(None, name) for _, name in undone}
        rejected_open = self.rejected_open | ((places | undone) - self.rejected)
        weaker = replace(self, owed=self.owed - gone, drops={}, order={}, rejected_open=rejected_open)
        return weaker.along(places, infos)

    def check(self, view: View, *, torn: bool = False) -> None:
        """Compare with what is there.

        Args:
            view: What is there.
            torn: Something that was not synced is there in part. Of several records that were written together the
                first may then look damaged, because a later one is whole.

        Raises:
            BrokenPromiseError: The promise is broken.
        """
        there = view.places
        if missing := self.owed - there:
            raise BrokenPromiseError("lost", _named(missing))
        if surplus := there - self.owed - self.open:
            raise BrokenPromiseError("again", _named(surplus))
        for place, count in self.drops.items():
            if place not in there and view.drops_of(place) < count:
                raise BrokenPromiseError("lost", f"{_named([place])}: dropped, and not on record")
        if missing := self.rejected - view.rejected:
            raise BrokenPromiseError("lost", f"{_named(missing)} from rejected/")
        if surplus := view.rejected - self.rejected - self.rejected_open:
            raise BrokenPromiseError("again", f"{_named(surplus)} in rejected/")
        if view.put_aside > self.put_aside and not torn:
            raise BrokenPromiseError("half", "a record was put aside as damaged")
        for sink, samples in view.waiting.items():
            for sample in samples:
                if sample.info not in self.infos[sample.info.id]:
                    raise BrokenPromiseError("half", f"{_named([(sink, sample.info.id)])} is not what was accepted")
            self._check_order(sink, samples)

    def _check_order(self, sink: str, samples: Iterable[Sample]) -> None:
        ranks = []
        for name in (sample.info.id for sample in samples):
            urgencies = {info.urgent for info in self.infos[name]}
            if (sink, name) in self.owed - self.unranked and len(urgencies) == 1 and name in self.order:
                ranks.append((not urgencies.pop(), self.order[name], name))
        if ranks != sorted(ranks):
            raise BrokenPromiseError("order", f"{sink} gets {[name[:8] for _, _, name in ranks]}")


def merged_infos(
    first: Mapping[str, tuple[SampleInfo, ...]], second: Mapping[str, tuple[SampleInfo, ...]], name: str
) -> tuple[SampleInfo, ...]:
    """All that either knows of a sample."""
    known = first.get(name, ())
    return known + tuple(info for info in second.get(name, ()) if info not in known)


def observed(view: View, infos: Mapping[str, tuple[SampleInfo, ...]], unranked: frozenset[Place]) -> Promise:
    """The promise of an outbox that has just been opened: what it shows is there to stay."""
    found = {sample.info.id: (sample.info,) for samples in view.waiting.values() for sample in samples}
    return Promise(
        owed=view.places,
        infos={**infos, **found},
        order=view.present,
        unranked=unranked & view.places,
        rejected=view.rejected,
        put_aside=view.put_aside,
    )


def _named(places: Iterable[Place]) -> str:
    return ", ".join(sorted(f"{name[:8]} for {sink or 'anybody'}" for sink, name in places))
