"""One worker thread at a time, and everything that waits for it shares its next turn: group commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anyio import CancelScope, CapacityLimiter, Event, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from loopcore.errors import StorageError

T = TypeVar("T")


class Job:
    """A piece of work for the store.

    Attributes:
        run: The work; may be run again if its turn failed and left nothing behind.
        durable: Its outcome must survive a power cut by way of the index, not of a segment.
        writes: About how many bytes it adds to a segment; 0 for none.
        error: What it raised, once its turn is over.
    """

    __slots__ = ("durable", "ended", "error", "over", "result", "run", "writes")

    def __init__(self, run: Callable[[], Any], *, durable: bool = False, writes: int = 0) -> None:
        self.run = run
        self.durable = durable
        self.writes = writes
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = False
        self.over: Event | None = None


class Turns:
    """Hands jobs to `work`, which runs in a worker thread and never twice at a time.

    The first of the waiting takes the turn for all of them, so there is no task to look after.

    Args:
        work: Gives each job its result or its error, and does not raise.
        turn_bytes: What the jobs of one turn write at most; one larger job has a turn for itself.
    """

    def __init__(self, work: Callable[[Sequence[Job]], None], turn_bytes: int) -> None:
        self._work = work
        self._turn_bytes = turn_bytes
        self._waiting: deque[Job] = deque()
        self._taken = False
        self._limiter: CapacityLimiter | None = None
        self._open = False

    async def begin(self, work: Callable[[], T]) -> T:
        """Run something in the worker thread, and take jobs from then on."""
        self._limiter = CapacityLimiter(1)
        result = await to_thread.run_sync(work, limiter=self._limiter)
        self._open = True
        return result

    async def end(self, work: Callable[[], T]) -> T:
        """Take no more jobs, and run something in the worker thread after the turn that has begun."""
        self._open = False
        return await to_thread.run_sync(work, limiter=self._limiter)

    async def take(self, run: Callable[[], T], *, durable: bool = False, writes: int = 0) -> T:
        """Run a job in the next turn and return its result; see `Job`. Once begun it is not cancelled.

        Raises:
            StorageError: The outbox is closed.
        """
        await checkpoint_if_cancelled()  # a caller that does nothing else would never see that it was cancelled
        job = Job(run, durable=durable, writes=writes)
        self._waiting.append(job)
        with CancelScope(shield=True):  # a job lasts as long as the disk does, and half of one cannot be taken back
            if self._taken:
                job.over = Event()
                await job.over.wait()
            if not job.ended:
                await self._lead()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def _lead(self) -> None:
        self._taken = True
        jobs = [self._waiting.popleft()]
        size = jobs[0].writes
        while self._waiting and size + self._waiting[0].writes <= self._turn_bytes:
            jobs.append(self._waiting.popleft())
            size += jobs[-1].writes
        try:
            if self._open:
                await to_thread.run_sync(self._work, jobs, limiter=self._limiter)
            else:
                for job in jobs:
                    job.error = StorageError("the outbox is closed; nothing was accepted")
        except BaseException as exc:
            for job in jobs:
                job.error = StorageError(f"the turn of the outbox ended early: {exc!r}")
            raise
        finally:
            for job in jobs:
                job.ended = True
                if job.over is not None:
                    job.over.set()
            if not self._waiting:
                self._taken = False
            elif (heir := self._waiting[0].over) is not None:
                heir.set()
