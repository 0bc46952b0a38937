"""A job under a random lot of kills, refusals, aborts and failing disks is done, or says why not, or is gone."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from anyio import from_thread
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from train.world import World

from loopcore.abc import Accepted
from loopcore.errors import RejectedError, RetryableError

from .conftest import LIMIT_S, Bench, QuickDisk, until_over

ResultT = TypeVar("ResultT")

FAULTS = ["kill", "retry", "reject", "abort", "stop"]
DISK_FAULTS = ["kill", "full"]

faults = st.dictionaries(st.integers(1, 45), st.sampled_from(FAULTS), max_size=5)
disk_faults = st.dictionaries(st.integers(1, 60), st.sampled_from(DISK_FAULTS), max_size=5)


class Fate(QuickDisk):
    """Says what happens at each point, and is the disk; once the worker is killed, nothing more reaches the disk.

    Attributes:
        killed: Set when the worker is to be killed.
    """

    def __init__(self, at_points: dict[int, str], at_disk: dict[int, str]) -> None:
        self.killed = anyio.Event()
        self.dead = False
        self.did: set[str] = set()
        self._at_points, self._at_disk = at_points, at_disk
        self._points = self._steps = 0

    async def point(self, name: str) -> None:
        self._points += 1
        match self._at_points.get(self._points):
            case "kill":
                self.kill()
                await anyio.sleep_forever()
            case "retry":
                raise RetryableError("try again")
            case "reject":
                self.did.add("reject")
                raise RejectedError("no")
            case "abort":
                self.did.add("abort")
                await self.desk.abort("job-1")
            case "stop":
                await self.desk.stop("job-1")

    def kill(self) -> None:
        self.dead = True
        self.killed.set()

    def revive(self) -> None:
        self.dead, self.killed = False, anyio.Event()

    def calm(self) -> None:
        """Nothing more happens."""
        self._at_points, self._at_disk = {}, {}

    def step(self, do: Callable[..., ResultT], *arguments: Any, **given: Any) -> ResultT:
        self._steps += 1
        match self._at_disk.get(self._steps):
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "kill" if not self.dead:
                from_thread.run_sync(self.kill)
        if self.dead:
            raise OSError(errno.EIO, "the power is gone")
        return do(*arguments, **given)

    def open(self, path: Path, *, append: bool = False) -> int:
        return self.step(super().open, path, append=append)

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        self.step(super().write, descriptor, parts)

    def rename(self, old: Path, new: Path) -> None:
        self.step(super().rename, old, new)

    def unlink(self, path: Path) -> None:
        self.step(super().unlink, path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self.step(super().mkdir, path, mode)

    def link(self, old: Path, new: Path) -> None:
        self.step(super().link, old, new)


async def live(folder: Path, at_points: dict[int, str], at_disk: dict[int, str]) -> None:
    world = World()
    bench = Bench(folder / "train", world)
    bench.disk = fate = Fate(at_points, at_disk)
    world.always = fate.point
    accepted, error = False, "not begun"
    while error == "not begun":
        async with bench.worker() as desk, anyio.create_task_group() as tasks:
            fate.desk = desk

            async def watch(killed: anyio.Event = fate.killed, scope: anyio.CancelScope = tasks.cancel_scope) -> None:
                await killed.wait()
                scope.cancel()

            tasks.start_soon(watch)
            if not accepted and desk.state() is None:
                accepted = await desk.offer(world.job()) == Accepted()
            accepted = accepted or desk.state() is not None
            if accepted:
                state = await until_over(desk)
                error = state.error if state else None
            tasks.cancel_scope.cancel()
        fate.revive()
    check(bench, error, fate.did)
    fate.calm()
    world.published.clear()
    world.seen.clear()
    async with bench.worker() as desk:
        assert await desk.offer(world.job()) == Accepted()
        assert await until_over(desk) is None
    check(bench, None, set())
    assert not (bench.folder / "job.json").exists()


def check(bench: Bench, error: str | None, did: set[str]) -> None:
    """An accepted job is done, or something has happened that ends one."""
    if error is not None:
        assert error == "no"
        assert "reject" in did
    elif "abort" in did and not bench.job_folder().exists():
        pass
    else:
        assert set(bench.world.published) == {"null", "other"}
        assert len(bench.world.seen) == 6


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(at_points=faults, at_disk=disk_faults)
@example(at_points={1: "kill", 9: "kill", 12: "abort"}, at_disk={})
@example(at_points={}, at_disk=dict.fromkeys(range(1, 30, 3), "kill"))
@example(at_points={}, at_disk=dict.fromkeys(range(1, 60, 2), "full"))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_accepted_job_is_done_or_says_why_not(backend: str, at_points: dict[int, str], at_disk: dict[int, str]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder, anyio.fail_after(LIMIT_S):
            await live(Path(folder), at_points, at_disk)

    anyio.run(main, backend=backend)
