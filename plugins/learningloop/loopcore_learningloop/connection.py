"""One connection to the Loop over Socket.IO, from its hand-shake to its end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeAlias
from urllib.parse import urlsplit

import aiohttp
import anyio
import engineio
import socketio
from anyio import CancelScope
from engineio.base_client import connected_clients

from loopcore.errors import RetryableError
from loopcore.http.meaning import shown
from loopcore.http.peer import is_loopback
from loopcore_learningloop import fence
from loopcore_learningloop.fence import BoundedClient, BoundedResponse

PATH = "/ws/socket.io"
CONNECT_S = 20.0
"""How long a hand-shake may take, all in all."""

_REQUEST_S = 10.0
_ANSWER_S = 5.0  # for the Loop's word that we are in, once the transport stands
_FLUSH_S = 1.0  # so long an acknowledgement may take to leave
_LEAVE_S = 2.0

Hear: TypeAlias = Callable[..., Awaitable[Any]]
"""Called with an event's name and arguments; what it returns is the acknowledgement."""


class Connection:
    """A connection that stands.

    Attributes:
        over: Set when it has ended, for whatever reason.
    """

    def __init__(self, client: BoundedClient) -> None:
        self._client = client
        self._waiting: set[_Answer] = set()
        self._turn = anyio.Lock()
        self.over = anyio.Event()
        client.on("disconnect", self._lost)

    async def call(self, event: str, *args: Any, limit_s: float) -> Any:
        """Emit an event, and return what it is acknowledged with.

        Raises:
            RetryableError: No acknowledgement came within `limit_s`, or the connection ended first.
        """
        if self.over.is_set():
            raise RetryableError(f"{event} did not reach the Loop: the connection has ended")
        answer = _Answer()
        self._waiting.add(answer)
        try:
            with anyio.fail_after(limit_s):
                async with self._turn:  # the library wants one at a time
                    await self._client.emit(event, args, callback=answer.came)
                await answer.there.wait()
        except TimeoutError:
            raise RetryableError(f"the Loop did not acknowledge {event} within {limit_s:g} s") from None
        except socketio.exceptions.SocketIOError as exc:
            raise RetryableError(f"{event} did not reach the Loop: {exc}") from exc
        finally:
            self._waiting.discard(answer)
            self._client.forget(answer.came)
        if answer.lost:
            raise RetryableError(f"the connection to the Loop ended before {event} was acknowledged")
        return answer.value

    def watch(self) -> None:
        """End when the library's loops do: an error in one of them is told to nobody."""
        engine = self._client.engine
        for task in (engine.read_loop_task, engine.write_loop_task):
            if task is None:
                self.end()
            else:
                task.add_done_callback(lambda _: self.end())

    async def _lost(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        """Whoever waits for something on this connection waits no longer."""
        self.over.set()
        for answer in self._waiting:
            answer.lose()


class _Answer:
    def __init__(self) -> None:
        self.there = anyio.Event()
        self.lost = False
        self.value: Any = None

    def came(self, *args: Any) -> None:
        self.value = args[0] if args else None
        self.there.set()

    def lose(self) -> None:
        if not self.there.is_set():
            self.lost = True
            self.there.set()


@asynccontextmanager
async def connected(
    url: str, context: ssl.SSLContext, headers: Mapping[str, str], hear: Hear
) -> AsyncGenerator[Connection]:
    """A connection for the length of the block. On asyncio only.

    Args:
        url: The Loop, without `/ws/socket.io`.
        context: How TLS is verified.
        headers: Of the hand-shake; cookies among them.
        hear: Gets the Loop's events, in a task of the library.

    Raises:
        RetryableError: The Loop cannot be reached, or does not let us in.
    """
    async with _session(url, context, headers) as http:
        client = BoundedClient(
            reconnection=False,
            handle_sigint=False,
            logger=fence.wire,
            engineio_logger=fence.wire,
            http_session=http,
            request_timeout=_REQUEST_S,
            websocket_extra_options={
                "timeout": aiohttp.ClientWSTimeout(ws_close=1.0),
                "max_msg_size": fence.MESSAGE_BYTES,
            },
        )
        client.on("*", hear)
        connection = Connection(client)
        try:
            await _shake_hands(client, url)
            connection.watch()
            yield connection
        finally:
            connection.end()
            with CancelScope(shield=True):
                await _leave(client)


async def _shake_hands(client: BoundedClient, url: str) -> None:
    refused: list[str] = []

    async def note(reason: Any = None) -> None:
        if reason:
            refused.append(str(reason.get("message", reason) if isinstance(reason, Mapping) else reason))

    client.on("connect_error", note)
    path = urlsplit(url).path.rstrip("/") + PATH
    try:
        with anyio.fail_after(CONNECT_S):
            await client.connect(url, socketio_path=path, wait_timeout=_ANSWER_S)
    except TimeoutError:
        raise RetryableError(f"the Loop's socket did not open within {CONNECT_S:g} s") from None
    except (socketio.exceptions.SocketIOError, engineio.exceptions.EngineIOError, aiohttp.ClientError, OSError) as exc:
        why = shown(refused[-1] if refused else str(exc), ())
        raise RetryableError(f"the Loop's socket did not open: {why}") from exc
    except fence.NONSENSE as exc:
        why = shown(f"{type(exc).__name__}: {exc}", ())
        raise RetryableError(f"the Loop's socket makes no sense: {why}") from exc


async def _leave(client: BoundedClient) -> None:
    """Say good-bye if there is somebody to hear it, and end what the library has started."""
    engine = client.engine
    if engine.state == "connected":
        with anyio.move_on_after(_FLUSH_S):
            await engine.queue.join()
    with anyio.move_on_after(_LEAVE_S):
        await client.disconnect()
    tasks = list(engine.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with suppress(ValueError):
        connected_clients.remove(engine)  # the library's list of all clients, for its signal handler


def _session(url: str, context: ssl.SSLContext, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_stay)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        response_class=BoundedResponse,
        headers={"User-Agent": "loopcore", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_S),
        trace_configs=[tracing],
        trust_env=not is_loopback(urlsplit(url).hostname or ""),
    )


async def _stay(*_: Any) -> NoReturn:
    """Our cookie goes nowhere else."""
    raise aiohttp.ClientError("it sends us elsewhere; is the URL right?")
