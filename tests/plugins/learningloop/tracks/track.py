"""One node after the other meets each answer to each of its calls; what came of it goes into the table of `cells.py`.

Nodes run in hurried event loops; what is here runs in a loop with a true clock, and reaches them by HTTP and through
the server's books.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import wait
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import anyio
import httpx
from anyio import AsyncContextManagerMixin, to_thread
from cells import ANSWERS, TABLE, Cell
from hurry import hurried
from loop import LoopServer
from loop.server import across

from loopcore import config
from loopcore.node import Node
from loopcore.node.control_socket import LongOperation
from loopcore.plan import resolve
from loopcore.registry import Registry

DRIVERS = Path(__file__).parents[1] / "programs" / "drivers.py"
SPEED = 40.0
CELL_S = 20.0
"""Within this all must be well again; 800 s on the node's clock."""

MENDS_S = 0.4
"""Before a person comes, where one must: 16 s on the node's clock."""

BY_HAND = frozenset({"401", "403"})
"""After these, whatever was called, a node may wait for a person: its account is not accepted."""

REFUSED = frozenset({"404", "409", "422"})
"""The Loop says no, and will say it again: asking on would be a nuisance."""

NONE: frozenset[str] = frozenset()
GARBAGE = frozenset({"nonsense"})
"""What came is none of what was asked for: a model, or a session."""

BELIEVED = frozenset({"409", "nonsense"})
"""These say to who sends something that the Loop has it: the node cannot know better."""

Proof: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when what the call was for has been reached."""


class Track(AsyncContextManagerMixin, ABC):
    """A Loop and a node of one role, and how each of its calls is brought about.

    Attributes:
        calls: By their names in `loop.calls`.
        once: Calls whose fault is given once: to get over it costs seconds.
        by_hand: After which other answers to which call it may wait for a person.
    """

    role: ClassVar[str]
    calls: ClassVar[tuple[str, ...]]
    once: ClassVar[frozenset[str]] = frozenset()
    by_hand: ClassVar[dict[str, frozenset[str]]] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = self.make_loop()
        self.answer = ""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.loop:
            with hurried(SPEED) as portal:
                self._portal = portal
                async with (
                    httpx.AsyncClient(verify=False, timeout=CELL_S) as self.client,
                    anyio.create_task_group() as self.people,
                ):
                    await self._start()
                    try:
                        yield self
                    finally:
                        self.people.cancel_scope.cancel()
                        self.loop.faults.lift()
                        with anyio.CancelScope(shield=True):
                            await self._stop()

    async def restart(self) -> None:
        """Another node with the same folder."""
        await self._stop()
        await self._start()

    async def _start(self) -> None:
        self._running, self.client.base_url = await to_thread.run_sync(self._portal.start_task, self._run)
        await self.begin()

    async def _stop(self) -> None:
        self._running.cancel()
        await to_thread.run_sync(wait, [self._running])

    async def meet(self, answer: str, calls: Sequence[str]) -> AsyncGenerator[tuple[str, Exception | None]]:
        """Meet this answer in each of these calls; for each, what went wrong."""
        for call in calls:
            error = await self._meet(call, answer)
            yield call, error
            if error is not None:
                await self.restart()

    async def _meet(self, call: str, answer: str) -> Exception | None:
        """Give this answer to a call, see all well again, and enter it in the table."""
        fault = ANSWERS[answer]
        self.answer = answer
        seen = len(self.loop.arrivals)
        begun = anyio.current_time()
        verdict = "failed"
        try:
            with anyio.fail_after(CELL_S):
                self.loop.faults.script(call, *[fault] * (1 if call in self.once else 2))
                proof = await self.provoke(call)
                await self.loop.arrivals.until(lambda one: one.name == call and one.fault is fault, after=seen)
                verdict = await self._see(proof, may_wait=answer in BY_HAND | self.by_hand.get(call, NONE))
        except Exception as exc:  # noqa: BLE001 - it is the cell's result
            return exc
        finally:
            self.loop.faults.lift()
            self.enter(call, verdict, begun)
        return None

    def enter(self, call: str, verdict: str, begun: float) -> None:
        """Write a cell of the table."""
        seconds = (anyio.current_time() - begun) * SPEED
        TABLE.append(Cell(self.role, call, self.answer, verdict, seconds))

    async def _see(self, proof: Proof, *, may_wait: bool) -> str:
        if not may_wait:
            await proof()
            return "ok"
        verdict = "ok"
        while True:
            with anyio.move_on_after(MENDS_S):
                await proof()
                return verdict
            await self.mend()
            verdict = "by hand"

    async def _run(self, *, task_status: Any) -> None:
        table = {
            "node": {"name": "test", "data_dir": str(self.folder)},
            "server": {"port": 0},
            "plugins": {"files": [str(DRIVERS)]},
            **self.tables(),
        }
        self.node = Node(resolve(config.parse(table), Registry()))
        await self.node.run(task_status=task_status)

    async def operate(self, name: str, **parameters: Any) -> Any:
        """One of the operations that commands ask of a running node."""

        async def silent(_: Any) -> None:
            return None

        operation = self.node.operations()[name]
        run = partial(operation.run, silent) if isinstance(operation, LongOperation) else operation
        return await across(self._portal.start_task_soon(partial(run, **parameters)))

    @property
    def platform(self) -> dict[str, Any]:
        """The table of the platform."""
        return {"name": "loop", "driver": "learningloop", "timeout": "8 s", "model_timeout": "12 s", **self.account}

    @property
    def account(self) -> dict[str, Any]:
        return {
            "url": self.loop.url,
            "username": "ranger",
            "password": "krill",
            "organization": "zauberzeug",
            "project": "demo",
        }

    def make_loop(self) -> LoopServer:
        return LoopServer(ping_s=25 / SPEED)

    @abstractmethod
    def tables(self) -> dict[str, Any]:
        """The node's tables."""

    async def begin(self) -> None:
        """Wait until the node is at work."""

    @abstractmethod
    async def provoke(self, call: str) -> Proof:
        """Have the node make this call; what shows that it has got what it was for."""

    async def mend(self) -> None:
        """Do what a person does when a node waits for one."""

    @abstractmethod
    async def end(self) -> None:
        """Compare the books: nothing is lost."""
