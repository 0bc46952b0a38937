"""How loopcore talks HTTP to a peer: verified, bounded, and with every failure translated into the error tree.

Only this package knows httpx and aiohttp by their errors. A `Client` belongs to one peer; what it is told of secrets it
shows to nobody else: not to another host, not over plain http, not in an error.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import httpx
import stamina
from anyio import AsyncContextManagerMixin

from loopcore.errors import RetryableError
from loopcore.http.answers import Answer, ByAiohttp, ByHttpx, Exchange
from loopcore.http.bodies import Body
from loopcore.http.meaning import cause, named, shown, translate
from loopcore.http.peer import is_loopback, is_proxied, is_secret, peer, plain, tls
from loopcore.options import Secret

if TYPE_CHECKING:
    import aiohttp

MAX_ANSWER = 1_000_000
_MAX_HOPS = 5
_KEEPALIVE_S = 4.0  # below the 5 s after which uvicorn and node close an idle connection under our request
_CONNECT_S = 10.0
_LARGE = 1 << 20  # above it aiohttp wants the body in pieces
_LEAST_HIDDEN = 8  # a cookie of "1" would hide every 1 of an error
_TOLD = frozenset({"location", "retry-after"})
_TRANSFER_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class Client(AsyncContextManagerMixin):
    """All exchanges with one peer. It keeps the peer's cookies.

    Args:
        url: Where the peer is: `http` or `https`, without credentials. Paths of requests are below it.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        timeout_s: How long one request may take, all in all.
        insecure: Send secrets over plain http to another machine. TLS is verified all the same.
        token: Sent as `Authorization: Bearer`.
        headers: Sent with each request; values that are `Secret`, and those of well-known names, are kept secret.
        secrets: What bodies of requests will hold; kept secret likewise.
        bulk: Many or large bodies will move: on asyncio aiohttp carries them, several times cheaper.
        connections: How many connections are open at a time; further requests wait for one.

    Raises:
        ConfigError: The URL is none, or a secret would go over plain http; from the constructor.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: Path | None = None,
        timeout_s: float = 30.0,
        insecure: bool = False,
        token: Secret | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        secrets: Collection[Secret] = (),
        bulk: bool = False,
        connections: int = 10,
    ) -> None:
        given: dict[str, str | Secret] = dict(headers or {})
        if token is not None:
            given["Authorization"] = Secret(f"Bearer {token.reveal()}")
        own = {name: plain(name, value) for name, value in given.items()}
        hidden = [own[name] for name, value in given.items() if is_secret(name, value)]
        hidden += [secret.reveal() for secret in secrets]
        self._secrets = [*hidden, *([token.reveal()] if token else [])]
        self._common = {"User-Agent": "loopcore", "Accept-Encoding": "identity", **own}
        self._url = peer(url, secret=bool(hidden), insecure=insecure)
        self._base = str(self._url.copy_with(query=None)).rstrip("/")
        self._ca = ca
        self._timeout_s = timeout_s
        self._bulk = bulk
        self._connections = connections

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        context = tls(self._url, self._ca)
        direct = is_loopback(self._url.host) or not is_proxied(self._url)
        self._failures: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.StreamError, OSError)
        self._session = self._aiohttp(context) if self._bulk and direct and _on_asyncio() else None
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_KEEPALIVE_S,
        )
        async with httpx.AsyncClient(
            verify=context,
            limits=limits,
            timeout=httpx.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_S)),
            headers=self._common,
            transport=_over(self._session, context) if self._session else None,
            trust_env=not direct,
        ) as self._http:
            yield self

    def _aiohttp(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        import aiohttp

        self._failures = (*self._failures, aiohttp.ClientError)
        connector = aiohttp.TCPConnector(ssl=context, limit=self._connections, keepalive_timeout=_KEEPALIVE_S)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx keeps them
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout_s, _CONNECT_S)),
            auto_decompress=False,
        )

    @property
    def cookies(self) -> str:
        """What the peer has set, as the value of a `Cookie` header; empty if nothing."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._http.cookies.jar)

    def forget_cookies(self) -> None:
        """Be a stranger to the peer again."""
        self._http.cookies.clear()

    async def request(
        self,
        method: str,
        path: str = "",
        *,
        content: bytes | Body | None = None,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        files: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        limit: int = MAX_ANSWER,
        timeout_s: float | None = None,
        attempts: int = 1,
    ) -> httpx.Response:
        """Ask, and read the whole answer.

        Redirects are followed within the peer only, and only where they repeat the request as it is.

        Args:
            method: The verb.
            path: Below the client's URL; empty: that URL itself.
            content: The body; or one of `json`, `data` and `files`, with httpx's meaning.
            json: See `content`.
            data: See `content`.
            files: See `content`.
            params: The query.
            headers: Beside the client's own.
            expect: Statuses besides 2xx that the caller wants to see instead of an error.
            limit: How many bytes the answer may have.
            timeout_s: In place of the client's.
            attempts: How often to try in all, within seconds, where an answer says to try again. For requests that
                change nothing.

        Raises:
            AuthError: 401, 403 or 407.
            RejectedError: Another 4xx that is final.
            RetryableError: All else: no answer, no answer in time, TLS, 3xx, 404, 405, 408, 421, 425, 429, 5xx.
        """
        body = content if isinstance(content, Body) else None
        request = self._http.build_request(
            method, self._below(path), content=None if isinstance(content, Body) else content, json=json, data=data,
            files=files, params=params, headers=headers,
        )  # fmt: skip
        request = _streamed(request, body) if body else self._large(request, await request.aread())

        async def attempt() -> httpx.Response:
            response = await self._exchange(request, limit, timeout_s or self._timeout_s)
            if response.status_code not in expect and (error := translate(response, hide=self._hidden())):
                raise error
            return response

        if attempts == 1:
            return await attempt()
        retrying = stamina.AsyncRetryingCaller(attempts=attempts, timeout=None, wait_initial=0.1, wait_max=2.0)
        return await retrying(RetryableError, attempt)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Answer]:
        """Get, and read the answer piece by piece. No redirect is followed.

        Args:
            path: Below the client's URL, quoted where need be.
            headers: Beside the client's own.
            expect: Statuses besides 2xx that the caller wants to see instead of an error.
            timeout_s: How long all of it may take, the caller's block included, in place of the client's limit.

        Raises:
            RemoteError: As `request`.
        """
        limit_s = timeout_s or self._timeout_s
        url = f"{self._base}/{path.lstrip('/')}"
        exchange = Exchange(method="GET", url=url, failures=self._failures, hidden=self._hidden, wait_s=self._timeout_s)
        with anyio.move_on_after(limit_s) as scope:
            answer = await self._open(exchange, headers or {})
            try:
                if not (200 <= answer.status < 300 or answer.status in expect):
                    raise await self._refusal(exchange, answer)
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise RetryableError(f"{exchange}: the answer is compressed, which was not asked for")
                yield answer
            finally:
                await answer.aclose()
        if scope.cancelled_caught:
            raise RetryableError(f"{exchange} got no whole answer within {limit_s:g} s")

    async def _open(self, exchange: Exchange, headers: Mapping[str, str]) -> Answer:
        try:
            if self._session is None:
                request = self._http.build_request(exchange.method, exchange.url, headers=headers)
                return ByHttpx(exchange, await self._http.send(request, stream=True))
            from yarl import URL

            own = {**self._common, **headers}
            if cookies := self.cookies:
                own["Cookie"] = cookies
            url = URL(exchange.url, encoded=True)
            return ByAiohttp(exchange, await self._session.get(url, headers=own, allow_redirects=False))
        except self._failures as exc:
            raise exchange.failed(exc) from exc

    async def _refusal(self, exchange: Exchange, answer: Answer) -> Exception:
        """The error for an answer that nobody expects; of its text the start will do."""
        said = bytearray()
        while len(said) < MAX_ANSWER and (piece := await answer.receive()):
            said += piece
        headers = {name: value for name, value in answer.headers.items() if name.lower() in _TOLD}
        request = httpx.Request(exchange.method, exchange.url)
        response = httpx.Response(answer.status, headers=headers, content=bytes(said[:MAX_ANSWER]), request=request)
        return translate(response, hide=self._hidden()) or exchange.failed(ValueError(f"status {answer.status}"))

    def _hidden(self) -> list[str]:
        cookies = [cookie.value or "" for cookie in self._http.cookies.jar]
        return [*self._secrets, *(value for value in cookies if len(value) >= _LEAST_HIDDEN)]

    def _below(self, path: str) -> httpx.URL:
        if not path:
            return self._url
        start, _, query = path.partition("?")
        base = self._url.path.rstrip("/") + "/" + start.lstrip("/")
        return self._url.copy_with(path=base, query=query.encode() or None)

    def _large(self, request: httpx.Request, body: bytes) -> httpx.Request:
        if not body or (self._session and len(body) <= _LARGE):
            return request
        return _streamed(request, Body([body]))

    async def _exchange(self, request: httpx.Request, limit: int, timeout_s: float) -> httpx.Response:
        try:
            with anyio.fail_after(timeout_s):
                return await self._follow(request, limit)
        except TimeoutError as exc:
            raise RetryableError(f"{named(request)} got no answer within {timeout_s:g} s") from exc
        except self._failures as exc:
            raise RetryableError(f"{named(request)} failed: {shown(cause(exc), self._hidden())}") from exc

    async def _follow(self, request: httpx.Request, limit: int) -> httpx.Response:
        hops = 0
        while True:
            response = await self._http.send(request, stream=True)
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise httpx.DecodingError("the answer is compressed, which was not asked for")
                body = await _read(response, limit)
            finally:
                await response.aclose()
            onward = response.next_request
            same = onward is not None and (onward.method, _origin(onward.url)) == (request.method, _origin(request.url))
            if onward is None or not same or hops == _MAX_HOPS:
                return _whole(response, body)
            request, hops = onward, hops + 1


def _over(session: aiohttp.ClientSession, context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    from httpx_aiohttp import AiohttpTransport

    return AiohttpTransport(verify=context, client=session)


def _streamed(request: httpx.Request, body: Body) -> httpx.Request:
    headers = request.headers.copy()
    if body.media:
        headers["content-type"] = body.media
    headers["content-length"] = str(body.length)
    return httpx.Request(request.method, request.url, headers=headers, stream=body, extensions=request.extensions)


async def _read(response: httpx.Response, limit: int) -> bytes:
    """Of an error's text the start will do; a longer answer than allowed is an error of its own."""
    body = bytearray()
    try:
        async for part in response.aiter_raw():  # unpacked, a small piece may become a gigabyte
            body += part
            if len(body) > limit:
                await response.aclose()  # and go on to the end, for trio warns of a generator that is broken off
    except httpx.HTTPError:
        if len(body) <= limit:
            raise
    if len(body) > limit and response.is_success:
        raise httpx.RemoteProtocolError(f"an answer of more than {limit} bytes; is the URL right?")
    return bytes(body[:limit])


def _whole(response: httpx.Response, body: bytes) -> httpx.Response:
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _TRANSFER_HEADERS]
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
