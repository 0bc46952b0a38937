"""Promises of the GPU slot: one trainer of a machine trains at a time, whoever made it."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from loopcore.abc import Declined
from loopcore.errors import StorageError
from loopcore.train import Terms
from loopcore.train.slot import Slot

from .conftest import LIMIT_S, Bench, offered, until, until_over

pytestmark = pytest.mark.anyio


@contextmanager
def held(path: Path, holder: bytes = b"another trainer on this card") -> Iterator[None]:
    """By somebody who keeps the rules, as the Learning Loop's own trainers do."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, holder)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def test_holder_is_named_while_it_holds_and_not_after(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    slot = Slot(path)
    assert slot.take("gate-3, job 7")
    assert path.read_text() == "gate-3, job 7\n"
    assert not slot.is_taken()
    assert slot.take("once more")
    slot.release()
    slot.release()
    assert path.read_text() == ""


def test_slot_is_for_one(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    with held(path):
        slot = Slot(path)
        assert not slot.take("us")
        assert slot.is_taken()
        assert slot.holder() == "another trainer on this card"
        assert path.read_bytes() == b"another trainer on this card"
    assert not slot.is_taken()
    assert slot.take("us")


def test_file_is_for_all_users_and_never_another(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    before = os.umask(0o077)
    try:
        slot = Slot(path)
        slot.take("us")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    inode = path.stat().st_ino
    slot.release()
    slot.take("us again")
    assert path.stat().st_ino == inode


def test_nobody_s_name_is_another_trainer(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    with held(path, b""):
        assert Slot(path).holder() == "another trainer"
    assert Slot(None).holder() == "another trainer"


def test_folder_must_be_there_and_a_link_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open the lock"):
        Slot(tmp_path / "absent" / "slot").take("us")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        Slot(tmp_path / "link").take("us")
    assert (tmp_path / "precious").read_text() == "precious"


def test_without_a_file_there_is_nothing_to_wait_for() -> None:
    slot = Slot(None)
    assert slot.take("us")
    assert not slot.is_taken()
    slot.release()


async def test_slot_falls_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1]); from pathlib import Path; from loopcore.train.slot import Slot\n"
        "slot = Slot(Path(sys.argv[2])); print(slot.take('them'), flush=True); sys.stdin.read()"
    )
    with anyio.fail_after(LIMIT_S):
        command = [sys.executable, "-c", code, repr(sys.path), str(path)]
        async with await anyio.open_process(command) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive()).strip() == b"True"
            assert Slot(path).is_taken()
            process.kill()
            await process.wait()
    assert Slot(path).take("us")


async def test_offer_is_declined_while_another_trains_and_platforms_are_told(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    bench.terms = Terms(name="gate-3", slot=path)
    with held(path):
        async with bench.worker() as desk:
            assert desk.blocked()
            answer = await desk.offer(bench.world.job())
            assert answer == Declined(why="the GPU is taken by another trainer on this card")
            assert desk.state() is None
    async with bench.worker() as desk:
        assert not desk.blocked()
        with held(path):
            await until(desk, desk.blocked)
        await until(desk, lambda: not desk.blocked())


async def test_job_holds_the_slot_from_its_offer_to_its_end(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    bench.terms = Terms(name="gate-3", slot=path)
    seen = []

    async def look(name: str) -> None:
        seen.append(Slot(path).is_taken() and path.read_text().startswith("gate-3, job job-1, process "))

    bench.world.always = look
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
        assert seen
        assert all(seen)
        assert not Slot(path).is_taken()


async def test_job_that_goes_on_after_a_restart_waits_for_the_slot(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    bench.terms = Terms(slot=path)
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
    with held(path):
        async with bench.worker() as desk:
            await until(desk, lambda: (state := desk.state()) is not None and state.waiting)
            assert bench.world.calls == []
    async with bench.worker() as desk:
        assert await until_over(desk) is None


async def test_waiting_job_can_be_aborted(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    bench.terms = Terms(slot=path)
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
    with held(path):
        async with bench.worker() as desk:
            await until(desk, lambda: (state := desk.state()) is not None and state.waiting)
            await desk.abort("job-1")
            assert await until_over(desk) is None


async def test_slot_that_cannot_be_used_ends_the_start(bench: Bench, tmp_path: Path) -> None:
    bench.terms = Terms(slot=tmp_path / "absent" / "slot")
    worker = bench.make()
    with pytest.raises(StorageError, match="cannot open the lock"):
        await worker.run({"loop": bench.world}, task_status=anyio.TASK_STATUS_IGNORED)
