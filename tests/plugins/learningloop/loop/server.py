"""The server itself: a thread with an event loop, that can be killed and started again on its port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from secrets import token_hex
from threading import Thread
from typing import Any, Self, TypeVar

import anyio
import socketio
import uvicorn
from anyio import AsyncContextManagerMixin

from loop import samples
from loop.api import application
from loop.books import Book, Signal
from loop.entries import Connection, DetectionsUpload, ModelUpload, Report, Upload
from loop.faults import Call, Desk, Faults, Protocol
from loop.sockets import PING_S, Sockets
from loop.store import Store

T = TypeVar("T")

START_S = 10


class LoopServer(AsyncContextManagerMixin):
    """A Learning Loop on loopback, for nodes in this process and in others.

    It runs in a thread, so that tests on asyncio and trio, and those that block, all reach it. Its store and its books
    outlive `down`.

    Args:
        accounts: Usernames and passwords.
        guests: Whether empty credentials get a cookie too.
        old: Whether it is of before 2025: without the routes for a detector's status and target.
        ping_s: How often sockets are pinged. Nodes are told 25 s, and give up 20 s after that.

    Attributes:
        store: What it holds; tests change it as they like. The projects of 14.3 are there.
        faults: What calls are told to answer.
        refuses: Asked of each sample that is otherwise in order; true: 422.
        arrivals: Every request and every event, as it begins; its body may not have come yet.
        calls: The same, at the moment of its answer.
        logins: The accounts, one entry for each login that went well.
        uploads: Samples that were stored; those that came again are in `duplicates`, bad ones in `refused`.
        detectors: Status of detectors, by REST (`detectors`) and by socket (`update_detector`).
        trainers: Status of trainers.
        trainings: What trainers said of their trainings (`update_training`).
        annotators: Status of annotators.
        annotations: Outlines that annotators sent.
        complaints: Whatever came that the protocol does not know; a node's test ends with none.
    """

    def __init__(
        self,
        *,
        accounts: dict[str, str] | None = None,
        guests: bool = False,
        old: bool = False,
        ping_s: float = PING_S,
    ) -> None:
        self.accounts = {"ranger": "krill"} if accounts is None else accounts
        self.guests = guests
        self.old = old
        self.sessions: dict[str, str] = {}
        self.store = Store()
        self.faults = Faults()
        self.refuses: Callable[[Upload], bool] = lambda _: False
        self.arrivals: Book[Call] = Book("arrivals")
        self.calls: Book[Call] = Book("calls")
        self.logins: Book[str] = Book("logins")
        self.uploads: Book[Upload] = Book("uploads")
        self.duplicates: Book[Upload] = Book("duplicates")
        self.refused: Book[Upload] = Book("refused uploads")
        self.model_uploads: Book[ModelUpload] = Book("model uploads")
        self.detections: Book[DetectionsUpload] = Book("detections")
        self.connections: Book[Connection] = Book("connections")
        self.disconnections: Book[Connection] = Book("disconnections")
        self.detectors: Book[Report] = Book("status of detectors")
        self.trainers: Book[Report] = Book("status of trainers")
        self.trainings: Book[Report] = Book("status of trainings")
        self.annotators: Book[Report] = Book("status of annotators")
        self.annotations: Book[Report] = Book("annotations")
        self.complaints: Book[str] = Book("complaints")
        self.sockets = Sockets(self, ping_s)
        self._port = 0

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        await self.start()
        samples.demo(self.store)
        samples.annotator(self.store)
        try:
            yield self
        finally:
            await self.kill()

    @property
    def host(self) -> str:
        """As `LOOP_HOST` has it: `127.0.0.1:port`."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def demo(self) -> str:
        return samples.DEMO

    async def start(self) -> None:
        """Listen; after `kill`, on the same port."""
        listening = socket.socket(proto=socket.IPPROTO_TCP)  # named, or asyncio does not turn off Nagle's algorithm
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        self.store.host = self.host
        started: Future[None] = Future()
        self._thread = Thread(target=asyncio.run, args=[self._live(listening, started)], name="loop", daemon=True)
        self._thread.start()
        with anyio.fail_after(START_S):
            await across(started)

    async def kill(self) -> None:
        """End at once: connections are reset, requests in progress never answered."""
        self._loop.call_soon_threadsafe(self._server.ended.set)
        with anyio.CancelScope(shield=True), anyio.fail_after(START_S):
            await anyio.to_thread.run_sync(self._thread.join)

    @asynccontextmanager
    async def down(self) -> AsyncGenerator[None]:
        """For the length of the block nobody listens."""
        await self.kill()
        try:
            yield
        finally:
            await self.start()

    def open_session(self, account: str) -> str:
        """A new cookie's value."""
        token = token_hex()
        self.sessions[token] = account
        return token

    def expire_sessions(self) -> None:
        """Each cookie that was given gets 401 from now on."""
        self.sessions.clear()

    def account(self, call: Call) -> str | None:
        """Who is logged in, by the cookies of a request."""
        return self.sessions.get(call.cookies.get("session", ""))

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop, and wait for what it returns."""
        return await across(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _live(self, listening: socket.socket, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.faults.enter()
        app = socketio.ASGIApp(self.sockets.enter(), application(self), socketio_path="/ws/socket.io")
        config = uvicorn.Config(
            Desk(app, self.faults, self.arrivals, self.calls, self.account),
            http=Protocol,
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=30,
        )
        self._server = _Server(config, started)
        await self._server.serve([listening])


class _Server(uvicorn.Server):
    """Says when it listens, and ends at once."""

    def __init__(self, config: uvicorn.Config, started: Future[None]) -> None:
        super().__init__(config)
        self._listens = started
        self.ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listens.set_result(None)

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        listening = [one for server in self.servers for one in server.sockets]
        for one in listening:
            asyncio.get_running_loop().remove_reader(one)
        await _turns()  # what the system has accepted becomes a connection: a server that is closed leaves it half made
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await _turns()


async def _turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def across(future: Future[T]) -> T:
    """The result of a future of another thread, awaited on asyncio or trio."""
    signal = Signal()
    future.add_done_callback(lambda _: signal.set())
    await signal.wait()
    return future.result()
