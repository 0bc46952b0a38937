"""An Nx server with the AI Manager as a platform."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from loopcore import abc
from loopcore.abc import CapabilityT
from loopcore.errors import RemoteError
from loopcore.http import Client
from loopcore.types import Problem
from loopcore_nx.options import PlatformOptions


class Platform(abc.Platform):
    """One server. So far it can be asked whether it is there."""

    Options = PlatformOptions
    options: PlatformOptions

    def __init__(self, options: PlatformOptions) -> None:
        super().__init__(options)
        self._client = Client(options.url, ca=options.ca, timeout_s=options.timeout, insecure=options.insecure)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._client:
            yield self

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:  # noqa: ARG002 - it has none yet
        return None

    async def check(self) -> Sequence[Problem]:
        try:
            await self._client.request("GET", "api/ping", attempts=2)
        except RemoteError as exc:
            return [Problem(message=f"the Nx server does not answer: {exc}")]
        return []
