"""Answers that are read piece by piece, over httpx or, where many bytes move, over aiohttp itself.

httpx on top of aiohttp costs four times what aiohttp costs alone, which pictures by the thousand notice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import httpx
from msgspec import Struct

from loopcore.errors import RetryableError
from loopcore.http.meaning import cause, redacted, shown

if TYPE_CHECKING:
    import aiohttp


class Exchange(Struct, frozen=True, kw_only=True):
    """A request, as far as its failures are concerned.

    Attributes:
        method: The verb.
        url: Where it goes.
        failures: What the carrier raises when the connection does.
        hidden: Says what must not show.
        wait_s: How long to wait for any piece of the answer.
    """

    method: str
    url: str
    failures: tuple[type[Exception], ...]
    hidden: Callable[[], Collection[str]]
    wait_s: float

    def __str__(self) -> str:
        return f"{self.method} {redacted(self.url)}"

    def failed(self, failure: Exception) -> RetryableError:
        """The error to raise for a failure of the carrier."""
        return RetryableError(f"{self} failed: {shown(cause(failure), self.hidden())}")


class Answer(ABC):
    """An answer whose head has come.

    Attributes:
        status: The HTTP status.
        headers: By name, whatever its case.
    """

    status: int
    headers: Mapping[str, str]

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @abstractmethod
    async def _next(self) -> bytes:
        """The next bytes; none at the end."""

    @abstractmethod
    async def aclose(self) -> None:
        """Give the connection back, or break it off where there is more to come."""

    async def receive(self) -> bytes:
        """The next bytes of the body; none at its end.

        Raises:
            RetryableError: The connection broke, or nothing came for as long as the client waits for one request.
        """
        try:
            with anyio.fail_after(self._exchange.wait_s):
                return await self._next()
        except TimeoutError as exc:
            raise RetryableError(f"{self._exchange} stalled for {self._exchange.wait_s:g} s") from exc
        except self._exchange.failures as exc:
            raise self._exchange.failed(exc) from exc

    async def read(self, limit: int) -> bytes:
        """All of the body.

        Raises:
            RetryableError: The connection broke, or there are more than `limit` bytes.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self._next():
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise RetryableError(f"{self._exchange}: an answer of more than {limit} bytes; is the URL right?")
        except self._exchange.failures as exc:
            raise self._exchange.failed(exc) from exc
        return b"".join(pieces)


class ByHttpx(Answer):
    """The answer of an httpx client."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        super().__init__(exchange)
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._pieces = response.aiter_raw()

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")

    async def aclose(self) -> None:
        await self._response.aclose()
        with suppress(httpx.HTTPError, httpx.StreamError):  # trio warns of a generator that is broken off
            async for _ in self._pieces:
                pass


class ByAiohttp(Answer):
    """The answer of an aiohttp session."""

    def __init__(self, exchange: Exchange, response: aiohttp.ClientResponse) -> None:
        super().__init__(exchange)
        self.status = response.status
        self.headers = response.headers
        self._response = response

    async def _next(self) -> bytes:
        return await self._response.content.readany()

    async def aclose(self) -> None:
        self._response.release()
