"""How loopcore talks HTTP to a peer: verified, bounded, and with every failure translated into the error tree.

Only this module knows httpx and aiohttp by their errors. A `Client` belongs to one peer; what it is told of secrets it
shows to nobody else: not to another host, not over plain http, not in an error.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx
import stamina
from anyio import AsyncContextManagerMixin

from loopcore.errors import AuthError, ConfigError, RejectedError, RemoteError, RetryableError
from loopcore.options import Secret

MAX_ANSWER = 1_000_000
MAX_RETRY_AFTER_S = 3600.0
_SHOWN = 300
_MAX_HOPS = 5
_KEEPALIVE_S = 4.0  # below the 5 s after which uvicorn and node close an idle connection under our request
_CHUNK = 1 << 16
_LARGE = 1 << 20  # above it aiohttp wants the body in pieces
_NO_CREDENTIALS = frozenset({401, 403, 407})
_NOT_FINAL = frozenset({404, 405, 408, 421, 425, 429})
_TRANSFER_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"})


class Client(AsyncContextManagerMixin):
    """All exchanges with one peer.

    Args:
        url: Where the peer is: `http` or `https`, without credentials. Paths of requests are below it.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        timeout_s: How long one request may take, all in all.
        insecure: Send secrets over plain http to another machine. TLS is verified all the same.
        token: Sent as `Authorization: Bearer`.
        headers: Sent with each request; values that are `Secret`, and those of well-known names, are kept secret.
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
        bulk: bool = False,
        connections: int = 10,
    ) -> None:
        given: dict[str, str | Secret] = dict(headers or {})
        if token is not None:
            given["Authorization"] = Secret(f"Bearer {token.reveal()}")
        self._headers = {name: _plain(name, value) for name, value in given.items()}
        secrets = [self._headers[name] for name, value in given.items() if _is_secret(name, value)]
        self._hidden = [*secrets, *([token.reveal()] if token else [])]
        self._url = _peer(url, secret=bool(secrets), insecure=insecure)
        self._ca = ca
        self._timeout_s = timeout_s
        self._bulk = bulk
        self._connections = connections

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        context = _tls(self._url, self._ca)
        direct = _is_loopback(self._url.host) or not _is_proxied(self._url)
        self._failures: tuple[type[Exception], ...] = (httpx.HTTPError, OSError)
        self._by_aiohttp = self._bulk and direct and _on_asyncio()
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_KEEPALIVE_S,
        )
        async with httpx.AsyncClient(
            verify=context,
            limits=limits,
            timeout=httpx.Timeout(self._timeout_s, connect=min(self._timeout_s, 10.0)),
            headers={"User-Agent": "loopcore", "Accept-Encoding": "identity", **self._headers},
            transport=self._aiohttp(context, limits) if self._by_aiohttp else None,
            trust_env=not direct,
        ) as self._http:
            yield self

    def _aiohttp(self, context: ssl.SSLContext, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
        import aiohttp
        from httpx_aiohttp import AiohttpTransport

        def session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(
                ssl=context, limit=limits.max_connections or 0, keepalive_timeout=limits.keepalive_expiry
            )
            return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

        self._failures = (*self._failures, aiohttp.ClientError)
        return AiohttpTransport(client=session)

    async def request(
        self,
        method: str,
        path: str = "",
        *,
        content: bytes | None = None,
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
        request = self._http.build_request(
            method, self._below(path), content=content, json=json, data=data, files=files, params=params,
            headers=headers,
        )  # fmt: skip
        request = self._streamed(request, await request.aread())

        async def attempt() -> httpx.Response:
            response = await self._exchange(request, limit, timeout_s or self._timeout_s)
            if response.status_code not in expect and (error := translate(response, hide=self._hidden)):
                raise error
            return response

        if attempts == 1:
            return await attempt()
        retrying = stamina.AsyncRetryingCaller(attempts=attempts, timeout=None, wait_initial=0.1, wait_max=2.0)
        return await retrying(RetryableError, attempt)

    def _below(self, path: str) -> httpx.URL:
        if not path:
            return self._url
        start, _, query = path.partition("?")
        base = self._url.path.rstrip("/") + "/" + start.lstrip("/")
        return self._url.copy_with(path=base, query=query.encode() or None)

    def _streamed(self, request: httpx.Request, body: bytes) -> httpx.Request:
        if not body or (self._by_aiohttp and len(body) <= _LARGE):
            return request
        return httpx.Request(
            request.method, request.url, headers=request.headers, stream=_Body(body), extensions=request.extensions
        )

    async def _exchange(self, request: httpx.Request, limit: int, timeout_s: float) -> httpx.Response:
        try:
            with anyio.fail_after(timeout_s):
                return await self._follow(request, limit)
        except TimeoutError as exc:
            raise RetryableError(f"{_named(request)} got no answer within {timeout_s:g} s") from exc
        except self._failures as exc:
            raise RetryableError(f"{_named(request)} failed: {_shown(_cause(exc), self._hidden)}") from exc

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


def translate(response: httpx.Response, *, hide: Iterable[str] = ()) -> RemoteError | None:
    """What an answer means: the error to raise, or `None` for 2xx.

    Args:
        response: It has been read.
        hide: What must not show in the message, even if the peer repeats it.
    """
    status = response.status_code
    if response.is_success:
        return None
    said = _shown(response.content.decode(errors="replace"), hide)  # the charset is the peer's word
    message = f"{_named(response.request)} answered {status}" + (f": {said}" if said else "")
    if status in _NO_CREDENTIALS:
        return AuthError(message, status=status)
    if response.is_redirect:
        target = redacted(response.headers.get("location", ""))
        return RetryableError(f"{message}, and sends us to {_shown(target, hide)}; is the URL right?", status=status)
    if 400 <= status < 500 and status not in _NOT_FINAL:
        return RejectedError(message, status=status)
    return RetryableError(message, status=status, retry_after_s=retry_after(response.headers.get("retry-after")))


def retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """The seconds that a `Retry-After` asks for, as number or as date; at most an hour, `None` if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else _until(value, now or datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def redacted(url: str) -> str:
    """A URL as it may be shown: without credentials, without its query."""
    start, mark, _ = url.partition("?")
    scheme, slashes, rest = start.partition("//") if "//" in start else ("", "", start)
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}{'?…' if mark else ''}"


def _until(date: str, now: datetime) -> float:
    moment = parsedate_to_datetime(date)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()


def _peer(url: str, *, secret: bool, insecure: bool) -> httpx.URL:
    try:
        peer = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigError(f"{redacted(url)!r} is not a URL: {exc}", key="url") from None
    if peer.scheme not in {"http", "https"} or not peer.host:
        raise ConfigError(f"expected an http or https URL, got {redacted(url)!r}", key="url")
    if peer.userinfo:
        raise ConfigError(f"{redacted(url)} holds credentials; use the options for secrets", key="url")
    if secret and peer.scheme == "http" and not insecure and not _is_loopback(peer.host):
        raise ConfigError(f"a secret would go to {redacted(url)} unencrypted; use https, or set insecure", key="url")
    return peer


def _tls(url: httpx.URL, ca: Path | None) -> ssl.SSLContext:
    if url.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and costs no reading of certificates
    if ca is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"cannot read certificates from {ca}: {exc.strerror or exc}", key="ca") from exc


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


class _Body(httpx.AsyncByteStream):
    """A body in pieces, which can be sent again. No generator: trio warns of one that is broken off."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self._body)


class _Pieces:
    def __init__(self, body: bytes) -> None:
        self._rest = memoryview(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        piece, self._rest = self._rest[:_CHUNK], self._rest[_CHUNK:]
        return bytes(piece)


def _shown(text: str, hide: Iterable[str]) -> str:
    for secret in hide:
        text = text.replace(secret, "…") if secret else text
    short = text.strip()[:_SHOWN]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)


def _cause(failure: BaseException) -> str:
    """The words of the innermost error that has any: what was wrong with a certificate lies below three others."""
    words = type(failure).__name__
    seen: BaseException | None = failure
    while seen is not None:
        words = str(seen) or words
        seen = seen.__cause__ or seen.__context__
    return words


def _named(request: httpx.Request) -> str:
    return f"{request.method} {redacted(str(request.url))}"


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_secret(name: str, value: str | Secret) -> bool:
    return isinstance(value, Secret) or name.lower() in _SECRET_HEADERS


def _plain(name: str, value: str | Secret) -> str:
    text = value.reveal() if isinstance(value, Secret) else value
    if not (text.isascii() and text.isprintable()):
        raise ConfigError(f"the value for the header {name} has characters that no header can hold", key="headers")
    return text


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_proxied(url: httpx.URL) -> bool:
    return not {url.scheme, "all"}.isdisjoint(getproxies()) and not proxy_bypass(url.host)


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
