"""What came to the server, in order; tests on any event loop can wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Generic, TypeVar, overload

import anyio
from anyio.lowlevel import current_token

T = TypeVar("T")


class Signal:
    """An event that another thread sets, awaited on asyncio or trio."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        loop: Any = current_token().native_token
        self._soon: Callable[[Callable[[], None]], Any] = (
            getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        )

    def set(self) -> None:
        """From any thread; without effect where the waiting loop has ended."""
        try:
            self._soon(self._event.set)
        except RuntimeError:  # asyncio's "loop is closed", trio's RunFinishedError
            return

    async def wait(self) -> None:
        await self._event.wait()


class Book(Generic[T]):
    """Entries that the server writes and a test reads. Each wait has a limit, and says what did come.

    Args:
        name: What its entries are, for the sentence of a wait that was in vain.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._entries: list[T] = []
        self._signals: set[Signal] = set()
        self._lock = Lock()

    def add(self, entry: T) -> None:
        with self._lock:
            self._entries.append(entry)
            signals, self._signals = self._signals, set()
        for signal in signals:
            signal.set()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._entries))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._entries[index]

    async def wait(self, count: int = 1, *, within: float = 20) -> list[T]:
        """All entries, once there are at least this many.

        Raises:
            TimeoutError: There were not, within so many seconds.
        """
        await self._reach(lambda: len(self._entries) >= count, f"{count} of them", within)
        return list(self._entries)

    async def until(self, wanted: Callable[[T], bool], *, after: int = 0, within: float = 20) -> T:
        """The first entry that is wanted, from index `after` on.

        Raises:
            TimeoutError: None came within so many seconds.
        """
        seen = after
        found: list[T] = []

        def look() -> bool:
            nonlocal seen
            fresh = self._entries[seen:]
            seen += len(fresh)
            found.extend(entry for entry in fresh if wanted(entry))
            return bool(found)

        await self._reach(look, "one that is wanted", within)
        return found[0]

    async def _reach(self, there: Callable[[], bool], wish: str, within: float) -> None:
        with anyio.move_on_after(within):
            while True:
                signal = Signal()
                with self._lock:
                    if there():
                        return
                    self._signals.add(signal)
                await signal.wait()
        last = "".join(f"\n  {str(entry)[:400]}" for entry in self._entries[-8:])
        msg = f"{self.name}: not {wish} within {within} s; {len(self._entries)} came, the last ones:{last or ' none'}"
        raise TimeoutError(msg)
