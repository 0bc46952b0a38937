"""uvicorn as a part of the node: it gets a bound socket, and it ends when the node says so."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import uvicorn
from anyio import CancelScope, create_task_group, fail_after, sleep, sleep_forever
from msgspec import Struct

from loopcore.errors import ConfigError, PluginError
from loopcore.hookspecs import Mount
from loopcore.server.patience import PatientProtocol
from loopcore.server.requests import Requests

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from starlette.types import ASGIApp

_log = logging.getLogger(__name__)

GRACE_S = 1.0
"""How long running requests may take to end by themselves when the node stops; then they are cancelled."""

BEGIN_S = 10.0
"""How long a plugin may take until what it needs beside its requests has begun."""

HARD_S = 60
"""How long after that uvicorn waits for a request that heeds no cancellation, before it gives up on it."""


class Listener(Struct, frozen=True):
    """A bound socket and the address under which it is reached."""

    socket: socket.socket
    url: str

    async def serve(self, app: ASGIApp, mounts: Sequence[Mount] = (), *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled; running requests may then end within their grace. None is left when this returns.

        Args:
            app: The application.
            mounts: Of those that are part of it, what goes on beside the requests is begun before and ended after them.
            task_status: Told once the server listens.

        Raises:
            PluginError: What goes on beside a mount's requests cannot begin.
        """
        requests = Requests(app)
        config = uvicorn.Config(
            requests,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=PatientProtocol,
            timeout_graceful_shutdown=HARD_S,
            **_websockets(),
        )
        server = _Server(config, requests, task_status.started)
        async with create_task_group() as group:
            group.start_soon(server.stop_when_cancelled)
            with CancelScope(shield=True):
                async with create_task_group() as beside:
                    for mount in mounts:
                        if mount.run:
                            with fail_after(BEGIN_S):
                                await beside.start(_beside, mount, mount.run, name=f"mount {mount.path}")
                    await server.serve(sockets=[self.socket])
                    beside.cancel_scope.cancel()
            group.cancel_scope.cancel()


class _Noted:
    """A task status that remembers."""

    def __init__(self, task_status: TaskStatus[None]) -> None:
        self._task_status = task_status
        self.begun = False

    def started(self, _: object = None) -> None:
        self.begun = True
        self._task_status.started()


async def _beside(mount: Mount, run: Callable[..., Awaitable[None]], *, task_status: TaskStatus[None]) -> None:
    noted = _Noted(task_status)
    try:
        await run(task_status=noted)
    except Exception as exc:
        # The plugin's guard: whatever it raises is its own end, and the server goes on.
        if not noted.begun:
            raise PluginError(f"what {mount.path} needs beside its requests cannot begin: {exc!r}") from exc
        _log.exception("What went on beside a plugin's requests has failed path=%s", mount.path)


def _websockets() -> dict[str, Any]:
    """uvicorn speaks websocket where the library is installed; a plugin that needs it requires it."""
    if find_spec("websockets") is None:
        return {"ws": "none"}
    from loopcore.server.messages import MESSAGE_BYTES, PatientSocket

    # Pictures cannot be made smaller by it, and arrays only at a cost above that of sending them.
    return {"ws": PatientSocket, "ws_max_size": MESSAGE_BYTES, "ws_per_message_deflate": False}


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
