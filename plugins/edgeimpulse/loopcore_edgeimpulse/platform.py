"""Edge Impulse as a platform."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import msgspec

from loopcore import abc
from loopcore.abc import CapabilityT
from loopcore.errors import RemoteError
from loopcore.http import Client
from loopcore.types import Problem
from loopcore_edgeimpulse.options import PlatformOptions
from loopcore_edgeimpulse.wire import KeyInfo


class Platform(abc.Platform):
    """One project of Edge Impulse. So far it can be asked whether it takes our key."""

    Options = PlatformOptions
    options: PlatformOptions

    def __init__(self, options: PlatformOptions) -> None:
        super().__init__(options)
        self._client = Client(
            options.url,
            ca=options.ca,
            timeout_s=options.timeout,
            insecure=options.insecure,
            headers={"x-api-key": options.api_key},
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._client:
            yield self

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:  # noqa: ARG002 - it has none yet
        return None

    async def check(self) -> Sequence[Problem]:
        try:
            response = await self._client.request("GET", "api/projects/api-key-info", attempts=2)
            info = msgspec.json.decode(response.content, type=KeyInfo)
        except RemoteError as exc:
            return [Problem(message=f"Edge Impulse does not answer as it should: {exc}")]
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            return [Problem(message=f"the answer is not Edge Impulse's, is the URL right? ({exc})")]
        if not info.success:  # failures of the application come with status 200
            return [Problem(message=f"Edge Impulse refuses the key: {info.error}")]
        return []
