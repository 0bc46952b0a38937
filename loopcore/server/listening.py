"""uvicorn as a part of the node: it gets a bound socket, and it ends when the node says so."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from anyio import CancelScope, create_task_group, sleep, sleep_forever
from msgspec import Struct

from loopcore.errors import ConfigError
from loopcore.server.patience import PatientProtocol
from loopcore.server.requests import Requests

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from starlette.types import ASGIApp

GRACE_S = 1.0
"""How long running requests may take to end by themselves when the node stops; then they are cancelled."""

HARD_S = 60
"""How long after that uvicorn waits for a request that heeds no cancellation, before it gives up on it."""

MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest websocket message: a 4K picture as an array is 25 MB, and uvicorn's own limit is 16 MiB."""


class Listener(Struct, frozen=True):
    """A bound socket and the address under which it is reached."""

    socket: socket.socket
    url: str

    async def serve(self, app: ASGIApp, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled; running requests may then end within their grace. None is left when this returns."""
        requests = Requests(app)
        config = uvicorn.Config(
            requests,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=PatientProtocol,
            ws_max_size=MESSAGE_BYTES,
            timeout_graceful_shutdown=HARD_S,
        )
        server = _Server(config, requests, task_status.started)
        async with create_task_group() as group:
            group.start_soon(server.stop_when_cancelled)
            with CancelScope(shield=True):
                await server.serve(sockets=[self.socket])
            group.cancel_scope.cancel()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, requests: Requests, up: Callable[[], None]) -> None:
        super().__init__(config)
        self._requests = requests
        self._up = up

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the node's affair."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async with create_task_group() as group:
            group.start_soon(self._end_requests)
            await super().shutdown(sockets)
            group.cancel_scope.cancel()

    async def _end_requests(self) -> None:
        await sleep(GRACE_S)
        await self._requests.end()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # what is still open waits for a client that does not read

    async def stop_when_cancelled(self) -> None:
        try:
            await sleep_forever()
        finally:
            self.should_exit = True


def listen(host: str, port: int) -> Listener:
    """Bind the server's socket before anything else starts.

    Raises:
        ConfigError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror or exc}", key="server.port") from exc
    bound.setblocking(False)
    number = bound.getsockname()[1]
    return Listener(bound, f"http://{f'[{host}]' if ':' in host else host}:{number}")
