"""Waiting requests become batches; nobody's cancellation harms another."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore.errors import BackendError, BusyError, NotReadyError
from loopcore.infer.batching import Batcher
from loopcore.infer.threads import Threads

pytestmark = pytest.mark.anyio


class Bench:
    """Work that waits at a gate, and notes what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.most_at_once = 0
        self.ready = True
        self._running = 0
        self._lock = threading.Lock()
        self.begun = threading.Semaphore(0)

    @contextmanager
    def borrow(self) -> Iterator[str]:
        if not self.ready:
            raise NotReadyError("no model")
        yield "model"

    def work(self, context: str, requests: Sequence[int]) -> Sequence[int | Exception]:
        assert context == "model"
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.batches.append(list(requests))
        self.begun.release()
        assert self.gate.wait(10)
        with self._lock:
            self._running -= 1
        return [BackendError(f"bad {one}") if one < 0 else one * 10 for one in requests]


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    async with Threads() as running:
        yield running


async def begun(bench: Bench) -> None:
    assert await anyio.to_thread.run_sync(bench.begun.acquire, True, 10)


async def until(condition: object) -> None:
    with fail_after(5):
        while not condition():  # type: ignore[operator]
            await anyio.lowlevel.checkpoint()


async def test_a_lonely_request_is_a_batch_of_one(threads: Threads) -> None:
    bench = Bench()
    bench.gate.set()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=4)
    assert await batcher.submit(7) == 70
    assert bench.batches == [[7]]


async def test_those_who_wait_share_the_next_batch_up_to_its_size_in_order(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    batcher.set_capacity(max_batch=3, overlap=1)
    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        answers[number] = await batcher.submit(number)

    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(ask, 1)
            await begun(bench)
            for number in (2, 3, 4, 5):
                group.start_soon(ask, number)
                await until(lambda number=number: batcher.waiting == number - 1)
            bench.gate.set()
    assert bench.batches == [[1], [2, 3, 4], [5]]
    assert answers == {number: number * 10 for number in range(1, 6)}


async def test_no_more_batches_run_at_once_than_the_backend_allows(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=50)
    batcher.set_capacity(max_batch=1, overlap=2)
    with fail_after(10):
        async with create_task_group() as group:
            for number in range(20):
                group.start_soon(batcher.submit, number)
            await begun(bench)
            await begun(bench)
            bench.gate.set()
    assert bench.most_at_once == 2
    assert sorted(number for batch in bench.batches for number in batch) == list(range(20))


async def test_one_frame_too_many_is_refused_and_harms_nobody(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=1)
    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(batcher.submit, 1)
            await begun(bench)
            group.start_soon(batcher.submit, 2)
            await until(lambda: batcher.waiting == 1)
            with pytest.raises(BusyError):
                await batcher.submit(3)
            bench.gate.set()
    assert bench.batches == [[1], [2]]
    assert batcher.refused == 1


async def test_a_client_that_has_gone_takes_its_waiting_request_away(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(batcher.submit, 1)
            await begun(bench)
            async with create_task_group() as gone:
                gone.start_soon(batcher.submit, 2)
                await until(lambda: batcher.waiting == 1)
                gone.cancel_scope.cancel()
            assert batcher.waiting == 0
            group.start_soon(batcher.submit, 3)
            await until(lambda: batcher.waiting == 1)
            bench.gate.set()
    assert bench.batches == [[1], [3]]


async def test_a_leader_that_is_cancelled_leaves_the_others_their_answers(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    batcher.set_capacity(max_batch=2, overlap=1)
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append(await batcher.submit(number))

    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(ask, 1)
            await begun(bench)
            async with create_task_group() as leader:
                leader.start_soon(batcher.submit, 2)
                await until(lambda: batcher.waiting == 1)
                group.start_soon(ask, 3)
                await until(lambda: batcher.waiting == 2)
                bench.gate.set()
                await begun(bench)
                leader.cancel_scope.cancel()
    assert sorted(answers) == [10, 30]
    assert await batcher.submit(4) == 40


async def test_one_bad_frame_of_a_batch_fails_alone(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    batcher.set_capacity(max_batch=2, overlap=1)
    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(batcher.submit, 1)
            await begun(bench)
            outcomes: list[object] = []

            async def ask(number: int) -> None:
                try:
                    outcomes.append(await batcher.submit(number))
                except BackendError as exc:
                    outcomes.append(str(exc))

            group.start_soon(ask, -2)
            await until(lambda: batcher.waiting == 1)
            group.start_soon(ask, 3)
            await until(lambda: batcher.waiting == 2)
            bench.gate.set()
    assert bench.batches == [[1], [-2, 3]]
    assert set(outcomes) == {"bad -2", 30}


async def test_without_a_model_every_caller_is_told_so_and_the_next_one_may_succeed(threads: Threads) -> None:
    bench = Bench()
    bench.gate.set()
    bench.ready = False
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    with pytest.raises(NotReadyError):
        await batcher.submit(1)
    bench.ready = True
    assert await batcher.submit(1) == 10
    assert batcher.running == 0


async def test_a_smaller_overlap_holds_for_those_who_were_about_to_begin(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(bench.borrow, bench.work, threads=threads, max_waiting=8)
    batcher.set_capacity(max_batch=1, overlap=1)
    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(batcher.submit, 1)
            await begun(bench)
            for number in (2, 3, 4):
                group.start_soon(batcher.submit, number)
                await until(lambda number=number: batcher.waiting == number - 1)
            batcher.set_capacity(max_batch=1, overlap=4)  # the three are called, and have not moved yet
            batcher.set_capacity(max_batch=1, overlap=1)
            await anyio.wait_all_tasks_blocked()
            assert batcher.waiting == 3
            bench.gate.set()
    assert bench.most_at_once == 1
    assert sorted(bench.batches) == [[1], [2], [3], [4]]


async def test_work_that_answers_for_too_few_leaves_nobody_waiting(threads: Threads) -> None:
    bench = Bench()
    batcher = Batcher(
        bench.borrow, lambda _, requests: bench.work("model", requests)[:1], threads=threads, max_waiting=8
    )
    batcher.set_capacity(max_batch=2, overlap=1)
    failed: list[int] = []

    async def ask(number: int) -> None:
        try:
            await batcher.submit(number)
        except ValueError:
            failed.append(number)

    with fail_after(10):
        async with create_task_group() as group:
            group.start_soon(ask, 1)
            await begun(bench)
            for number in (2, 3):
                group.start_soon(ask, number)
                await until(lambda number=number: batcher.waiting == number - 1)
            bench.gate.set()
    assert sorted(failed) == [2, 3]
