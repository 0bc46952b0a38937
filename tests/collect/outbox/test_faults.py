"""What the outbox makes of torn files, flipped bits, full disks and kills."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from loopcore.collect.outbox import Outbox, Taker
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.records import HEADER_BYTES
from loopcore.collect.outbox.rows import sealed, unsealed
from loopcore.errors import OutboxFullError, StorageError
from loopcore.types import Box

pytestmark = pytest.mark.anyio

ALL = {"max_count": 1000, "max_bytes": 1 << 40}
SMALL = {"max_bytes": 1 << 21}
A = Taker(name="a")
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


async def ids(outbox):
    return [lease.id for lease in await outbox.lease("a", **ALL)]


def segment(folder):
    return max(folder.glob("segments/*.seg"))


async def fill(folder, bounds, sample, count):
    """An outbox of small samples, closed in order, with records of one length each; their ids."""
    still = {"now": lambda: NOON, "uptime": lambda: 0.0}
    async with Outbox(folder, bounds(), [A], **still) as outbox:
        return [(await outbox.accept(*sample(n, size=40))).id for n in range(count)]


async def test_torn_end_costs_nothing_but_the_torn_record(tmp_path, sample, bounds):
    """As after a power cut while the third of three records was being written: at every byte of it."""
    source = tmp_path / "source"
    names = await fill(source, bounds, sample, 2)
    whole = segment(source)
    complete = whole.stat().st_size
    (await fill(tmp_path / "longer", bounds, sample, 3)).pop()
    longer = segment(tmp_path / "longer").read_bytes()
    for size in range(complete, len(longer), 7):
        folder = tmp_path / f"torn-{size}"
        shutil.copytree(source, folder)
        for data in (longer[:size], longer[:size] + bytes(len(longer) - size)):
            segment(folder).write_bytes(data)
            async with Outbox(folder, bounds(), [A]) as outbox:
                assert await ids(outbox) == names
                assert (await outbox.status())["quarantined"] == 0
        shutil.rmtree(folder)


async def test_records_beyond_the_index_are_taken_in(tmp_path, sample, bounds):
    names = await fill(tmp_path / "longer", bounds, sample, 3)
    await fill(tmp_path / "shorter", bounds, sample, 2)
    shutil.copy(segment(tmp_path / "longer"), segment(tmp_path / "shorter"))
    async with Outbox(tmp_path / "shorter", bounds(), [A]) as outbox:
        assert await ids(outbox) == names


@pytest.mark.parametrize("lost", ["index", "records"])
async def test_flipped_bit_is_found_put_aside_and_the_rest_flows(tmp_path, sample, bounds, lost):
    """In every part of the middle record: magic, lengths, checksum, JSON, image; with the index and without."""
    source = tmp_path / "source"
    names = await fill(source, bounds, sample, 3)
    length = segment(source).stat().st_size // 3
    parts = [*range(0, HEADER_BYTES, 3), HEADER_BYTES + 1, length // 2, length - 40, length - 1]
    for part in parts:
        folder = tmp_path / f"flipped-{part}"
        shutil.copytree(source, folder)
        data = bytearray(segment(folder).read_bytes())
        data[length + part] ^= 0x10
        segment(folder).write_bytes(data)
        if lost == "index":
            (folder / "index.db").unlink()
        async with Outbox(folder, bounds(), [A]) as outbox:
            leases = await outbox.lease("a", **ALL)
            found = [sample.info.id for sample in await outbox.read(leases) if sample]
            assert found == [names[0], names[2]]
            status = await outbox.status()
            assert (status["quarantined"], status["count"]) == (1, 2)
        assert len(list(folder.glob("quarantine/*"))) == 1
        shutil.rmtree(folder)


async def test_sample_that_is_damaged_here_is_whole_again_when_it_comes_again(tmp_path, sample, bounds):
    await fill(tmp_path, bounds, sample, 1)
    data = bytearray(segment(tmp_path).read_bytes())
    data[HEADER_BYTES + 3] ^= 1
    segment(tmp_path).write_bytes(data)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        info, image = sample(0, size=40)
        await outbox.accept(info, image)
        (found,) = await outbox.read(await outbox.lease("a", **ALL))
        assert found.image == image


async def spoil(index, how):
    if how == "missing":
        index.unlink()
    elif how == "empty":
        index.write_bytes(b"")
    elif how == "foreign":
        index.write_bytes(b"no database" * 1000)
    else:
        data = bytearray(index.read_bytes())
        data[4096 + 100 :] = bytes(len(data) - 4196)
        index.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "empty", "foreign", "zeroes"])
async def test_lost_index_is_made_anew_from_the_segments(tmp_path, sample, bounds, how):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(20)]
        tagged = await outbox.accept(*sample(5, tags=("merged",)))
        leases = await outbox.lease("a", **ALL)
        await outbox.rejected("a", leases[0], "no")
    await spoil(tmp_path / "index.db", how)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        leases = await outbox.lease("a", **ALL)
        assert [lease.id for lease in leases] == names[1:]
        assert (await outbox.read(leases))[4].info == tagged
        assert [row["id"] for row in await outbox.list_rejected()] == names[:1]
        late = await outbox.accept(*sample(30))
        assert await ids(outbox) == [late.id]


@pytest.mark.parametrize("later", [1, 0], ids=["others later", "none later"])
@pytest.mark.parametrize("moved", [False, True], ids=["in the order of writing", "the sound one moved behind it"])
async def test_index_that_is_made_anew_prefers_a_sound_record_to_a_newer_one_that_is_torn(
    tmp_path, sample, bounds, moved, later
):
    """The newer one was never promised to anybody: the power went while it was written."""
    names = await fill(tmp_path, bounds, sample, 2)
    for known in [{"number": 0, "tags": ("new",)}, {"number": 2}][: 1 + later]:
        async with Outbox(tmp_path, bounds(), [A]) as outbox:
            last = await outbox.accept(*sample(**known, size=40))
    first, second, *_ = sorted(tmp_path.glob("segments/*.seg"))
    torn = bytearray(second.read_bytes())
    torn[-1] ^= 1
    second.write_bytes(torn)
    if moved:
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
    (tmp_path / "index.db").unlink()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await outbox.sweep()
        found = await outbox.read(await outbox.lease("a", **ALL))
        assert {kept.info.id for kept in found if kept} == {*names, last.id}
        assert (await outbox.status())["quarantined"] == moved  # else it is the end of a file, which nobody promised


async def test_index_that_turns_out_damaged_at_work_is_made_anew(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        async with anyio.create_task_group() as group:
            for n in range(200):
                group.start_soon(outbox.accept, *sample(n, size=40))
        names = [line.id for line in await outbox.list(limit=1000)]
    with sqlite3.connect(tmp_path / "index.db") as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'todo_order'").fetchone()
    db.close()
    with (tmp_path / "index.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox) == names


async def test_index_whose_tables_are_of_different_ages_removes_no_file_that_a_sample_needs(tmp_path, sample, bounds):
    """As a disk leaves it that says "synced" and has not: totals from before the samples came."""
    names = await fill(tmp_path, bounds, sample, 2)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:  # which begins another file
        names.append((await outbox.accept(*sample(2, size=40))).id)
    with sqlite3.connect(tmp_path / "index.db") as db:
        db.execute("DELETE FROM segments")
        state = unsealed(
            db.execute("SELECT next_seq, segment, offset, count, bytes, age, wall, crc FROM state").fetchone()
        )
        db.execute("UPDATE state SET count = 0, bytes = 0, crc = ?", sealed([*state[:3], 0, 0, *state[5:]])[-1:])
    db.close()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        leases = await outbox.lease("a", **ALL)
        assert [kept.info.id for kept in await outbox.read(leases) if kept] == names


async def drained(folder, bounds, sinks):
    """All that each sink gets from an outbox, to the last; then it must be empty, also after another start."""
    taken = {sink: set() for sink in sinks}
    for _ in range(2):
        async with Outbox(folder, bounds(**SMALL), [Taker(name=sink) for sink in sinks]) as outbox:
            for sink in sinks:
                for _ in range(20):
                    leases = await outbox.lease(sink, **ALL)
                    found = [lease for lease, sample in zip(leases, await outbox.read(leases), strict=True) if sample]
                    taken[sink] |= {lease.id for lease in found}
                    await outbox.delivered(sink, found)
                    if not leases:
                        break
                else:
                    pytest.fail("the same comes again and again")
            await outbox.sweep()
            status = await outbox.status()
    assert (status["count"], status["quarantined"], status["operator_deleted"]) == (0, 0, 0)
    return taken


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("step", [331, pytest.param(7, marks=pytest.mark.long)])
async def test_flipped_bit_anywhere_in_the_index_loses_no_sample(tmp_path, sample, bounds, step):
    source = tmp_path / "source"
    async with Outbox(source, bounds(**SMALL), [A, Taker(name="b")]) as outbox:
        names = [(await outbox.accept(*sample(n, size=40))).id for n in range(40)]
        await outbox.delivered("a", await outbox.lease("a", max_count=5, max_bytes=1 << 40))
        await outbox.rejected("b", (await outbox.lease("b", max_count=1, max_bytes=1 << 40))[0], "no")
    data = (source / "index.db").read_bytes()
    for place in range(0, len(data), step):
        folder = tmp_path / str(place)
        shutil.copytree(source, folder)
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / "index.db").write_bytes(flipped)
        taken = await drained(folder, bounds, ("a", "b"))
        assert (set(names[5:]) - taken["a"], set(names[1:]) - taken["b"]) == (set(), set()), place
        shutil.rmtree(folder)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_flipped_bit_in_the_log_of_the_index_after_a_kill_loses_no_sample(tmp_path, sample, bounds):
    source, killed = tmp_path / "source", tmp_path / "killed"
    async with Outbox(source, bounds(**SMALL), [A]) as outbox:
        names = [(await outbox.accept(*sample(n, size=40))).id for n in range(20)]
        await outbox.delivered("a", await outbox.lease("a", max_count=5, max_bytes=1 << 40))
        names.append((await outbox.accept(*sample(20, size=40))).id)
        shutil.copytree(source, killed)
    data = (killed / "index.db-wal").read_bytes()
    for place in range(0, len(data), 4001):
        folder = tmp_path / str(place)
        shutil.copytree(killed, folder)
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / "index.db-wal").write_bytes(flipped)
        assert set(names[5:]) <= (await drained(folder, bounds, ("a",)))["a"], place
        shutil.rmtree(folder)


async def test_damage_in_rejected_is_found_when_it_is_to_come_back_and_the_rest_comes_back(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(n, size=40))).id for n in range(6)]
        for lease in await outbox.lease("a", **ALL):
            await outbox.rejected("a", lease, "no")
    records = sorted(tmp_path.glob("rejected/a/*.json"))
    for path in (records[0], records[1].with_suffix("")):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x80
        path.write_bytes(data)
    records[2].with_suffix("").write_bytes(bytes(100))
    records[3].with_suffix("").write_bytes(b"")
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await outbox.retry("a") == 2
        assert await ids(outbox) == names[4:]
        assert (await outbox.status())["quarantined"] == 4
        assert await outbox.list_rejected() == []
    assert len(list(tmp_path.glob("quarantine/*"))) == 8
    assert list(tmp_path.glob("rejected/a/*")) == []


STRAYS = ["1.seg", "0000000000000001 (copy).seg", f"{'9' * 30}.seg", "٣.seg", ".DS_Store"]


@pytest.mark.parametrize("with_index", [True, False], ids=["with its index", "without"])
async def test_what_others_put_beside_the_segments_is_left_alone(tmp_path, sample, bounds, with_index):
    names = await fill(tmp_path, bounds, sample, 2)
    whole, folder = segment(tmp_path), tmp_path / "segments"
    for name in STRAYS:
        shutil.copy(whole, folder / name)
    (folder / f"{7:016d}.seg").mkdir()
    (folder / f"{8:016d}.seg").symlink_to("nowhere")
    os.mkfifo(folder / f"{9:016d}.seg")
    strays = set(folder.iterdir()) - {whole}
    if not with_index:
        (tmp_path / "index.db").unlink()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await outbox.sweep()
        assert await ids(outbox) == names
        assert (await outbox.status())["operator_deleted"] == 0
    assert strays <= set(folder.iterdir())


async def test_what_stands_in_the_lock_or_the_reserve_does_not_matter(tmp_path, sample, bounds):
    names = await fill(tmp_path, bounds, sample, 2)
    (tmp_path / "lock").write_bytes(b"\xff" * 40)
    (tmp_path / "reserve").write_bytes(b"\xff")
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox) == names
        with pytest.raises(StorageError, match="in use"):
            async with Outbox(tmp_path, bounds(), [A]):
                pytest.fail("opened")


async def test_index_of_a_newer_version_is_left_alone(tmp_path, sample, bounds):
    await fill(tmp_path, bounds, sample, 1)
    with sqlite3.connect(tmp_path / "index.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / "index.db").read_bytes()
    with pytest.raises(StorageError, match="newer"):
        async with Outbox(tmp_path, bounds(), [A]):
            pytest.fail("opened")
    assert (tmp_path / "index.db").read_bytes() == before


async def test_files_removed_by_hand_are_counted_and_no_error(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(max_bytes=1 << 21), [A]) as outbox:
        for n in range(4):
            await outbox.accept(*sample(n, size=40_000))
        (lease, *_) = await outbox.lease("a", max_count=1, max_bytes=1)
        await outbox.rejected("a", lease, "no")
        for path in [min(tmp_path.glob("segments/*")), *tmp_path.glob("rejected/a/*.json")]:
            path.unlink()
        if len(list(tmp_path.glob("segments/*"))) != 1:
            pytest.fail("two samples to a segment were expected")
        leases = await outbox.lease("a", **ALL)
        assert [sample is None for sample in await outbox.read(leases)] == [True, False, False]
        await outbox.sweep()
        status = await outbox.status()
        assert (status["operator_deleted"], status["count"], status["quarantined"]) == (2, 2, 0)
        assert await outbox.list_rejected() == []


async def test_what_is_accepted_after_a_person_has_emptied_the_folder_is_kept(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        await outbox.accept(*sample(1))
        segment(tmp_path).unlink()
        names = [(await outbox.accept(*sample(2))).id]
        shutil.rmtree(tmp_path / "segments")
        shutil.rmtree(tmp_path / "rejected", ignore_errors=True)
        await outbox.sweep()
        kept = await outbox.accept(*sample(3))
        names = [kept.id]
        leases = await outbox.lease("a", **ALL)
        assert [sample.info.id for sample in await outbox.read(leases) if sample] == names
        assert (await outbox.status())["operator_deleted"] == 2
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        assert await ids(outbox) == names


@pytest.mark.parametrize("step", ["open", "write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS])
async def test_disk_that_refuses_is_an_error_of_that_sample_alone(tmp_path, sample, bounds, faulty, step, code):
    names = []
    for first in (True, False):
        async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
            if not first:
                names.append((await outbox.accept(*sample(1))).id)
            faulty.fails[step] = faulty.fails["truncate"] = OSError(code, os.strerror(code))
            faulty.short = 700
            if first or step != "open":  # there is an open segment already
                with pytest.raises(StorageError, match=os.strerror(code)):
                    await outbox.accept(*sample(2))
            faulty.fails.clear()
            faulty.short = None
            names.append((await outbox.accept(*sample(3 + first))).id)
            assert (await outbox.status())["count"] == len(names)
    (tmp_path / "index.db").unlink()
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        again = await ids(outbox)
        assert [name for name in again if name in names] == names
        assert set(again) - set(names) <= {sample(2)[0].id}


async def test_descriptor_counts_as_lost_when_its_sync_has_failed(tmp_path, sample, bounds, faulty):
    """What the system says of such a file later is not to be trusted: it may have dropped what it could not write."""
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        first = (await outbox.accept(*sample(1))).id
        given_up = segment(tmp_path)
        faulty.fails["sync"] = OSError(errno.EIO, "gone")
        with pytest.raises(StorageError):
            await outbox.accept(*sample(2))
        faulty.fails.clear()
        before = given_up.read_bytes()
        late = (await outbox.accept(*sample(3))).id
        assert segment(tmp_path) != given_up
        assert given_up.read_bytes() == before
        assert await ids(outbox) == [first, late]


async def test_process_without_descriptors_left_loses_nothing(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(3)]
        leases = await outbox.lease("a", **ALL)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(StorageError, match="Too many open files"):
                await outbox.read(leases)
            names.append((await outbox.accept(*sample(3))).id)  # its file is open already
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        outbox.release("a", leases)
        leases = await outbox.lease("a", **ALL)
        assert [sample.info.id for sample in await outbox.read(leases) if sample] == names


@contextmanager
def small_disk(path, size):
    """A file system of its own, where the tests may make one."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs a small disk, and none can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def remount(path, mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", path], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="needs a small disk, and there is no mount here")
async def test_full_disk_refuses_what_comes_and_empties_as_sinks_take_what_waits(tmp_path, sample, bounds):
    with small_disk(tmp_path / "disk", "8m") as disk:
        async with Outbox(disk / "outbox", bounds(), [A, Taker(name="b")]) as outbox:
            names = []
            with suppress(StorageError):
                for number in range(1000):
                    names.append((await outbox.accept(*sample(number, size=20_000))).id)
            assert 100 < len(names) < 500
            for sink in ("a", "b"):
                taken = []
                while leases := await outbox.lease(sink, max_count=5, max_bytes=1 << 40):
                    taken += [sample.info.id for sample in await outbox.read(leases) if sample]
                    await outbox.delivered(sink, leases)
                    if sink == "a":  # nothing leaves before `b` has it
                        with pytest.raises(OutboxFullError):
                            await outbox.accept(*sample(1000, size=20_000))
                assert taken == names
            assert (await outbox.status())["count"] == 0
            late = (await outbox.accept(*sample(1000, size=20_000))).id
        async with Outbox(disk / "outbox", bounds(), [A]) as outbox:
            assert await ids(outbox) == [late]


@pytest.mark.skipif(not shutil.which("mount"), reason="needs a small disk, and there is no mount here")
async def test_outbox_that_was_killed_opens_on_a_full_disk_and_gives_out_what_waits(tmp_path, sample, bounds):
    with small_disk(tmp_path / "disk", "8m") as disk:
        async with Outbox(tmp_path / "running", bounds(), [A]) as outbox:
            names = [(await outbox.accept(*sample(n))).id for n in range(20)]
            shutil.copytree(tmp_path / "running", disk / "killed")
        with suppress(OSError), (disk / "others").open("wb", buffering=0) as others:
            while others.write(bytes(4096)):
                pass
        async with Outbox(disk / "killed", bounds(), [A]) as outbox:
            with pytest.raises(OutboxFullError):
                await outbox.accept(*sample(20))
            leases = await outbox.lease("a", **ALL)
            assert [kept.info.id for kept in await outbox.read(leases) if kept] == names
            await outbox.delivered("a", leases)
        (disk / "others").unlink()
        async with Outbox(disk / "killed", bounds(), [A]) as outbox:
            assert (await outbox.status())["count"] == 0
            late = await outbox.accept(*sample(20))
            assert await ids(outbox) == [late.id]


async def test_outbox_without_reserve_takes_nothing_until_there_is_room_for_one(tmp_path, sample, bounds, faulty):
    """A run that gave it up was killed; if the rest of the disk were filled, too, nothing could leave it any more."""
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        names = [(await outbox.accept(*sample(1))).id]
    (tmp_path / "reserve").unlink()
    faulty.room = 1 << 20
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        with pytest.raises(OutboxFullError, match="the disk is full"):
            await outbox.accept(*sample(2))
        assert await ids(outbox) == names
        faulty.room = 1 << 40
        await outbox.accept(*sample(2))
    assert (tmp_path / "reserve").exists()


@pytest.mark.skipif(not shutil.which("mount"), reason="needs a small disk, and there is no mount here")
async def test_disk_that_is_mounted_read_only_is_one_error_and_costs_nothing(tmp_path, sample, bounds):
    with small_disk(tmp_path / "disk", "8m") as disk:
        names = await fill(disk / "outbox", bounds, sample, 3)
        remount(disk, "ro")
        with pytest.raises(StorageError, match=r"cannot .*(Read-only file system|readonly)"):
            async with Outbox(disk / "outbox", bounds(), [A]):
                pytest.fail("opened")
        remount(disk, "rw")
        async with Outbox(disk / "outbox", bounds(), [A]) as outbox:
            assert await ids(outbox) == names


async def test_acknowledgements_are_noted_while_nothing_can_be_accepted(tmp_path, sample, bounds, faulty):
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        await outbox.accept(*sample(1))
        leases = await outbox.lease("a", **ALL)
        faulty.fails["sync"] = OSError(errno.EIO, "gone")
        refused = []

        async def accept(number: int) -> None:
            try:
                await outbox.accept(*sample(number))
            except StorageError:
                refused.append(number)

        async with anyio.create_task_group() as group:
            group.start_soon(accept, 2)
            group.start_soon(accept, 3)
            group.start_soon(outbox.delivered, "a", leases)
        assert (sorted(refused), (await outbox.status())["count"]) == ([2, 3], 0)


async def test_index_that_cannot_be_written_forgets_nothing_that_was_accepted(tmp_path, sample, bounds, monkeypatch):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(5)]
        leases = await outbox.lease("a", max_count=2, max_bytes=1 << 40)

        def full(_: Index) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Index, "commit", full)
            with pytest.raises(StorageError, match="disk is full"):
                await outbox.delivered("a", leases)
        assert [line.id for line in await outbox.list()] == names
        await outbox.delivered("a", leases)
        last = (await outbox.accept(*sample(5))).id
        assert await ids(outbox) == [*names[2:], last]


async def test_lease_asked_for_in_a_turn_that_failed_is_still_given(tmp_path, sample, bounds, faulty):
    async with Outbox(tmp_path, bounds(), [A], disk=faulty) as outbox:
        first = (await outbox.accept(*sample(1))).id
        faulty.fails["sync"] = OSError(errno.EIO, "gone")
        found = []

        async def accept(number: int) -> None:
            with pytest.raises(StorageError):
                await outbox.accept(*sample(number))

        async def lease() -> None:
            found.extend(await ids(outbox))

        async with anyio.create_task_group() as group:
            for n in range(2, 5):
                group.start_soon(accept, n)
            group.start_soon(lease)
        assert found == [first]


@pytest.mark.parametrize("rule", ["reject", "drop_oldest", "drop_least_valuable"])
async def test_disk_that_others_have_filled_refuses_and_drops_nothing(tmp_path, sample, bounds, faulty, rule):
    async with Outbox(tmp_path, bounds(min_free=1 << 20, when_full=rule), [A], disk=faulty) as outbox:
        names = [(await outbox.accept(*sample(n))).id for n in range(3)]
        faulty.room = 1000
        with pytest.raises(OutboxFullError, match="min_free"):
            await outbox.accept(*sample(3))
        assert await ids(outbox) == names
        assert (await outbox.status())["drops"] == {}


MOMENTS = [
    datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),  # no battery behind the clock
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),  # one second more than 31 bits hold
    datetime(2026, 5, 4, tzinfo=UTC),
    datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),  # and than 32 bits
    datetime(2026, 5, 3, 23, 59, 59, tzinfo=UTC),  # a second stepped back over midnight
]


async def test_order_does_not_depend_on_the_clock(tmp_path, sample, bounds, clock):
    names = []
    for number, moment in enumerate(MOMENTS):
        clock.wall = moment
        async with Outbox(tmp_path, bounds(), [A], now=clock.now, uptime=clock.uptime) as outbox:
            names.append((await outbox.accept(*sample(2 * number))).id)
            clock.step(-86400 if moment.year > 1970 else 86400 * 365 * 56)
            names.append((await outbox.accept(*sample(2 * number + 1))).id)
            assert await ids(outbox) == names
    (tmp_path / "index.db").unlink()
    async with Outbox(tmp_path, bounds(), [A], now=clock.now, uptime=clock.uptime) as outbox:
        assert await ids(outbox) == names


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: str(moment.year))
async def test_samples_grow_old_by_the_time_that_passes_in_any_year(tmp_path, sample, bounds, clock, moment):
    clock.wall = moment
    async with Outbox(tmp_path, bounds(max_age=3600), [A], now=clock.now, uptime=clock.uptime) as outbox:
        await outbox.accept(*sample(1))
        clock.step(10 * 365 * 86400)
        await outbox.sweep()
        clock.passes(3000)
        clock.wall = moment + timedelta(seconds=5)  # the time server has its way
        late = (await outbox.accept(*sample(2))).id
        clock.passes(1000)
        await outbox.sweep()
        assert await ids(outbox) == [late]
        assert (await outbox.status())["drops"] == {"max_age": 1}


LAYOUTS = sorted((Path(__file__).parent / "layouts").glob("*.zip"))


@pytest.mark.parametrize("with_index", [True, False], ids=["with its index", "without"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda path: path.stem)
async def test_outbox_of_every_earlier_version_is_opened_as_it_was_left(tmp_path, sample, bounds, layout, with_index):
    """See `layouts/make.py` for what it holds."""
    zipfile.ZipFile(layout).extractall(tmp_path)
    if not with_index:
        for path in tmp_path.glob("index.db*"):
            path.unlink()
    images = {number: sample(number, size=200) for number in range(14)}
    number_of = {info.id: number for number, (info, _) in images.items()}
    async with Outbox(tmp_path, bounds(), [A, Taker(name="b")]) as outbox:
        found = {}
        for sink in ("a", "b"):
            leases = await outbox.lease(sink, **ALL)
            found[sink] = [number_of[lease.id] for lease in leases]
            for number, kept in zip(found[sink], await outbox.read(leases), strict=True):
                assert kept.image == images[number][1]
                truth = (Box(label="seal", x=1, y=2, width=3, height=4),) if number == 6 else None
                assert kept.info.annotations == truth
        (refused,) = await outbox.list_rejected()
        assert (number_of[refused["id"]], refused["sink"], refused["why"]) == (3, "a", "answered 413")
        if with_index:
            assert found["a"] == [7, 5, 6, 8, 9, 10, 11, 12, 13, 4]
            assert found["b"] == [7, 0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13]
            status = (await outbox.status())["sinks"]
            assert [status[sink]["delivered"] for sink in "ab"] == [3, 1]
        else:  # what was delivered and shares a file with what waits comes again
            assert set(found["a"]) == set(range(14)) - {3}
            assert set(found["b"]) == set(range(14))
        assert await outbox.retry("a") == 1
        late = await outbox.accept(*sample(99))
        assert late.id in [line.id for line in await outbox.list(limit=1000)]


SECOND = """
import sys
from pathlib import Path
import anyio
from loopcore.collect.outbox import Outbox
from loopcore.config import OutboxTable
from loopcore.errors import StorageError

async def main():
    try:
        async with Outbox(Path(sys.argv[1]), OutboxTable()):
            print("opened")
    except StorageError as exc:
        print(exc)

anyio.run(main)
"""


async def test_second_process_is_refused_and_disturbs_nothing(tmp_path, sample, bounds):
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        names = [(await outbox.accept(*sample(1))).id]
        said = await anyio.run_process([sys.executable, "-c", SECOND, str(tmp_path)])
        assert said.stdout.decode().strip() == f"{tmp_path} is in use by process {os.getpid()}"
        names.append((await outbox.accept(*sample(2))).id)
        assert await ids(outbox) == names


NODE = """
import random, sys
from datetime import UTC, datetime
from pathlib import Path
import anyio
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable
from loopcore.types import SampleInfo, image_id, sample_id

async def caller(outbox, rng):
    while True:
        image = rng.randbytes(20_000)
        digest = image_id(image)
        info = SampleInfo(id=sample_id(digest, None, None), image_id=digest, media="image/jpeg", image_bytes=20_000,
            width=1, height=1, kept=datetime.now(UTC))
        await outbox.accept(info, image)
        print("accepted", info.id, flush=True)

async def sender(outbox, limit):
    while True:
        leases = await outbox.lease("a", max_count=3, max_bytes=1 << 30)
        if not leases:
            await outbox.wait("a")
            continue
        print("sending", leases[0].id, flush=True)
        await outbox.delivered("a", leases[:1])
        for lease in leases[:1]:
            print("delivered", lease.id, flush=True)
        outbox.release("a", leases)

async def main():
    async with Outbox(Path(sys.argv[1]), OutboxTable(), [Taker(name="a")]) as outbox:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(caller, outbox, random.Random())
            group.start_soon(sender, outbox, 3)

anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_accepted_is_lost_and_nothing_delivered_comes_again_when_killed(tmp_path, bounds):
    books = {"accepted": set(), "sending": set(), "delivered": set()}
    for lines in (5, 17, 40):
        node = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", NODE, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert node.stdout
        said = [node.stdout.readline() for _ in range(lines)]
        node.send_signal(signal.SIGKILL)
        said += node.stdout.readlines()
        node.wait()
        node.stdout.close()
        for line in said:
            word, _, name = line.rstrip("\n").partition(" ")
            if len(name) == 64:
                books[word].add(name)
    async with Outbox(tmp_path, bounds(), [A]) as outbox:
        leases = await outbox.lease("a", max_count=100_000, max_bytes=1 << 40)
        waiting = [sample.info.id for sample in await outbox.read(leases) if sample]
    assert len(waiting) == len(leases)
    assert not books["delivered"] & set(waiting)
    assert books["accepted"] <= books["sending"] | set(waiting)
