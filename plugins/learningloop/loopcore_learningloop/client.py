"""Calls to a Loop, with its login (`learning-loop.md` 2.1).

Logging in is lazy: the first call does it. A 401 means that the session is over: whoever meets one forgets the cookies
and logs in again, once for all calls that met the same 401, and repeats its call once.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import anyio
import httpx
import msgspec
from anyio import AsyncContextManagerMixin
from msgspec import Struct

from loopcore.errors import AuthError, ConfigError, RejectedError, RemoteError, RetryableError
from loopcore.http import Answer, Body, Client, redacted, tls
from loopcore_learningloop.options import LoopOptions

T = TypeVar("T")

MAX_LISTING = 64_000_000
"""Of an answer that lists ids, images or models: 1.5 million ids."""

_NO_SUCH_CALL = frozenset({404, 405})
_PATIENCE_S = 5.0  # the reference's, where the Loop says nothing
_MOST_PATIENCE_S = 30.0


class _Session(Struct, frozen=True, kw_only=True, eq=False):
    """One login, or the want of one; a new one takes its place after each attempt."""

    open: bool
    error: RemoteError | None = None


class Loop(AsyncContextManagerMixin):
    """One Loop. All that talks to it shares the login and the connections.

    Args:
        options: Where it is, and the account.
        connections: How many requests may be under way at a time.
        tries: How often to make a call in all while the Loop answers 429.

    Raises:
        ConfigError: The URL is none, half of the credentials is missing, or the password would go over plain http.
    """

    def __init__(self, options: LoopOptions, *, connections: int = 10, tries: int = 4) -> None:
        if bool(options.username) != bool(options.password):
            raise ConfigError("username and password belong together", key="username")
        self.url = options.url.rstrip("/")
        self.options = options
        self._tries = tries
        self._client = Client(
            f"{self.url}/api",
            ca=options.ca,
            timeout_s=options.timeout,
            insecure=options.insecure,
            secrets=[options.password] if options.password else [],
            bulk=True,
            connections=connections,
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._session = _Session(open=not self.options.username)
        self._logging_in = anyio.Lock()
        async with self._client:
            yield self

    async def ready(self) -> None:
        """Ask whether the Loop is ready, without logging in.

        Raises:
            RemoteError: It is not, or nobody answers.
        """
        await self._client.request("GET", "status")

    async def login(self) -> None:
        """Log in now, unless that has been done; without credentials nothing happens.

        Raises:
            AuthError: The Loop refuses.
            RetryableError: It did not answer.
        """
        await self._opened()

    async def renew(self) -> None:
        """Log in anew: what the Loop knew of us may be lost.

        Raises:
            AuthError: The Loop refuses.
            RetryableError: It did not answer.
        """
        await self._renewed(self._session)

    @property
    def cookies(self) -> str:
        """The session, as the value of a `Cookie` header; empty before a login."""
        return self._client.cookies

    def tls(self) -> ssl.SSLContext:
        """What verifies the Loop's certificate and its host name, for connections besides this one."""
        return tls(self.url, self.options.ca)

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: Body | None = None,
        params: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        limit: int = MAX_LISTING,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Make a call; the arguments are those of `Client.request`.

        Raises:
            RemoteError: As there. A 429 comes out after some tries, or at once where the Loop asks for much patience.
        """
        encoded = None if json is None else Body([msgspec.json.encode(json)], "application/json")

        async def send() -> httpx.Response:
            return await self._client.request(
                method,
                path,
                content=content or encoded,
                params=params,
                expect=expect,
                limit=limit,
                timeout_s=timeout_s,
            )

        return await self._patient(send)

    async def get(
        self, path: str, shape: type[T], *, params: Mapping[str, str] | None = None, limit: int = MAX_LISTING
    ) -> T:
        """Get JSON of a shape.

        Raises:
            RetryableError: What came is not of that shape: a web page, another version of the Loop.
            RemoteError: As `call`.
        """
        query = f"?{urlencode(params, safe=',')}" if params else ""
        async with self.stream(path + query) as answer:
            body = await answer.read(limit)
        return decoded(f"GET {path}", body, shape)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Answer]:
        """Get, and read piece by piece; the arguments are those of `Client.stream`.

        Raises:
            RemoteError: As `call`.
        """
        async with AsyncExitStack() as stack:

            async def send() -> Answer:
                stream = self._client.stream(path, headers=headers, expect=expect, timeout_s=timeout_s)
                return await stack.enter_async_context(stream)

            yield await self._patient(send)

    async def _patient(self, send: Callable[[], Awaitable[T]]) -> T:
        for left in reversed(range(self._tries)):
            try:
                return await self._recognized(send)
            except RetryableError as exc:
                wait_s = _PATIENCE_S if exc.retry_after_s is None else exc.retry_after_s
                if exc.status != 429 or not left or wait_s > _MOST_PATIENCE_S:
                    raise
            await anyio.sleep(wait_s)
        raise ValueError("a Loop needs one try at least")

    async def _recognized(self, send: Callable[[], Awaitable[T]]) -> T:
        session = await self._opened()
        try:
            return await send()
        except AuthError as exc:
            if exc.status != 401:
                raise
        await self._renewed(session)
        return await send()

    async def _opened(self) -> _Session:
        session = self._session
        return session if session.open else await self._renewed(session)

    async def _renewed(self, seen: _Session) -> _Session:
        """A later session than this one: the one that another call has opened meanwhile, or else a new one."""
        async with self._logging_in:
            if self._session is not seen:
                if self._session.error:
                    raise self._session.error
                return self._session
            self._client.forget_cookies()
            try:
                await self._log_in()
            except RemoteError as exc:
                # A guest who is not let in may still call what takes no cookie.
                self._session = _Session(open=not self.options.username, error=exc)
                raise
            self._session = _Session(open=True)
            return self._session

    async def _log_in(self) -> None:
        name = self.options.username or ""
        password = self.options.password.reveal() if self.options.password else ""
        try:
            # Without an account too: a Loop that knows guests gives them a cookie.
            await self._client.request("POST", "login", data={"username": name, "password": password})
        except RemoteError as exc:
            where = redacted(self.url)
            if name and isinstance(exc, (AuthError, RejectedError)):
                message = f"{where} does not let {name!r} in; are username and password right? ({exc})"
                raise AuthError(message, status=exc.status) from exc
            if not name and (isinstance(exc, (AuthError, RejectedError)) or exc.status in _NO_SUCH_CALL):
                message = f"{where} wants a login: set username and password ({exc})"
                raise AuthError(message, status=exc.status) from exc
            raise
        if name and not self._client.cookies:
            raise RetryableError(f"{redacted(self.url)} let {name!r} in without a cookie; is this a Learning Loop?")


def decoded(call: str, body: bytes, shape: type[T]) -> T:
    """The answer to a call, in JSON.

    Raises:
        RetryableError: It is not of that shape.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RetryableError(f"{call} answered what no Learning Loop answers: {exc}") from exc
