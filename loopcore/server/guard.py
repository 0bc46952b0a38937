"""Who may call: Host and Origin are checked for every verb and every websocket, then the token.

A page from elsewhere must not reach a node on the loopback through its reader's browser. A foreign `Origin` tells such
a page; a foreign `Host` tells a name that was bent to this address after the page was loaded (DNS rebinding). A node
that answers to any name (`allowed_hosts = ["*"]`) cannot tell the latter: only a token keeps such a page out.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loopcore.config import ServerTable

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What a supervisor asks without a token: one word each, no data."""

_MAX_DIGITS = 18  # of a length; int() has a limit of its own, with an error


class Guard:
    """An ASGI application in front of another, which lets through what may pass."""

    def __init__(self, app: ASGIApp, table: ServerTable) -> None:
        self._app = app
        self._max_body = table.max_body
        self._token = table.token.reveal().encode() if table.token else None
        self._pages = frozenset(name.lower() for name in table.allowed_hosts) - {"*"}
        self._any_name = "*" in table.allowed_hosts
        self._names = self._pages | {"localhost", table.host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            status, sentence = refusal
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
            await JSONResponse({"error": "Refused", "message": sentence}, status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        hosts: list[str] = []
        origins: list[str] = []
        token = ""
        for name, value in scope["headers"]:  # once, and by hand: every request comes by here
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name == b"content-length":
                if len(value) > _MAX_DIGITS or int(value) > self._max_body:
                    return 413, f"the body is larger than {self._max_body} bytes, the limit of [server] max_body"
            elif name == b"origin":
                origins.append(value.decode("latin-1"))
            elif name == b"authorization":
                token = value.decode("latin-1")
        if len(hosts) > 1:
            return 400, "a request has one Host header"
        host = hosts[0] if hosts else ""
        if not self._knows(_host_name(host)):
            return 403, "this node is not known by that name; add it to [server] allowed_hosts"
        if origins and not all(self._is_own(origin, host) for origin in origins):
            return 403, "pages from elsewhere may not call this node"
        if self._token and scope["path"] not in OPEN_PATHS and not self._is_token(token):
            return 401, "send the node's token as 'Authorization: Bearer …'"
        return None

    def _knows(self, host: str) -> bool:
        return self._any_name or host in self._names or _is_address(host)

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc.lower() == host.lower() or parts.hostname in self._pages

    def _is_token(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        return (
            self._token is not None
            and scheme.lower() == "bearer"
            and hmac.compare_digest(token.strip().encode(), self._token)
        )


def _host_name(header: str) -> str:
    """The name in a Host header, in lower case, without the port."""
    if header.startswith("["):
        return header.partition("]")[0].removeprefix("[").lower()
    return header.partition(":")[0].lower()


@lru_cache(maxsize=256)
def _is_address(host: str) -> bool:
    """An address cannot be bent to another machine, so it needs no list."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
