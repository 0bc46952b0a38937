"""Waiting requests become batches, and threads are used by load.

There are no worker tasks. A request that finds a free place leads: it takes whatever else is waiting, up to a batch,
and runs the work in a thread; the others wait for it. When it is done, the first of those still waiting leads. So one
lonely request costs one hop to a thread and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from anyio import Event, get_cancelled_exc_class

from loopcore.errors import BusyError
from loopcore.infer.threads import Threads

ContextT = TypeVar("ContextT")
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class _Waiting(Generic[RequestT, ResultT]):
    __slots__ = ("leads", "outcome", "request", "woken")

    def __init__(self, request: RequestT) -> None:
        self.request = request
        self.woken: Event | None = None  # there is one while it waits
        self.outcome: ResultT | Exception | None = None
        self.leads = False

    def wake(self) -> None:
        if self.woken is not None:
            self.woken.set()


class Batcher(Generic[ContextT, RequestT, ResultT]):
    """Runs blocking work on requests, several at a time.

    Args:
        borrow: What a batch works with, entered and left around it in the event loop's thread.
        work: Plain and blocking; gets what was borrowed and 1 to `max_batch` requests, and returns an outcome for each,
            in order: a result, or the exception to raise to that caller.
        threads: Where the work is done.
        max_waiting: How many requests may wait; one more is refused with `BusyError`.
    """

    def __init__(
        self,
        borrow: Callable[[], AbstractContextManager[ContextT]],
        work: Callable[[ContextT, Sequence[RequestT]], Sequence[ResultT | Exception]],
        *,
        threads: Threads,
        max_waiting: int,
    ) -> None:
        self._borrow = borrow
        self._threads = threads
        self._work = work
        self._max_waiting = max_waiting
        self._max_batch = 1
        self._overlap = 1
        self._waiting: deque[_Waiting[RequestT, ResultT]] = deque()
        self._leading = 0
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for a thread."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many batches are in threads now."""
        return self._leading

    def set_capacity(self, *, max_batch: int, overlap: int) -> None:
        """How many requests a batch may hold, and how many batches may run at a time; as of the next batch."""
        self._max_batch = max_batch
        self._overlap = overlap
        self._promote()

    async def submit(self, request: RequestT) -> ResultT:
        """Wait for this request's result.

        A caller that is cancelled while it waits takes its request away; work that has begun is not interrupted.

        Raises:
            BusyError: Too many are waiting; nothing was taken.
            Exception: What borrowing raised, what the work raised, or this request's own outcome.
        """
        mine: _Waiting[RequestT, ResultT] = _Waiting(request)
        if self._leading < self._overlap and not self._waiting:
            self._leading += 1
        else:
            if len(self._waiting) >= self._max_waiting:
                self.refused += 1
                raise BusyError(f"{len(self._waiting)} frames are waiting already; send fewer, or later")
            self._waiting.append(mine)
            await self._wait(mine)
            if not mine.leads:
                return _unwrap(mine)
        await self._lead(mine)
        return _unwrap(mine)

    async def _wait(self, mine: _Waiting[RequestT, ResultT]) -> None:
        await self._woken(mine)
        while mine.leads and self._leading > self._overlap:  # the overlap has shrunk: back to the head of the line
            self._leading -= 1
            mine.leads = False
            self._waiting.appendleft(mine)
            await self._woken(mine)

    async def _woken(self, mine: _Waiting[RequestT, ResultT]) -> None:
        mine.woken = Event()
        try:
            await mine.woken.wait()
        except get_cancelled_exc_class():
            if mine.leads:
                self._step_down()
            elif mine in self._waiting:
                self._waiting.remove(mine)
            raise

    async def _lead(self, mine: _Waiting[RequestT, ResultT]) -> None:
        batch = [mine]
        while self._waiting and len(batch) < self._max_batch:
            batch.append(self._waiting.popleft())
        requests = [one.request for one in batch]
        pairs: Sequence[tuple[_Waiting[RequestT, ResultT], ResultT | Exception]]
        try:
            with self._borrow() as context:
                outcomes = await self._threads.run(self._work, context, requests)
            pairs = list(zip(batch, outcomes, strict=True))
        except get_cancelled_exc_class():
            self._waiting.extendleft(reversed(batch[1:]))  # cancelled before the thread began
            raise
        except Exception as exc:  # noqa: BLE001 - not handled here: every caller of the batch gets it
            pairs = [(one, exc) for one in batch]
        finally:
            self._step_down()
        for one, outcome in pairs:
            one.outcome = outcome
            one.wake()

    def _step_down(self) -> None:
        self._leading -= 1
        self._promote()

    def _promote(self) -> None:
        while self._waiting and self._leading < self._overlap:
            next_leader = self._waiting.popleft()
            next_leader.leads = True
            self._leading += 1
            next_leader.wake()


def _unwrap(one: _Waiting[RequestT, ResultT]) -> ResultT:
    if isinstance(one.outcome, Exception):
        raise one.outcome
    return one.outcome  # type: ignore[return-value]
