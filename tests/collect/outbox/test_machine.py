"""Any history of an outbox, crashes and power cuts included, against a model of its promises."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from loopcore.collect.outbox import Lease, Taker
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.turns import Job
from loopcore.config import OutboxTable
from loopcore.errors import OutboxFullError
from loopcore.files import Disk
from loopcore.options import Size
from loopcore.types import Box, SampleInfo, image_id, merged, sample_id

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
SINKS = ("a", "b")
NUMBERS = st.integers(0, 9)
TRUTHS = st.sampled_from([None, (), (Box(label="p", x=1, y=1, width=1, height=1),)])


class QuickDisk(Disk):
    """Does not sync: what survives a power cut is decided by the machine, which copies files."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Kept:
    """What the model knows of a sample: its info and who still waits for it."""

    def __init__(self, info: SampleInfo, waits: set[str]) -> None:
        self.info = info
        self.waits = waits


def wants_b(info: SampleInfo) -> bool:
    return int(info.source or 0) % 2 == 0


class Outboxes(RuleBasedStateMachine):
    when_full = "reject"
    max_count: int | None = None

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="machine"))
        self.generation = 0
        self.kept: dict[str, Kept] = {}  # in order of arrival
        self.deferred: set[tuple[str, str]] = set()
        self.unsure: set[tuple[str, str]] = set()
        self.dropped: dict[str, Kept] = {}  # what a crash may bring back
        self.rejected: dict[str, SampleInfo] = {}
        self.leases: dict[str, list[Lease]] = {sink: [] for sink in SINKS}
        self.store = self.opened()

    @property
    def folder(self) -> Path:
        return self.root / str(self.generation)

    def opened(self) -> Store:
        takers = [Taker(name="a"), Taker(name="b", wants=wants_b)]
        bounds = OutboxTable(
            max_bytes=Size(400_000), max_count=self.max_count, when_full=self.when_full, min_free=Size(0)
        )
        store = Store(self.folder, bounds, takers, disk=QuickDisk(), now=lambda: NOON, uptime=lambda: 0.0)
        store.open()
        self.store = store
        return store

    def do(self, run, *, writes=0, durable=False):
        jobs = [Job(run, writes=writes, durable=durable)]
        self.store.turn(jobs)
        if durable:
            self.dropped.clear()
        if jobs[0].error:
            raise jobs[0].error
        return jobs[0].result

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)

    @rule(number=NUMBERS, tags=st.sampled_from([(), ("x",), ("y",)]), truth=TRUTHS, urgent=st.booleans())
    def accept(self, number, tags, truth, urgent) -> None:
        image = bytes([number]) * (20_000 + number)
        digest = image_id(image)
        info = SampleInfo(
            id=sample_id(digest, None, None), image_id=digest, media="image/jpeg", image_bytes=len(image), width=1,
            height=1, kept=NOON, source=str(number), tags=tags, annotations=truth, urgent=urgent,
        )  # fmt: skip
        known = self.kept.get(info.id)
        try:
            result, _ = self.do(lambda: self.store.accepting.accept(info, image), writes=len(image))
        except OutboxFullError:
            assert self.max_count is not None
            assert len(self.kept) >= self.max_count
            assert known is None
            return
        wanting = {"a", "b"} if wants_b(info) else {"a"}
        if known is None:
            self.kept[info.id] = Kept(info, wanting)
            while self.max_count is not None and len(self.kept) > self.max_count:
                gone = next(iter(self.kept))
                self.dropped[gone] = self.kept.pop(gone)
                self.deferred -= {(sink, gone) for sink in SINKS}
            return
        old = known.info
        known.info = structs.replace(
            old,
            tags=merged(old.tags, tags),
            annotations=old.annotations if truth is None else truth,
            urgent=old.urgent or urgent,
        )
        assert result == known.info
        if known.info.annotations != old.annotations:
            known.waits |= wanting
        if known.info != old:
            self.deferred -= {(sink, info.id) for sink in SINKS}

    @rule(sink=st.sampled_from(SINKS), count=st.integers(1, 4))
    def lease(self, sink, count) -> None:
        leases, _ = self.do(lambda: self.store.sending.lease(sink, count, 1 << 40))
        places = {line.id: line.seq for line in self.do(lambda: self.store.desk.list(0, 1000))}
        held = {lease.id for lease in self.leases[sink] if places.get(lease.id) == lease.seq}
        ready = [name for name, kept in self.kept.items() if sink in kept.waits and name not in held]
        fresh = [name for name in ready if (sink, name) not in self.deferred]
        order = sorted(fresh, key=lambda name: not self.kept[name].info.urgent)
        got = [lease.id for lease in leases]
        in_order = [name for name in got if name in fresh]
        assert in_order == order[: len(in_order)]
        if not self.unsure.intersection((sink, name) for name in ready):
            assert got[: len(in_order)] == in_order
        assert set(got) <= set(ready)
        assert len(got) == min(count, len(ready))
        for lease, sample in zip(leases, self.store.sending.read(leases), strict=True):
            found = sample or self.do(lambda lease=lease: self.store.sending.read_again(lease), durable=True)
            assert found.info == self.kept[lease.id].info
            assert image_id(found.image) == found.info.image_id
        self.leases[sink] += leases

    def take(self, sink: str, lease: Lease) -> None:
        kept = self.kept[lease.id]
        kept.waits.discard(sink)
        self.deferred.discard((sink, lease.id))
        if not kept.waits:
            del self.kept[lease.id]

    def lent(self, sink: str) -> tuple[Lease, bool]:
        """A lease, and whether the sample is still what was leased."""
        lease = self.leases[sink].pop(0)
        row = self.store._index.at(lease.seq)
        same = row is not None and row.revision == lease.revision and row.id.hex() == lease.id
        return lease, same and sink in self.kept[lease.id].waits

    @precondition(lambda self: any(self.leases.values()))
    @rule(data=st.data(), fate=st.sampled_from(["delivered", "rejected", "defer", "release"]))
    def settle(self, data, fate) -> None:
        sink = data.draw(st.sampled_from([sink for sink in SINKS if self.leases[sink]]))
        lease, same = self.lent(sink)
        info = self.kept[lease.id].info if same else None
        if fate == "delivered":
            self.do(lambda: self.store.sending.delivered(sink, [lease]), durable=True)
            if same:
                self.take(sink, lease)
        elif fate == "rejected":
            self.do(lambda: self.store.sending.rejected(sink, lease, "no"), durable=True)
            if same:
                self.rejected[f"{sink}/{lease.seq:016d}/{lease.id}"] = info
                self.take(sink, lease)
        elif fate == "defer":
            self.do(lambda: self.store.sending.defer(sink, lease))
            if same:
                self.deferred.add((sink, lease.id))
        self.store.leases.release(sink, [lease])

    @precondition(lambda self: self.rejected and self.max_count is None)
    @rule(data=st.data())
    def retry(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.rejected)))
        sink, _, name = key.split("/")
        keys = [other for other in self.rejected if other.startswith(f"{sink}/") and other.endswith(name)]
        infos = [self.rejected.pop(other) for other in sorted(keys)]
        assert self.do(lambda: self.store.desk.retry(sink, name), writes=1, durable=True) == len(keys)
        self.kept.setdefault(name, Kept(infos[0], set())).waits.add(sink)
        self.deferred.discard((sink, name))

    @rule()
    def sweep(self) -> None:
        self.do(lambda: self.store.desk.sweep(), writes=1, durable=True)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.dropped.clear()
        self.leases = {sink: [] for sink in SINKS}
        self.store.leases = type(self.store.leases)()
        self.opened()

    @rule(torn=st.booleans())
    def crash(self, torn) -> None:
        """The process ends; what it has not committed to the index is gone, and half a record may stand at the end."""
        before, old = self.folder, self.store
        self.generation += 1
        shutil.copytree(before, self.folder)
        if torn and (segments := sorted(self.folder.glob("segments/*"))):
            with segments[-1].open("ab") as file:
                file.write(segments[0].read_bytes()[:9000])
        self.unsure |= self.deferred  # forgotten or not
        self.leases = {sink: [] for sink in SINKS}
        self.opened()
        listed = [line.id for line in self.do(lambda: self.store.desk.list(0, 1000))]
        assert set(self.kept) <= set(listed)
        self.kept = {name: self.kept.get(name) or self.dropped[name] for name in listed}
        self.dropped.clear()
        old.close()
        shutil.rmtree(before)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = {line.id: set(line.sinks) for line in self.do(lambda: self.store.desk.list(0, 1000))}
        assert listed == {name: kept.waits for name, kept in self.kept.items()}
        status = self.do(lambda: self.store.desk.status())
        assert status["count"] == len(self.kept)
        for sink in SINKS:
            waiting = [kept.info.image_bytes for kept in self.kept.values() if sink in kept.waits]
            assert status["sinks"][sink]["waiting"] == len(waiting)
            assert status["sinks"][sink]["bytes"] == sum(waiting)
        assert status["quarantined"] == status["operator_deleted"] == 0
        assert sum(sink["in_rejected"] for sink in status["sinks"].values()) == len(self.rejected)
        on_disk = sum(path.stat().st_size for path in self.folder.glob("segments/*"))
        assert status["disk_bytes"] == on_disk


class DroppingOutboxes(Outboxes):
    when_full = "drop_oldest"
    max_count = 4


class RejectingOutboxes(Outboxes):
    max_count = 4


QUICK = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestOutboxes = Outboxes.TestCase
TestOutboxes.settings = QUICK
TestDroppingOutboxes = DroppingOutboxes.TestCase
TestDroppingOutboxes.settings = settings(QUICK, max_examples=15)
TestRejectingOutboxes = RejectingOutboxes.TestCase
TestRejectingOutboxes.settings = settings(QUICK, max_examples=10)
