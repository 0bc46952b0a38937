"""Work goes to a thread and its outcome comes back, whatever becomes of the caller."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore.infer.threads import Threads

pytestmark = pytest.mark.anyio


async def test_a_result_and_an_error_come_back() -> None:
    async with Threads() as threads:
        assert await threads.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)


async def test_work_runs_beside_the_event_loop_and_beside_other_work() -> None:
    meeting = threading.Barrier(3, timeout=10)
    with fail_after(20):
        async with Threads() as threads, create_task_group() as group:
            group.start_soon(threads.run, meeting.wait)
            group.start_soon(threads.run, meeting.wait)
            await anyio.to_thread.run_sync(meeting.wait)


async def test_one_thread_serves_calls_that_come_one_after_the_other() -> None:
    async with Threads() as threads:
        names = {await threads.run(lambda: threading.current_thread().name) for _ in range(20)}
    assert len(names) == 1


async def test_a_call_that_has_begun_is_carried_through() -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert gate.wait(10)
        ended.set()

    with fail_after(20):
        async with Threads() as threads:
            async with create_task_group() as group:
                group.start_soon(threads.run, work)
                await anyio.to_thread.run_sync(begun.wait)
                group.cancel_scope.cancel()
                gate.set()
            assert ended.is_set()
            assert await threads.run(int) == 0


async def test_a_caller_that_is_cancelled_already_is_not_served() -> None:
    ran: list[int] = []
    async with Threads() as threads:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await threads.run(ran.append, 1)
        assert await threads.run(int) == 0
    assert not ran


async def test_no_thread_outlives_the_block() -> None:
    before = threading.active_count()
    async with Threads() as threads, create_task_group() as group:
        for _ in range(4):
            group.start_soon(threads.run, int)
    assert threading.active_count() <= before
