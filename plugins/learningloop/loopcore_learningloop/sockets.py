"""A node's connection to the Loop, kept up (`learning-loop.md` 3): events both ways, and the status that is told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import msgspec
from anyio import to_thread

from loopcore.errors import AuthError, ConfigError, RemoteError, RetryableError
from loopcore.http.meaning import shown
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.connection import Connection, connected
from loopcore_learningloop.hearing import Hearing, Listener

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

CYCLE_S = 5.0
"""How often a status is told where nothing has changed (3.1)."""

FIRST_S, MOST_S = 1.0, 60.0
"""How long to wait before connecting again: the first time, and at most."""

LEAST_UP_S = 5.0
"""A node that is to start again has been there so long before it ends: supervisors give up on one that always ends."""


class Socket:
    """One connection after the other, for one role of the node.

    A new one is made when the Loop cannot be reached, has gone, does not acknowledge a status, or acknowledges it with
    `success: false`. The pause before that doubles until a status is accepted: a Loop that refuses is not stormed.

    Args:
        loop: The Loop; entered.
        kind: `nodeType` (3.1).
        place: Of the node; told in the hand-shake, empty for a node that serves all projects.
        listeners: What is done on which event; `restart` is listened to anyway.
        muted: Stay away until told otherwise.
    """

    def __init__(
        self,
        loop: Loop,
        kind: str,
        place: wire.Context,
        listeners: Mapping[str, Listener] | None = None,
        *,
        muted: bool = False,
    ) -> None:
        self._loop = loop
        self._kind = kind
        self._place = place
        self._connection: Connection | None = None
        self._up = anyio.Event()
        self._patience = Patience()
        self._stale = False
        self._ends = False
        self._muted = muted
        self._unmuted = anyio.Event()
        self._hearing = Hearing(
            {**(listeners or {}), "restart": Listener(tuple[Any, ...], self._restart)}, self._leave_if_over
        )
        self._since = anyio.current_time()
        self._trouble: str | None = None  # what was told of last; empty while all is well

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep the connection up until cancelled, or until the Loop wants the node to start again.

        Raises:
            ConfigError: This is not asyncio, which python-socketio needs.
        """
        if not _on_asyncio():
            raise ConfigError("the Loop's trainers and annotators need asyncio: python-socketio knows nothing else")
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._hearing.run)
            task_status.started()
            while not self._ends:
                await self._attempt()
            tasks.cancel_scope.cancel()

    async def call(self, event: str, *args: Any, limit_s: float) -> wire.Ack | None:
        """Emit an event; the acknowledgement, or `None` where the Loop gave none that makes sense.

        Raises:
            RetryableError: There is no connection, or no acknowledgement came within `limit_s`.
        """
        if self._connection is None:
            raise RetryableError(f"{event} cannot be told: there is no connection to the Loop")
        plain = [msgspec.to_builtins(arg) for arg in args]
        answer = await self._connection.call(event, *plain, limit_s=limit_s)
        try:
            return msgspec.convert(answer, wire.Ack)
        except msgspec.ValidationError:
            return None

    async def report(self, event: str, *args: Any, limit_s: float, strict: bool = False) -> wire.Ack | None:
        """Tell a status, and make a new connection unless it is accepted.

        Args:
            event: Under which it is told.
            args: The status.
            limit_s: How long its acknowledgement may take.
            strict: An acknowledgement that makes no sense is a refusal.

        Raises:
            RetryableError: It was not accepted.
        """
        try:
            ack = await self.call(event, *args, limit_s=limit_s)
            accepted(event, ack or wire.Ack(success=not strict, error_msg="it acknowledges with nonsense"))
        except RetryableError as exc:
            self.renew(str(exc))
            raise
        self._settle()
        return ack

    async def tell(
        self,
        event: str,
        status: Callable[[], Any],
        *,
        limit_s: float,
        strict: bool = False,
        changed: Callable[[], Awaitable[None]] = anyio.sleep_forever,
    ) -> NoReturn:
        """Report for as long as we run: on each new connection, when there is news, and every cycle.

        Args:
            event: See `report`.
            status: Makes it.
            limit_s: See `report`.
            strict: See `report`.
            changed: Returns when there is news.
        """
        while True:
            await self._up.wait()
            over = self._connection.over if self._connection else anyio.Event()
            with suppress(RetryableError):
                await self.report(event, status(), limit_s=limit_s, strict=strict)
            with anyio.move_on_after(CYCLE_S):
                await _first_of(changed, over.wait)

    async def connected(self) -> None:
        """Wait until there is a connection."""
        await self._up.wait()

    def mute(self, muted: bool) -> None:
        """Leave the Loop and stay away, or come back."""
        self._muted = muted
        if muted and self._connection is not None:
            self._connection.end()
        if not muted:
            self._unmuted.set()
            self._unmuted = anyio.Event()

    def renew(self, why: str) -> None:
        """Give the connection up, log in anew and make another one: the Loop does not know us any more."""
        if self._connection is None or self._connection.over.is_set():
            return
        self._stale = True
        self._note(why)
        self._connection.end()

    async def _attempt(self) -> None:
        """One connection, if we are not to be silent, and a pause after it."""
        if self._muted:
            await self._unmuted.wait()
        try:
            await self._connect()
        except RemoteError as exc:
            self._stale = True
            self._note(str(exc))
        else:
            if self._ends or self._muted:
                return
            self._note("the connection has ended")
        await anyio.sleep(self._patience.pause())

    async def _connect(self) -> None:
        """One connection, until it is over."""
        await self._loop.ready()
        await self._enter()
        headers = {"organization": self._place.organization, "project": self._place.project, "nodeType": self._kind}
        if cookies := self._loop.cookies:
            headers["Cookie"] = cookies
        context = await to_thread.run_sync(self._loop.tls)
        async with connected(self._loop.url, context, headers, self._hearing.hear) as connection:
            if self._muted or self._ends:
                return
            self._stale = False
            self._connection = connection
            self._up.set()
            try:
                await connection.over.wait()
            finally:
                self._connection = None
                self._up = anyio.Event()

    async def _enter(self) -> None:
        if not self._stale:
            await self._loop.login()
            return
        try:
            await self._loop.renew()
        except AuthError:
            if self._loop.options.username:
                raise  # where a guest gets no cookie, one may still be let in without

    def _settle(self) -> None:
        self._patience = Patience()
        if self._trouble != "":
            _log.info("The Loop knows this node kind=%s", self._kind)
        self._trouble = ""

    def _note(self, why: str) -> None:
        level = logging.DEBUG if self._trouble else logging.WARNING
        self._trouble = why
        _log.log(level, "The Loop's socket is down and will be opened again: %s kind=%s", why, self._kind)

    async def _restart(self, *_: Any) -> wire.Ack:
        await anyio.sleep_until(self._since + LEAST_UP_S)
        self._ends = True
        return wire.Ack(success=True)

    def _leave_if_over(self) -> None:
        if self._ends and self._connection is not None:
            self._connection.end()  # what leaves the connection runs after what waits for the answer


def accepted(event: str, ack: wire.Ack | None) -> None:
    """Whether the Loop has taken what it was told.

    Raises:
        RetryableError: It has not, or does not say so.
    """
    if ack is None or not ack.success:
        why = shown((ack and ack.error_msg) or "no reason given", ())
        raise RetryableError(f"the Loop does not accept {event}: {why}")


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Patience:
    """How long to wait before the next attempt: twice as long each time, and never the same."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def pause(self) -> float:
        """Seconds."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, MOST_S)
        return pause_s * random.uniform(0.5, 1)


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Until one of them has come to its end."""
    async with anyio.create_task_group() as tasks:

        async def until(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            tasks.cancel_scope.cancel()

        for wait in waits:
            tasks.start_soon(until, wait)
