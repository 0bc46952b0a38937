"""What the outbox promises to those who put in and those who take out."""

from __future__ import annotations

import sqlite3
import threading

import anyio
import anyio.lowlevel
import pytest

from loopcore.collect.outbox import Outbox, Taker
from loopcore.errors import OutboxFullError, StorageError
from loopcore.types import Box

pytestmark = pytest.mark.anyio

ALL = {"max_count": 1000, "max_bytes": 1 << 40}
A, B = Taker(name="a"), Taker(name="b")


async def ids(outbox, sink, **limits):
    return [lease.id for lease in await outbox.lease(sink, **(ALL | limits))]


async def test_sample_comes_out_as_it_went_in(tmp_path, sample, bounds):
    info, image = sample(1, tags=("x",), reasons=("uncertain",))
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await outbox.accept(info, image) == info
        (found,) = await outbox.read(await outbox.lease("a", **ALL))
    assert (found.info, found.image) == (info, image)


async def test_order_is_first_in_first_out_also_after_a_restart(tmp_path, sample, bounds):
    samples = [sample(n) for n in range(30)]
    for part in (samples[:15], samples[15:]):
        async with Outbox(tmp_path, bounds(), [A]) as outbox:
            for one in part:
                await outbox.accept(*one)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox, "a") == [info.id for info, _ in samples]


async def test_urgent_samples_come_first_and_deferred_ones_last(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(n, urgent=n == 2))).id for n in range(4)]
        leases = await outbox.lease("a", **ALL)
        assert [lease.id for lease in leases] == [names[2], names[0], names[1], names[3]]
        await outbox.defer("a", leases[0])
        await outbox.defer("a", leases[1])
        outbox.release("a", leases[2:])
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        leases = await outbox.lease("a", **ALL)
        assert [lease.id for lease in leases] == [names[1], names[3], names[0], names[2]]
        assert [lease.deferrals for lease in leases] == [0, 0, 1, 1]
        assert (await outbox.status())["sinks"]["a"]["deferred"] == 2


async def test_lease_keeps_to_count_and_bytes_but_gives_a_large_sample_alone(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        for n in range(4):
            await outbox.accept(*sample(n, size=1000))
        assert len(await ids(outbox, "a", max_count=1)) == 1
        assert len(await ids(outbox, "a", max_bytes=10)) == 1
        assert len(await ids(outbox, "a", max_bytes=2000)) == 2
        assert await ids(outbox, "a") == []


async def test_dead_sink_does_not_hold_up_a_living_one(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        for n in range(5):
            await outbox.accept(*sample(n))
        await outbox.delivered("a", await outbox.lease("a", **ALL))
        status = await outbox.status()
        assert (status["sinks"]["a"]["waiting"], status["sinks"]["b"]["waiting"], status["count"]) == (0, 5, 5)
        await outbox.delivered("b", await outbox.lease("b", **ALL))
        assert (await outbox.status())["count"] == 0


async def test_delivered_sample_is_not_sent_again_after_a_restart(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        first = (await outbox.accept(*sample(1))).id
        second = (await outbox.accept(*sample(2))).id
        await outbox.delivered("a", await outbox.lease("a", max_count=1, max_bytes=1))
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert first != second
        assert await ids(outbox, "a") == [second]


async def test_sink_gets_only_what_it_wants(tmp_path, sample, bounds):
    picky = Taker(name="picky", wants=lambda info: "rare" in info.tags)
    async with Outbox(tmp_path, bounds(), [picky]) as outbox:
        plain, rare = sample(1), sample(2, tags=("rare",))
        assert (outbox.wanted(plain[0]), outbox.wanted(rare[0])) == (False, True)
        await outbox.accept(*plain)
        await outbox.accept(*rare)
        assert await ids(outbox, "picky") == [rare[0].id]
        assert (await outbox.status())["count"] == 2


async def test_samples_wait_for_export_when_no_sink_is_configured(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds()) as outbox:
        info, image = sample(1)
        assert outbox.wanted(info)
        await outbox.accept(info, image)
    async with Outbox(tmp_path, bounds()) as outbox:
        assert (await outbox.show(info.id)).image == image
        assert [line.id for line in await outbox.list()] == [info.id]


async def test_accepting_again_with_nothing_new_writes_nothing(tmp_path, sample, bounds, faulty):
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        await outbox.accept(*sample(1, tags=("x",)))
        before = faulty.syncs, (await outbox.status())["disk_bytes"]
        await outbox.accept(*sample(1, tags=("x",)))
        assert (faulty.syncs, (await outbox.status())["disk_bytes"]) == before


async def test_accepting_again_merges_and_keeps_the_place(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await outbox.accept(*sample(1, tags=("x",), reasons=("r",)))
        await outbox.accept(*sample(2))
        merged = await outbox.accept(*sample(1, tags=("y", "x"), reasons=("s",)))
        assert (merged.tags, merged.reasons) == (("x", "y"), ("r", "s"))
        first, _ = await outbox.read(await outbox.lease("a", **ALL))
        assert first.info == merged
        assert (await outbox.status())["count"] == 2


async def test_changed_annotations_go_to_every_sink_again_and_new_tags_do_not(tmp_path, sample, bounds):
    truth = (Box(label="penguin", x=1, y=2, width=3, height=4),)
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        await outbox.accept(*sample(1))
        await outbox.delivered("a", await outbox.lease("a", **ALL))
        await outbox.accept(*sample(1, tags=("x",)))
        assert await ids(outbox, "a") == []
        await outbox.accept(*sample(1, annotations=truth))
        (again,) = await outbox.read(await outbox.lease("a", **ALL))
        assert (again.info.annotations, again.info.tags) == (truth, ("x",))


async def test_delivery_of_an_older_revision_does_not_settle_a_newer_one(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await outbox.accept(*sample(1))
        leases = await outbox.lease("a", **ALL)
        await outbox.accept(*sample(1, tags=("late",)))
        await outbox.delivered("a", leases)
        (again,) = await outbox.read(await outbox.lease("a", **ALL))
        assert again.info.tags == ("late",)


async def test_wait_returns_when_something_comes(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox, "a") == []
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(outbox.wait, "a")
                await anyio.wait_all_tasks_blocked()
                await outbox.accept(*sample(1))
            leases = await outbox.lease("a", **ALL)
            async with anyio.create_task_group() as group:
                group.start_soon(outbox.wait, "a")
                await anyio.wait_all_tasks_blocked()
                outbox.release("a", leases)
            assert len(await ids(outbox, "a")) == 1


async def test_rejected_sample_moves_aside_with_its_answer_and_comes_back(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        info, image = sample(1)
        await outbox.accept(info, image)
        (lease,) = await outbox.lease("a", **ALL)
        await outbox.rejected("a", lease, "422: not a penguin")
        status = await outbox.status()
        assert (status["count"], status["sinks"]["a"]["rejected"], status["sinks"]["a"]["in_rejected"]) == (0, 1, 1)
    (json,) = tmp_path.glob("rejected/a/*.json")
    assert "not a penguin" in json.read_text()
    assert json.with_suffix("").read_bytes() == image
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert [row["why"] for row in await outbox.list_rejected()] == ["422: not a penguin"]
        assert await outbox.retry("a", [info.id]) == 1
        (found,) = await outbox.read(await outbox.lease("a", **ALL))
        assert found.image == image
        assert not json.exists()


async def test_rejected_has_its_own_cap(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(rejected_max_bytes=7000), [A]) as outbox:
        for n in range(4):
            await outbox.accept(*sample(n, size=3000))
        leases = await outbox.lease("a", **ALL)
        for lease in leases:
            await outbox.rejected("a", lease, "no")
        status = await outbox.status()
        kept = [row["id"] for row in await outbox.list_rejected("a")]
        assert status["rejected_bytes"] <= 7000
        assert kept == [lease.id for lease in leases][-len(kept) :]
        assert status["drops"] == {"rejected_max_bytes": 4 - len(kept)}
    assert len(list(tmp_path.glob("rejected/a/*.json"))) == len(kept)


@pytest.mark.parametrize("name", ["..", "a/b", "ä b", "."])
async def test_name_of_a_sink_never_leads_out_of_rejected(tmp_path, sample, bounds, name):
    async with Outbox(tmp_path / "outbox", bounds(), [Taker(name=name)]) as outbox:
        await outbox.accept(*sample(1))
        (lease,) = await outbox.lease(name, **ALL)
        await outbox.rejected(name, lease, "no")
    (json,) = tmp_path.glob("outbox/rejected/*/*.json")
    assert json.resolve().parent.parent == (tmp_path / "outbox" / "rejected").resolve()


async def test_new_sink_starts_from_now_or_from_the_oldest(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        async with anyio.create_task_group() as group:
            for n in range(1200):
                group.start_soon(outbox.accept, *sample(n, size=100))
        old = [line.id for line in await outbox.list(limit=2000)]
    late = [Taker(name="now"), Taker(name="oldest", start="oldest")]
    async with Outbox(tmp_path, bounds(), [A, *late]) as outbox:
        new = (await outbox.accept(*sample(5000))).id
        assert await ids(outbox, "now") == [new]
        found = await ids(outbox, "oldest", max_count=700)
        rest = await ids(outbox, "oldest", max_count=10_000)
        assert found + rest == [*old, new]


async def test_sink_that_left_keeps_its_place_until_it_is_forgotten(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        for n in range(3):
            await outbox.accept(*sample(n))
        await outbox.delivered("a", await outbox.lease("a", **ALL))
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        status = await outbox.status()
        assert (status["sinks"]["b"]["configured"], status["sinks"]["b"]["waiting"]) == (False, 3)
        assert await outbox.forget("b") == 3
        status = await outbox.status()
        assert ("b" in status["sinks"], status["count"]) == (False, 0)


async def test_eight_callers_share_their_flushes(tmp_path, sample, bounds, faulty):
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox, anyio.create_task_group() as group:
        for n in range(64):
            group.start_soon(outbox.accept, *sample(n))
    assert faulty.syncs <= 8


async def test_cancelled_caller_leaves_the_outbox_working(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(outbox.accept, *sample(n))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            last = (await outbox.accept(*sample(99))).id
            assert (await ids(outbox, "a"))[-1] == last


async def test_index_has_one_connection_used_by_one_thread_at_a_time(tmp_path, sample, bounds, monkeypatch):
    opened, inside, overlaps = [], threading.Lock(), []

    class Watched(sqlite3.Connection):
        def execute(self, *args):
            if not inside.acquire(blocking=False):
                overlaps.append(args)
                return super().execute(*args)
            try:
                return super().execute(*args)
            finally:
                inside.release()

    connect = sqlite3.connect

    def watched(*args, **options):
        if args != (":memory:",):  # which is nobody else's
            opened.append(args)
        return connect(*args, factory=Watched, **options)

    monkeypatch.setattr(sqlite3, "connect", watched)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:

        async def use(first: int) -> None:
            for n in range(first, first + 8):
                await outbox.accept(*sample(n))
                leases = await outbox.lease("a", max_count=1, max_bytes=1)
                await outbox.read(leases)
                await outbox.delivered("a", leases)
                await outbox.status()

        async with anyio.create_task_group() as group:
            for k in range(6):
                group.start_soon(use, 8 * k)
    assert (len(opened), overlaps) == (1, [])


async def test_second_outbox_on_the_same_folder_is_refused(tmp_path, bounds):
    async with Outbox(tmp_path, bounds()):
        with pytest.raises(StorageError, match="in use"):
            async with Outbox(tmp_path, bounds()):
                pytest.fail("two at once")


# bounds


async def test_full_outbox_rejects_and_names_the_sink_that_fills_it(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(max_count=2), [A, B]) as outbox:
        await outbox.accept(*sample(1))
        await outbox.accept(*sample(2))
        await outbox.delivered("a", await outbox.lease("a", **ALL))
        with pytest.raises(OutboxFullError, match=r"max_count.*'b'"):
            await outbox.accept(*sample(3))
        await outbox.accept(*sample(2, tags=("merging is no new sample",)))
        assert (await outbox.status())["fills"] == "b"


@pytest.mark.parametrize("rule", ["drop_oldest", "drop_least_valuable"])
async def test_disk_use_stays_within_max_bytes(tmp_path, sample, bounds, rule):
    limit = 2_000_000
    async with Outbox(tmp_path, bounds(max_bytes=limit, when_full=rule), [A]) as outbox:
        refused = 0
        for n in range(150):
            try:
                await outbox.accept(*sample(n, size=30_000, reasons=("a", "b")[: n % 3]))
            except OutboxFullError:  # all the others are worth more
                refused += 1
            size = sum(path.stat().st_size for path in tmp_path.glob("segments/*"))
            assert size <= limit * 1.1
        status = await outbox.status()
        assert status["disk_bytes"] == size
        assert status["count"] + status["drops"][rule] + refused == 150
        assert status["count"] >= 45
        assert len(await outbox.list_drops()) == status["drops"][rule]


async def test_drop_oldest_drops_the_oldest(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(max_count=3, when_full="drop_oldest"), [A]) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(5)]
        assert await ids(outbox, "a") == names[2:]
        assert [drop["id"] for drop in await outbox.list_drops()] == [names[1], names[0]]


async def test_drop_least_valuable_keeps_what_is_worth_more(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(max_count=2, when_full="drop_least_valuable"), [A]) as outbox:
        best = (await outbox.accept(*sample(1, annotations=(), reasons=("r",)))).id
        await outbox.accept(*sample(2, reasons=("r",)))
        better = (await outbox.accept(*sample(3, reasons=("r", "s")))).id
        with pytest.raises(OutboxFullError):
            await outbox.accept(*sample(4))
        assert await ids(outbox, "a") == [best, better]


async def test_backlog_gives_up_only_that_sinks_place(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, Taker(name="dead", max_backlog=2)]) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(5)]
        assert await ids(outbox, "a") == names
        assert await ids(outbox, "dead") == names[3:]
        status = await outbox.status()
        assert (status["count"], status["sinks"]["dead"]["given_up"]) == (5, 3)


async def test_disk_keeps_its_floor_and_nothing_is_dropped_for_what_others_have_filled(
    tmp_path, sample, bounds, faulty
):
    async with Outbox(tmp_path, bounds(min_free=1_000_000, when_full="drop_oldest"), [A], disk=faulty) as outbox:
        await outbox.accept(*sample(1))
        faulty.room = 900_000
        with pytest.raises(OutboxFullError, match="min_free"):
            await outbox.accept(*sample(2))
        assert (await outbox.status())["count"] == 1


async def test_old_samples_are_dropped_but_not_by_a_clock_that_steps(tmp_path, sample, bounds, clock):
    def opened():
        return Outbox(tmp_path, bounds(max_age=3600.0), [A], now=clock.now, uptime=clock.uptime)

    async with opened() as outbox:
        await outbox.accept(*sample(1))
        clock.step(10_000_000)
        await outbox.sweep()
        clock.step(-20_000_000)
        await outbox.sweep()
        assert (await outbox.status())["count"] == 1
        clock.passes(3500)
        await outbox.accept(*sample(2))
        clock.passes(200)
        await outbox.sweep()
        status = await outbox.status()
        assert (status["count"], status["drops"]) == (1, {"max_age": 1})
    clock.step(-5_000_000)
    async with opened() as outbox:
        await outbox.sweep()
        assert (await outbox.status())["count"] == 1
    clock.passes(4000)
    async with opened() as outbox:
        await outbox.sweep()
        assert (await outbox.status())["count"] == 0


async def test_space_held_by_few_samples_is_given_back(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(max_bytes=3_000_000), [A, B]) as outbox:
        names = [(await outbox.accept(*sample(n, size=10_000))).id for n in range(60)]
        for sink in "ab":
            leases = await outbox.lease(sink, **ALL)
            await outbox.delivered(sink, [lease for n, lease in enumerate(leases) if sink == "a" or n % 20])
            outbox.release(sink, leases)
        await outbox.sweep()
        await outbox.sweep()
        assert (await outbox.status())["disk_bytes"] < 200_000
        leases = await outbox.lease("b", **ALL)
        assert [lease.id for lease in leases] == names[::20]
        assert all(await outbox.read(leases))


async def test_a_closed_outbox_takes_nothing_and_stays_whole(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        kept = await outbox.accept(*sample(1))
    with pytest.raises(StorageError, match="closed"):
        await outbox.accept(*sample(2))
    with pytest.raises(StorageError, match="closed"):
        await outbox.status()
    assert not list(tmp_path.glob("*.damaged*"))
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox, "a") == [kept.id]


async def test_what_waits_while_the_outbox_closes_is_told_so(tmp_path, sample, bounds):
    accepted, refused = [], []

    async def accept(outbox, number):
        try:
            accepted.append((await outbox.accept(*sample(number))).id)
        except StorageError:
            refused.append(number)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, Outbox(tmp_path, bounds(), [A]) as outbox:
            for number in range(30):
                group.start_soon(accept, outbox, number)
            await anyio.lowlevel.checkpoint()
    assert len(accepted) + len(refused) == 30
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert set(await ids(outbox, "a")) >= set(accepted)
