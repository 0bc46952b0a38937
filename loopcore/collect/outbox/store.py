"""The outbox itself, blocking: opening, closing, and turns. What a turn's jobs do is in the parts it is made of."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from loopcore.collect.outbox import recovery
from loopcore.collect.outbox.accepting import Accepting
from loopcore.collect.outbox.checking import Checking
from loopcore.collect.outbox.clock import AgeClock
from loopcore.collect.outbox.desk import Desk
from loopcore.collect.outbox.index import is_damage, is_full
from loopcore.collect.outbox.reader import Reader
from loopcore.collect.outbox.rejects import Rejects
from loopcore.collect.outbox.reserve import MOST_BYTES, Reserve
from loopcore.collect.outbox.room import Room
from loopcore.collect.outbox.segments import Segments
from loopcore.collect.outbox.sending import Leases, Sending
from loopcore.collect.outbox.terms import Bounds, Taker
from loopcore.collect.outbox.turns import Job
from loopcore.errors import LoopcoreError, StorageError
from loopcore.files import Disk, locked
from loopcore.types import SampleInfo

logger = logging.getLogger(__name__)

_SEGMENT_BYTES = (1 << 16, 1 << 25)
_TRIES = 3
_OPEN_TURNS = 64
_OPEN_BYTES = 1 << 23
"""How many turns, and how many bytes of a segment, the index may be behind the segments after a crash."""


class Store:
    """What `Outbox` promises, without tasks; arguments and errors are as there.

    A turn is one flush of the active segment: what the jobs add is written and synced. The index follows: at once where
    a job needs it, else some turns later. What it does not know yet when a power cut comes is found again at the end of
    the segments. A record whose caller was told that it failed may be found there too: that is more than was
    promised, and its id makes it harmless. So is a drop that a power cut undoes: the sample is there again, and the
    bound applies again.

    Attributes:
        accepting: Takes samples in. These four are new once the index was made anew: ask for them in a job.
        sending: Hands samples out.
        desk: Answers a person.
        checking: Says whether all is sound.
        leases: What is in hand for sinks.
        turn_bytes: How many bytes the jobs of one turn should add at most, and from which size on a segment is full;
            by default a part of `max_bytes`.
    """

    accepting: Accepting
    sending: Sending
    desk: Desk
    checking: Checking

    def __init__(
        self,
        folder: Path,
        bounds: Bounds,
        takers: Sequence[Taker],
        *,
        disk: Disk,
        now: Callable[[], datetime],
        uptime: Callable[[], float],
        segment_bytes: int | None = None,
    ) -> None:
        self.folder = folder
        self.leases = Leases()
        self.turn_bytes = segment_bytes or min(max(bounds.max_bytes // 32, _SEGMENT_BYTES[0]), _SEGMENT_BYTES[1])
        self._bounds = bounds
        self._takers = {taker.name: taker for taker in takers}
        self._disk = disk
        self._now = now
        self._clock = AgeClock(now, uptime)
        self._reserve = Reserve(folder / "reserve", min(self.turn_bytes, MOST_BYTES), disk)
        self._segments = Segments(folder / "segments", disk, self.turn_bytes)
        self._later: list[Callable[[], None]] = []
        self._held = ExitStack()
        self._behind = False
        self._open_turns = 0
        self._committed = (0, 0)

    def open(self) -> None:
        """Make or find everything, and take in what a crash has left."""
        try:
            recovery.make_folder(self._segments.folder, self._disk)
            self._held.enter_context(locked(self.folder / "lock"))
            self._open_index()
            self._reserve.keep()
            if self._reserve.given_up:
                with suppress(sqlite3.Error):
                    self._index.be_sparing(True)
        except (OSError, sqlite3.Error) as exc:
            self._held.close()
            raise StorageError(f"cannot open the outbox {self.folder}: {exc}") from exc
        except BaseException:
            self._held.close()
            raise

    def _open_index(self) -> None:
        try:
            self._make_index()
        except sqlite3.DatabaseError as exc:
            if is_full(exc) and self._reserve.give_up():  # what waits has to leave, also from a full disk
                logger.error("The disk is full; the outbox gives up its reserve to open")  # noqa: TRY400
                self._make_index()
                return
            if not is_damage(exc):
                raise
            logger.error("The index of the outbox is damaged and is made anew error=%s", exc)  # noqa: TRY400
            self._set_index_aside()
            self._make_index()

    def _make_index(self) -> None:
        self._index = recovery.open_index(self.folder / "index.db", self._disk)
        try:
            self._assemble()
        except BaseException:
            self._index.close()
            raise

    def _set_index_aside(self) -> None:
        recovery.set_aside(self.folder / "index.db", self._disk)
        self._later.clear()
        self._segments.discard()
        self._segments.size = 0
        self._behind = False

    def _assemble(self) -> None:
        index, segments, takers = self._index, self._segments, self._takers
        self._rejects = rejects = Rejects(self.folder, self._disk)
        reader = Reader(index, segments, rejects)
        room = Room(self._bounds, index, segments, self._reserve, self._disk, self._at, reader.damaged)
        self.accepting = Accepting(index, segments, room, reader, self._clock, takers)
        self.sending = Sending(
            index,
            reader,
            self.accepting,
            rejects,
            takers,
            self.leases,
            self._bounds.rejected_max_bytes,
            self._now,
            self._later.append,
        )
        self.checking = checking = Checking(index, reader, rejects, self._later.append)
        self.desk = Desk(
            index, segments, reader, self.accepting, rejects, checking, room, self._clock, takers, self._later.append
        )
        self._room = room
        index.begin(0)
        recovery.catch_up(index, segments, rejects)
        self._clock.resume(index.state.age, index.state.wall)
        for taker in takers.values():
            self._welcome(taker)
        if index.fresh:  # nobody knows how far a sink was that is not in the TOML, or that no TOML was read
            for sink in index.sinks.values():
                if sink.name not in takers:
                    index.touch(sink).backfill_end = index.state.next_seq
        index.by_value(self._bounds.when_full == "drop_least_valuable")
        needless = set(segments.numbers()) - set(index.segments)
        if needless:
            index.check_needless(needless)
        self._end(commit=True)
        index.fresh = False
        for number in needless & set(segments.numbers()):
            segments.unlink(number)

    def _welcome(self, taker: Taker) -> None:
        known = self._index.sinks.get(taker.name)
        sink = known or self._index.add_sink(taker.name)
        if taker.start == "oldest" and (known is None or self._index.fresh):
            self._index.touch(sink).backfill_end = self._index.state.next_seq

    def close(self) -> None:
        try:
            self._segments.roll(only_full=False)
            self._index.begin(self._segments.active)
            self._index.retire(self._segments.active - 1)
            self._mark_age()
            self._end(commit=True)
        except sqlite3.Error as exc:
            logger.warning("The outbox was not closed in order; the next start looks through its end error=%s", exc)
        finally:
            self._segments.close()
            self._index.close()
            self._held.close()

    def wanted(self, info: SampleInfo) -> bool:
        """See `Outbox.wanted`."""
        return not self._takers or any(taker.wants(info) for taker in self._takers.values())

    def turn(self, jobs: Sequence[Job]) -> None:
        """Run the jobs; each gets a result or an error."""
        self._try(jobs, _TRIES)

    def _try(self, jobs: Sequence[Job], tries: int) -> None:
        if not jobs:
            return
        try:
            self._attempt(jobs)
        except (OSError, sqlite3.DatabaseError) as exc:
            again: Sequence[Job] = []
            if tries > 1:
                with suppress(OSError, sqlite3.Error):  # then there is nothing to be done
                    again = self._mend(jobs, exc)
            error = StorageError(f"cannot write to {self.folder}: {_why(exc)}")
            _fail([job for job in jobs if job not in again], error)
            self._try(again, tries - 1)

    def _mend(self, jobs: Sequence[Job], exc: OSError | sqlite3.DatabaseError) -> Sequence[Job]:
        """Do what can be done after a turn that has failed, and return which of its jobs may succeed now."""
        if isinstance(exc, OSError):
            logger.error("The outbox cannot be written to and takes nothing in error=%s", _why(exc))
        elif is_full(exc) and not all(job.writes for job in jobs) and self._reserve.give_up():
            logger.error("The disk is full; the outbox gives up its reserve to note what was delivered")
            self._index.be_sparing(True)
        elif is_damage(exc):
            logger.error("The index of the outbox is damaged and is made anew error=%s", exc)
            self._segments.close()
            self._index.close()
            self._set_index_aside()
            self._make_index()
            return jobs
        else:
            return []
        return [job for job in jobs if not job.writes]

    def _attempt(self, jobs: Sequence[Job]) -> None:
        try:
            if self._behind:
                self._catch_up()
            self._segments.roll()
            self._index.begin(self._segments.active)
            self._room.begin()
            for job in jobs:
                job.error = None
                try:
                    job.result = job.run()
                except LoopcoreError as exc:
                    job.error = exc
                except OSError as exc:
                    if job.writes:
                        raise
                    job.error = StorageError(f"cannot read from {self.folder}: {_why(exc)}")
            if self._segments.pending:
                self._segments.flush()
                self._index.reach(self._segments.active, self._segments.size)
                self._mark_age()
            self._end(commit=any(job.durable for job in jobs))
        except BaseException:
            self._segments.discard()
            self._later.clear()
            self.leases.undo()
            self._index.undo()
            self._behind = self._behind or self._open_turns > 0
            self._open_turns = 0
            raise

    def _catch_up(self) -> None:
        """Take in what the index had to forget."""
        self._segments.roll(only_full=False)
        self._index.begin(0)
        recovery.catch_up(self._index, self._segments, self._rejects)
        self._index.commit()
        self._open_turns = 0
        self._behind = False

    def _mark_age(self) -> None:
        self._index.state.age, self._index.state.wall = self._clock.read(), self._clock.wall

    def _end(self, *, commit: bool) -> None:
        dead = self._index.take_dead()
        state = self._index.state
        grown = state.segment != self._committed[0] or state.offset - self._committed[1] > _OPEN_BYTES
        if commit or dead or grown or self._open_turns + 1 >= _OPEN_TURNS:
            self._index.commit()
            self._open_turns, self._committed = 0, (state.segment, state.offset)
        else:
            self._open_turns += 1
        self.leases.confirm()
        for segment in dead:
            self._segments.unlink(segment)
        for work in self._later:
            work()
        self._later.clear()

    def _at(self) -> str:
        return self._now().isoformat()


def _why(exc: OSError | sqlite3.DatabaseError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)


def _fail(jobs: Sequence[Job], error: StorageError) -> None:
    for job in jobs:
        job.result, job.error = None, error
