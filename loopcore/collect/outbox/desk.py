"""What a person asks of an outbox: what is in it, what was lost, back with this, away with that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from loopcore.collect.outbox.accepting import Accepting
from loopcore.collect.outbox.checking import Checking
from loopcore.collect.outbox.clock import AgeClock
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.reader import Reader
from loopcore.collect.outbox.records import DamagedError
from loopcore.collect.outbox.rejects import Refusal, Rejects
from loopcore.collect.outbox.room import Room
from loopcore.collect.outbox.rows import Row, SinkRow
from loopcore.collect.outbox.segments import Segments
from loopcore.collect.outbox.terms import Listed, Taker
from loopcore.errors import StorageError
from loopcore.types import Sample

_CHUNK = 500


class Desk:
    """Answers and acts inside a turn of the store; the methods are those of `Outbox`.

    Args:
        index: The index.
        segments: The segments.
        reader: Reads samples.
        accepting: Takes rejected samples back.
        rejects: The folder of refusals.
        checking: Notices what a person has removed.
        room: Drops what is too old and compacts.
        clock: The outbox's age.
        takers: The sinks of the TOML.
        afterwards: Puts off work until the turn is committed.
    """

    def __init__(
        self,
        index: Index,
        segments: Segments,
        reader: Reader,
        accepting: Accepting,
        rejects: Rejects,
        checking: Checking,
        room: Room,
        clock: AgeClock,
        takers: Mapping[str, Taker],
        afterwards: Callable[[Callable[[], None]], None],
    ) -> None:
        self._index = index
        self._segments = segments
        self._reader = reader
        self._accepting = accepting
        self._rejects = rejects
        self._checking = checking
        self._room = room
        self._clock = clock
        self._takers = takers
        self._afterwards = afterwards

    def status(self) -> dict[str, Any]:
        index, age = self._index, self._clock.read()
        refused = index.rejected_totals()
        fullest = max(index.sinks.values(), key=lambda sink: sink.bytes, default=None)
        prefix = "dropped:"
        return {
            "count": index.state.count,
            "bytes": index.state.bytes,
            "disk_bytes": index.disk_bytes,
            "oldest_s": _wait(index.oldest(), age),
            "sinks": {
                name: self._sink_status(sink, refused.get(name, (0, 0))[0], age)
                for name, sink in sorted(index.sinks.items())
            },
            "drops": {n.removeprefix(prefix): v for n, v in sorted(index.counters.items()) if n.startswith(prefix)},
            "quarantined": index.counters.get("quarantined", 0),
            "operator_deleted": index.counters.get("operator_deleted", 0),
            "moved_out": index.counters.get("moved_out", 0),
            "rejected_bytes": sum(size for _, size in refused.values()),
            "fills": fullest.name if fullest and fullest.waiting else None,
        }

    def _sink_status(self, sink: SinkRow, refused: int, age: float) -> dict[str, Any]:
        first = self._index.first_place(sink.name)
        return {
            "configured": sink.name in self._takers,
            "waiting": sink.waiting,
            "bytes": sink.bytes,
            "deferred": self._index.deferred(sink.name),
            "oldest_s": _wait(self._index.at(first), age) if first is not None else None,
            "delivered": sink.delivered,
            "rejected": sink.rejected,
            "given_up": sink.given_up,
            "in_rejected": refused,
        }

    def list(self, after: int, limit: int, sink: str | None = None) -> Sequence[Listed]:
        age = self._clock.read()
        rows = self._index.behind(after, limit) if sink is None else self._waiting(sink, after, limit)
        return [self._listed(row, age) for row in rows]

    def locate(self, sample: str) -> Listed | None:
        row = self._index.find(bytes.fromhex(sample))
        return self._listed(row, self._clock.read()) if row else None

    def last(self) -> int:
        return self._index.state.next_seq - 1

    def _listed(self, row: Row, age: float) -> Listed:
        return Listed(
            seq=row.seq,
            id=row.id.hex(),
            revision=row.revision,
            place=row.place,
            image_bytes=row.image_bytes,
            urgent=bool(row.urgent),
            age_s=max(0.0, age - row.aged),
            sinks=tuple(sorted(name for name, _ in self._index.places(row.seq))),
        )

    def _waiting(self, sink: str, after: int, limit: int) -> Iterable[Row]:
        known = self._index.sinks.get(sink)
        if known is None:
            return []
        rows = self._index.look(
            "SELECT s.* FROM samples s JOIN todo t USING (seq) WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?",
            known.sink,
            after,
            limit,
        )
        return [Row.of(row) for row in rows]

    def find(self, prefix: str) -> Sequence[str]:
        """Up to ten ids that begin so, of samples that wait here or lie in `rejected/`."""
        low, high = prefix.ljust(64, "0"), prefix.ljust(64, "f")
        found = self._index.look(
            "SELECT id FROM samples WHERE id BETWEEN ?1 AND ?2 UNION SELECT id FROM rejected WHERE id BETWEEN ?1 AND ?2"
            " LIMIT 10",
            bytes.fromhex(low),
            bytes.fromhex(high),
        )
        return [id_.hex() for (id_,) in found]

    def list_rejected(self, sink: str | None) -> Sequence[dict[str, Any]]:
        return [
            {"sink": name, "id": id_.hex(), "why": why, "bytes": size, "at": at}
            for name, _, id_, size, at, why in self._index.rejected(sink)
        ]

    def list_drops(self) -> Sequence[dict[str, Any]]:
        return [
            {"id": id_.hex(), "sink": sink, "rule": rule, "bytes": size, "at": at}
            for id_, sink, rule, size, at in self._index.drops()
        ]

    def show(self, sample: str) -> Sample | None:
        row = self._index.find(bytes.fromhex(sample))
        return self._reader.checked(row) if row else None

    def retry(self, sink: str, sample: str) -> int:
        moved = 0
        for name, seq, found, *_ in self._index.rejected(sink):
            if found.hex() != sample:
                continue
            try:
                refusal, image = self._rejects.read(name, seq)
            except StorageError:
                if self._rejects.whole(name, seq):
                    raise
                self._index.count_up("operator_deleted")
            except DamagedError:
                self._rejects.put_aside(name, seq)
                self._index.count_up("quarantined")
            else:
                if name not in self._index.sinks:
                    self._index.add_sink(name)
                self._accepting.readmit(refusal.info, image, name)
                moved += 1
            self._index.forget_rejected(name, seq)
            self._afterwards(lambda name=name, seq=seq: self._rejects.remove(name, seq))  # type: ignore[misc]
        return moved

    def show_rejected(self, sample: str) -> Sequence[tuple[Refusal, bytes]]:
        """Who has refused this sample, and why; what cannot be read is left out."""
        found = []
        for name, seq, id_, *_ in self._index.rejected():
            if id_.hex() == sample:
                with suppress(StorageError, DamagedError):
                    found.append(self._rejects.read(name, seq))
        return found

    def move_out(self, listed: Sequence[tuple[int, int, str]], sink: str | None) -> int:
        """Take out samples that are safe elsewhere, unless they have changed; of one sink only its places."""
        gone = 0
        for seq, revision, id_ in listed:
            row = self._index.at(seq)
            if row is None or row.revision != revision or row.id.hex() != id_:
                continue
            if sink is not None and not self._index.leave(seq, sink):
                continue
            if sink is None or not self._index.waited_for(seq):
                self._index.remove(row)
            gone += 1
        self._index.count_up("moved_out", gone)
        return gone

    def outlook(self, name: str) -> Mapping[str, int] | None:
        """What `forget` would do: `places` given up, samples that `leave`, and what stays in `rejected`."""
        sink = self._index.sinks.get(name)
        if sink is None:
            return None
        alone = "NOT EXISTS (SELECT 1 FROM todo o WHERE o.seq = t.seq AND o.sink <> t.sink)"
        ((leave,),) = self._index.look(f"SELECT count(*) FROM todo t WHERE sink = ? AND {alone}", sink.sink)  # noqa: S608
        return {
            "places": sink.waiting,
            "leave": int(leave),
            "rejected": self._index.rejected_totals().get(name, (0, 0))[0],
        }

    def forget(self, name: str) -> int:
        """Give up some of the places of a sink, and return how many; the last call removes the sink."""
        sink = self._index.sinks.get(name)
        if sink is None:
            return 0
        gone = 0
        for _, _, row in list(self._index.waiting(name, _CHUNK)):
            gone += self._index.leave(row.seq, name)
            if not self._index.waited_for(row.seq):
                self._index.remove(row)
        if not gone:
            self._index.remove_sink(name)
            if name in self._takers:
                self._index.add_sink(name)
        return gone

    def sweep(self) -> None:
        self._room.outdated(self._clock.read())
        self.notice()
        self._room.tidy()

    def notice(self) -> None:
        """Count what a person has removed by hand."""
        there = set(self._segments.numbers())
        for segment in set(self._index.segments) - there - {self._segments.active}:
            self._reader.removed(segment)
        self._checking.notice_rejected()


def _wait(row: Row | None, age: float) -> float | None:
    return max(0.0, age - row.aged) if row else None
