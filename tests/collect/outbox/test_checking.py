"""What a person asks of an outbox: is all sound, who is forgotten, what went out by hand."""

from __future__ import annotations

import sqlite3

import pytest

from loopcore.collect.outbox import Outbox, Taker

pytestmark = pytest.mark.anyio

ALL = {"max_count": 1000, "max_bytes": 1 << 40}
A, B = Taker(name="a"), Taker(name="b")


async def fill(outbox, sample, count, **known):
    return [(await outbox.accept(*sample(n, **known))).id for n in range(count)]


async def reject_first(outbox, sink):
    lease, *rest = await outbox.lease(sink, **ALL)
    await outbox.rejected(sink, lease, "422: no")
    outbox.release(sink, rest)
    return lease.id


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


async def test_sound_outbox_is_found_sound(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 5)
        await reject_first(outbox, "a")
        assert await outbox.check_samples(await outbox.list(), mend=True) == (0, 0)
        assert await outbox.check_rejected(mend=True) == (0, 0)
        assert await outbox.check_index(mend=True) == []


@pytest.mark.parametrize("mend", [False, True])
async def test_damaged_sample_is_found_and_only_mending_takes_it_out(tmp_path, sample, bounds, mend):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = await fill(outbox, sample, 3)
    (segment,) = tmp_path.glob("segments/*.seg")
    flip(segment, segment.stat().st_size // 2)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await outbox.check_samples(await outbox.list(), mend=mend) == (1, 0)
        assert len(await outbox.list()) == len(names) - mend
        assert (await outbox.status())["quarantined"] == mend
        assert (tmp_path / "quarantine").exists() == mend


async def test_file_removed_by_hand_is_counted_as_that(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 3)
        listed = await outbox.list()
    for segment in tmp_path.glob("segments/*.seg"):
        segment.unlink()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await outbox.check_samples(listed, mend=False) == (0, 3)
        await outbox.notice()
        status = await outbox.status()
        assert (status["operator_deleted"], status["quarantined"], status["count"]) == (3, 0, 0)


@pytest.mark.parametrize("suffix", ["", ".json"])
async def test_rejected_image_or_json_removed_by_hand_is_counted_once(tmp_path, sample, bounds, suffix):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 2)
        name = await reject_first(outbox, "a")
        (meta,) = tmp_path.glob("rejected/a/*.json")
        meta.with_suffix(suffix).unlink()
        assert await outbox.check_rejected(mend=False) == (0, 1)
        assert await outbox.retry("a", [name]) == 0
        await outbox.notice()
        assert (await outbox.status())["operator_deleted"] == 1
        assert await outbox.list_rejected() == []


async def test_damaged_rejected_sample_is_put_aside(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 2)
        await reject_first(outbox, "a")
        (meta,) = tmp_path.glob("rejected/a/*.json")
        flip(meta.with_suffix(""), 5)
        assert await outbox.check_rejected(mend=False) == (1, 0)
        assert await outbox.check_rejected(mend=True) == (1, 0)
        assert await outbox.list_rejected() == []
        assert (await outbox.status())["quarantined"] == 1


async def test_wrong_totals_are_counted_anew(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 3)
        good = await outbox.status()
    with sqlite3.connect(tmp_path / "index.db") as db:
        db.execute("UPDATE state SET count = 7, bytes = 1, crc = NULL")
        db.execute("UPDATE sinks SET waiting = 9, crc = NULL")
        db.execute("UPDATE segments SET live = 2, crc = NULL")
    db.close()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert len(await outbox.check_index(mend=False)) == 3
        await outbox.check_index(mend=True)
        assert await outbox.check_index(mend=False) == []
        status = await outbox.status()
        assert (status["count"], status["bytes"]) == (good["count"], good["bytes"])
        assert status["sinks"]["a"]["waiting"] == 3


async def test_rejected_samples_of_a_forgotten_sink_can_be_listed_and_tried_again(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        await fill(outbox, sample, 3)
        name = await reject_first(outbox, "a")
    async with Outbox(tmp_path, bounds(), [B]) as outbox:
        assert await outbox.outlook("a") == {"places": 2, "leave": 0, "rejected": 1}
        assert await outbox.forget("a") == 2
        assert list((await outbox.status())["sinks"]) == ["b"]
    for index_is_there in (True, False):
        if not index_is_there:
            (tmp_path / "index.db").unlink()
        async with Outbox(tmp_path, bounds(), [B]) as outbox:
            assert [row["id"] for row in await outbox.list_rejected("a")] == [name]
    async with Outbox(tmp_path, bounds(), [B]) as outbox:
        assert await outbox.retry("a") == 1
        assert name in [line.id for line in await outbox.list(sink="a")]


async def test_forgetting_says_before_what_leaves(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        await fill(outbox, sample, 4)
        await outbox.delivered("b", (await outbox.lease("b", **ALL))[:3])
        assert await outbox.outlook("a") == {"places": 4, "leave": 3, "rejected": 0}
        assert await outbox.outlook("c") is None


async def test_sample_that_changed_since_it_was_listed_is_not_moved_out(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        await fill(outbox, sample, 3)
        listed = [(line.seq, line.revision, line.id) for line in await outbox.list()]
        await outbox.accept(*sample(1, tags=("new",)))
        assert await outbox.move_out(listed[:2], "a") == 1
        assert [line.sinks for line in await outbox.list()] == [("b",), ("a", "b"), ("a", "b")]
        assert await outbox.move_out(listed) == 2
        assert [line.id for line in await outbox.list()] == [listed[1][2]]
        assert (await outbox.status())["moved_out"] == 3


async def test_list_of_one_sink_holds_what_waits_for_it(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A, B]) as outbox:
        names = await fill(outbox, sample, 4)
        await outbox.delivered("a", (await outbox.lease("a", **ALL))[::2])
        lines = await outbox.list(sink="a")
        assert [line.id for line in lines] == names[1::2]
        assert [line.id for line in await outbox.list(sink="a", after=lines[0].seq)] == names[3:]
        assert await outbox.list(sink="nobody") == []
        assert await outbox.find(names[0][:8]) == [names[0]]


async def test_outbox_made_anew_while_no_toml_was_read_owes_its_sinks_nothing_less(tmp_path, sample, bounds):
    """What a sink was given when it was new stands in the index alone; rebuilt without its TOML, it is given again."""
    async with Outbox(tmp_path, bounds(), [B]) as outbox:
        names = await fill(outbox, sample, 3)
    late = Taker(name="a", start="oldest")
    async with Outbox(tmp_path, bounds(), [late, B]) as outbox:
        names += [(await outbox.accept(*sample(9))).id]
    (tmp_path / "index.db").unlink()
    async with Outbox(tmp_path, bounds(), []) as outbox:
        assert (await outbox.status())["count"] == 4
    async with Outbox(tmp_path, bounds(), [late, B]) as outbox:
        assert {lease.id for lease in await outbox.lease("a", **ALL)} == set(names)


async def test_index_of_version_1_is_taken_over_with_what_was_rejected(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await fill(outbox, sample, 3)
        await reject_first(outbox, "a")
        rejected, status = await outbox.list_rejected(), await outbox.status()
    db = sqlite3.connect(tmp_path / "index.db")
    db.executescript(
        """
        BEGIN;
        ALTER TABLE rejected RENAME TO new;
        CREATE TABLE rejected (sink INTEGER, seq INTEGER, id BLOB, bytes INTEGER, at TEXT, why TEXT,
            PRIMARY KEY (sink, seq)) WITHOUT ROWID;
        INSERT INTO rejected SELECT s.sink, seq, id, n.bytes, at, why FROM new n JOIN sinks s ON s.name = n.sink;
        DROP TABLE new;
        ALTER TABLE state DROP COLUMN crc;
        ALTER TABLE samples DROP COLUMN crc;
        ALTER TABLE sinks DROP COLUMN crc;
        ALTER TABLE segments DROP COLUMN crc;
        PRAGMA user_version = 1;
        COMMIT;
        """
    )
    db.close()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await outbox.list_rejected("a") == rejected
        assert (await outbox.status())["sinks"]["a"]["waiting"] == status["sinks"]["a"]["waiting"]
        assert await outbox.retry("a") == 1
