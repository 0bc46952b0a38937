"""The outbox as the rest of the node sees it: async, cancellable, on asyncio and trio. The work is in `store.py`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

from anyio import AsyncContextManagerMixin, CancelScope, CapacityLimiter, Event, to_thread

from loopcore.collect.outbox.clock import uptime
from loopcore.collect.outbox.rejects import Refusal
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.terms import Bounds, Lease, Listed, Taker
from loopcore.collect.outbox.turns import Turns
from loopcore.files import DISK, Disk
from loopcore.types import Sample, SampleInfo

_READERS = 2
"""Threads that read images for sinks, beside the one that writes."""


def _now() -> datetime:
    return datetime.now(UTC)


class Outbox(AsyncContextManagerMixin):
    """A durable queue of samples with a place in it for each sink that wants them.

    Entering opens the folder (made if absent) and takes its lock; one process at a time. All methods may be called
    from several tasks at once. What is written waits its turn behind what is being written, and all that waits shares
    one flush. A call that has begun to write is carried through even if it is cancelled.

    A sample leaves when every sink that wanted it has it, has refused it for good, or was forgotten; when a bound of
    the operator drops it; or when a person removes its file. Samples that no sink wants stay, for export.

    Args:
        folder: Its own folder.
        bounds: The table `[outbox]`.
        takers: The sinks of the TOML. A sink that has left it keeps its place until `forget`.
        disk: How files are changed.
        now: The wall clock, aware. It may step: order goes by arrival, and only plausible progress makes samples older.
        uptime: Seconds that pass whatever the wall clock does.

    Raises:
        StorageError: On entering: another process uses the folder, it cannot be written to, or a newer loopcore made
            it.
    """

    def __init__(
        self,
        folder: Path,
        bounds: Bounds,
        takers: Sequence[Taker] = (),
        *,
        disk: Disk = DISK,
        now: Callable[[], datetime] = _now,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        self._store = Store(folder, bounds, takers, disk=disk, now=now, uptime=uptime)
        self._turns = Turns(self._store.turn, self._store.turn_bytes)
        self._news: dict[str, Event] = {}

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._readers = CapacityLimiter(_READERS)
        await self._turns.begin(self._store.open)
        try:
            yield self
        finally:
            with CancelScope(shield=True):
                await self._turns.end(self._store.close)

    def wanted(self, info: SampleInfo) -> bool:
        """Whether a sink of the TOML wants this sample, or there is none and samples wait for export."""
        return self._store.wanted(info)

    async def accept(self, info: SampleInfo, image: bytes) -> SampleInfo:
        """Take a sample; when this returns, it survives a power cut.

        If the id is waiting here already, tags, reasons and annotations are merged: with nothing new nothing is
        written; changed annotations go to every sink again; anything else reaches those that still wait for it.

        Args:
            info: `image_id` is the SHA-256 of `image`, and `image_bytes` its length.
            image: The bytes as they came.

        Returns:
            The info as it is now in the outbox.

        Raises:
            OutboxFullError: A bound is reached and the rule is to reject. Nothing was accepted.
            StorageError: The disk refused. Nothing was accepted, though after a power cut the sample may turn up.
        """
        accepted, sinks = await self._turns.take(
            lambda: self._store.accepting.accept(info, image), writes=max(1, len(image))
        )
        for sink in sinks:
            self._notify(sink)
        return accepted

    async def lease(self, sink: str, *, max_count: int, max_bytes: int) -> list[Lease]:
        """Take what waits for this sink: urgent first, then first in first out, then what was deferred.

        A leased sample is not leased again until `release`, `defer` or a restart. Leases take no disk write.

        Args:
            sink: Its name.
            max_count: How many at most.
            max_bytes: How many image bytes at most; a single larger sample still comes, alone.
        """
        news = self._news[sink] = Event()  # before the look, so that what comes during it is not missed
        leases, more = await self._turns.take(lambda: self._store.sending.lease(sink, max_count, max_bytes))
        if more:
            news.set()
        return leases

    async def read(self, leases: Sequence[Lease | Listed]) -> list[Sample | None]:
        """The samples of these leases or lines of a list, in order, each checked against its hash.

        `None` where there is nothing to send: the stored bytes were damaged (the sample is quarantined), a person
        removed the file, or a drop rule was quicker. Such a lease has ended; do nothing more with it.
        """
        found = await to_thread.run_sync(self._store.sending.read, leases, limiter=self._readers)
        samples: list[Sample | None] = []
        for lease, sample in zip(leases, found, strict=True):
            if sample is None:
                sample = await self._turns.take(partial(self._read_again, lease), durable=True)
            samples.append(sample)
        return samples

    def _read_again(self, lease: Lease | Listed) -> Sample | None:
        return self._store.sending.read_again(lease)

    async def delivered(self, sink: str, leases: Sequence[Lease]) -> None:
        """The sink's peer has these for good; when this returns, they are not sent to it again, even after a crash.

        If other annotations came in the meantime the sample stays, to be sent with them.

        Raises:
            StorageError: It could not be noted. The leases stand; note it again, or release them and send twice.
        """
        await self._turns.take(lambda: self._store.sending.delivered(sink, leases), durable=True)
        self.release(sink, leases)

    async def rejected(self, sink: str, lease: Lease, why: str) -> None:
        """The sink's peer has refused this one for good: it moves to `rejected/` with the peer's answer.

        Raises:
            StorageError: It could not be moved; the lease stands.
        """
        await self._turns.take(lambda: self._store.sending.rejected(sink, lease, why), durable=True)
        self.release(sink, [lease])

    async def defer(self, sink: str, lease: Lease) -> None:
        """Send this one after all others: it may be poison. Ends the lease; survives a restart."""
        await self._turns.take(lambda: self._store.sending.defer(sink, lease))
        self.release(sink, [lease])

    def release(self, sink: str, leases: Sequence[Lease]) -> None:
        """Give leases back; the samples wait in their old places. Plain, so that it may be called while cancelled."""
        self._store.leases.release(sink, leases)
        self._notify(sink)

    async def wait(self, sink: str) -> None:
        """Return when there may be something to lease that was not there at the last `lease` of this sink."""
        if sink in self._news:
            await self._news[sink].wait()

    async def status(self) -> dict[str, Any]:
        """Counts as plain data, without scanning anything.

        `count`, `bytes` (of live records), `disk_bytes`, `oldest_s`, `sinks` by name (`configured`, `waiting`,
        `bytes`, `deferred`, `oldest_s`, `delivered`, `rejected` and `given_up` since ever, `in_rejected` now), `drops`
        by rule, `quarantined`, `operator_deleted`, `moved_out`, `rejected_bytes`, `fills` (the sink with the most
        waiting bytes).
        """
        return await self._turns.take(lambda: self._store.desk.status())

    async def list(self, *, after: int = 0, limit: int = 100, sink: str | None = None) -> Sequence[Listed]:
        """Samples in order of arrival, those behind place `after` in the queue; all, or those that wait for a sink."""
        return await self._turns.take(lambda: self._store.desk.list(after, limit, sink))

    async def locate(self, id: str) -> Listed | None:  # noqa: A002 - the field's term
        """The line of one sample; `None` if none of that id waits here."""
        return await self._turns.take(lambda: self._store.desk.locate(id))

    async def last(self) -> int:
        """The place of the sample that came last, whether or not it is still here."""
        return await self._turns.take(lambda: self._store.desk.last())

    async def find(self, prefix: str) -> Sequence[str]:
        """Up to ten ids that begin with these hexadecimal digits, waiting or rejected."""
        return await self._turns.take(lambda: self._store.desk.find(prefix))

    async def list_rejected(self, sink: str | None = None) -> Sequence[dict[str, Any]]:
        """What lies in `rejected/`: `sink`, `id`, `why`, `bytes`, `at`; oldest first."""
        return await self._turns.take(lambda: self._store.desk.list_rejected(sink))

    async def list_drops(self) -> Sequence[dict[str, Any]]:
        """The last 1,000 drops, newest first: `id`, `sink` (or `None`: for all), `rule`, `bytes`, `at`."""
        return await self._turns.take(lambda: self._store.desk.list_drops())

    async def show(self, id: str) -> Sample | None:  # noqa: A002 - the field's term
        """One sample that waits here, read and checked; `None` if there is none of that id."""
        return await self._turns.take(lambda: self._store.desk.show(id), durable=True)

    async def show_rejected(self, id: str) -> Sequence[tuple[Refusal, bytes]]:  # noqa: A002 - the field's term
        """Who has refused a sample, why, and its image; empty if it is not in `rejected/`, or damaged there."""
        return await self._turns.take(lambda: self._store.desk.show_rejected(id))

    async def move_out(self, listed: Sequence[tuple[int, int, str]], sink: str | None = None) -> int:
        """Take out samples that are safe elsewhere, such as in a bundle; counted as `moved_out`.

        Args:
            listed: Place, revision and id of each. One that has another revision by now stays.
            sink: Give up only the places of this sink.
        """
        return await self._turns.take(lambda: self._store.desk.move_out(listed, sink), durable=True)

    async def retry(self, sink: str, ids: Sequence[str] | None = None) -> int:
        """Move rejected samples back into the queue of that sink: these, or all. Returns how many.

        Raises:
            StorageError: The disk refused; what was not moved stays in `rejected/`.
        """
        moved = 0
        for sample in ids if ids is not None else [row["id"] for row in await self.list_rejected(sink)]:
            job = partial(self._retry, sink, sample)
            moved += await self._turns.take(job, writes=1, durable=True)
            self._notify(sink)
        return moved

    def _retry(self, sink: str, sample: str) -> int:
        return self._store.desk.retry(sink, sample)

    async def outlook(self, name: str) -> Mapping[str, int] | None:
        """What `forget` would do: `places` given up, samples that `leave`, and what stays in `rejected`; None: no such
        sink."""
        return await self._turns.take(lambda: self._store.desk.outlook(name))

    async def forget(self, name: str) -> int:
        """Give up all places of a sink; samples that waited for no other leave. Returns how many places it had.

        The sink's `rejected/` stays. A sink that is in the TOML starts anew, by its rule `start = "now"`.
        """
        places = 0
        while gone := await self._turns.take(lambda: self._store.desk.forget(name), durable=True):
            places += gone
        return places

    async def sweep(self) -> None:
        """Drop what is too old, notice files removed by hand, and give back space that is held by few samples.

        To be called now and then, such as once a minute; a call looks at the folder, not at the samples.
        """
        await self._turns.take(lambda: self._store.desk.sweep(), writes=1, durable=True)

    async def notice(self) -> None:
        """Count what a person has removed by hand; `sweep` does that, too."""
        await self._turns.take(lambda: self._store.desk.notice(), durable=True)

    async def check_samples(self, listed: Sequence[Listed], *, mend: bool) -> tuple[int, int]:
        """Read these samples: how many are damaged, and how many lay in a file that was removed by hand.

        Args:
            listed: As `list` gives them.
            mend: Put the damaged ones into `quarantine/`, and count the others as deleted by the operator.
        """
        suspects = await to_thread.run_sync(self._store.checking.suspicious, listed, limiter=self._readers)
        if not suspects:
            return 0, 0
        return await self._turns.take(lambda: self._store.checking.samples(suspects, mend), durable=True)

    async def check_index(self, *, mend: bool) -> Sequence[str]:
        """What is wrong with the index, in words: with the file, or with the totals that it keeps. Takes a while.

        Args:
            mend: Count wrong totals anew. A damaged file is set aside and made anew from the segments at once.
        """
        return await self._turns.take(lambda: self._store.checking.index(mend), durable=True)

    async def check_rejected(self, *, mend: bool) -> tuple[int, int]:
        """Read `rejected/`: how many in it are damaged, and how many were removed by hand; `mend` as for samples."""
        return await self._turns.take(lambda: self._store.checking.rejected(mend), durable=True)

    def _notify(self, sink: str) -> None:
        if sink in self._news:
            self._news[sink].set()
