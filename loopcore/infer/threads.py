"""Worker threads for what is asked of every frame.

`anyio.to_thread` is for all else: its hop to a thread and back costs 45 to 65 µs here, and this one 20 to 25, because a
thread waits in a `SimpleQueue`, which is one lock of the kernel and not several of Python's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar, TypeVarTuple

from anyio import AsyncContextManagerMixin, CancelScope, Event, get_cancelled_exc_class
from anyio.lowlevel import checkpoint_if_cancelled, current_token

ArgumentsT = TypeVarTuple("ArgumentsT")
ResultT = TypeVar("ResultT")


class _Job:
    __slots__ = ("arguments", "done", "error", "result", "work")

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.work = work
        self.arguments = arguments
        self.done = Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Threads(AsyncContextManagerMixin):
    """As many threads as calls run at a time; the caller keeps that number small. They end with the block."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._running = 0

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            yield self
        finally:
            for _ in self._threads:
                self._jobs.put(None)
            for thread in self._threads:
                thread.join()
            self._threads.clear()

    async def run(self, work: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT) -> ResultT:
        """Call `work` in a thread and return what it returns, or raise what it raises.

        A caller that is cancelled before the call begins is not served; once it has begun, the call is carried through.
        """
        await checkpoint_if_cancelled()
        self._running += 1
        try:
            if self._running > len(self._threads):
                self._start()
            job = _Job(work, arguments)
            self._jobs.put(job)
            try:
                await job.done.wait()
            except get_cancelled_exc_class():
                with CancelScope(shield=True):  # what has begun is carried through; the cancellation comes again
                    await job.done.wait()
        finally:
            self._running -= 1
        if job.error is not None:
            raise job.error
        result: ResultT = job.result
        return result

    def _start(self) -> None:
        thread = Thread(target=_serve, args=(self._jobs, _waker()), name=f"frames {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()


def _serve(jobs: SimpleQueue[_Job | None], wake: Callable[[Callable[[], Any]], Any]) -> None:
    while job := jobs.get():
        try:
            job.result = job.work(*job.arguments)
        except BaseException as exc:  # noqa: BLE001 - not handled here: it is raised to the caller
            job.error = exc
        with suppress(RuntimeError):  # the event loop has been closed under us: nobody waits any more
            wake(job.done.set)


def _waker() -> Callable[[Callable[[], Any]], Any]:
    """How a thread has something called in this event loop: asyncio's way or trio's."""
    loop: Any = current_token().native_token
    wake: Callable[[Callable[[], Any]], Any] = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return wake
