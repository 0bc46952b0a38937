"""The sink `http`: one POST for each sample.

The request is `multipart/form-data` with two parts: `sample`, the JSON of `SampleInfo`, and `image`, the bytes of the
picture with its media type. The header `Idempotency-Key` is the sample's id: a sample may come twice, and must count
once.

Any 2xx but a web page means that the receiver has the sample for good, and 409 that it had it before. A JSON object as
the answer may say more: `id`, the receiver's name for the sample; `duplicate`; and `accepted` or `success`, where
`false` refuses the sample for good, with the reason in `why`, `error`, `message` or `detail`. Other statuses mean what
`loopcore.http` says.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
import msgspec
from msgspec import Meta, field

from loopcore.abc import Sink
from loopcore.errors import RemoteError, RetryableError
from loopcore.http import Client, redacted
from loopcore.options import Duration, Options, Secret
from loopcore.types import Delivered, Problem, Receipt, Refused, Sample

_ANSWERS_OF_A_POST_ONLY_URL = frozenset({400, 405, 411, 415, 422, 501})
_MAX_SAID = 1000


class HttpSinkOptions(Options, frozen=True, kw_only=True):
    """Options of the sink `http`.

    Attributes:
        url: Where each sample is posted to.
        token: Sent as `Authorization: Bearer`.
        headers: Sent with each request, and not secret.
        secret_headers: Sent with each request, and secret.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        insecure: Send secrets over plain http to another machine.
        timeout: How long one request may take.
        in_flight: How many requests are under way at a time.
    """

    url: str
    token: Secret | None = None
    headers: dict[str, str] = field(default_factory=dict)
    secret_headers: dict[str, Secret] = field(default_factory=dict)
    ca: Path | None = None
    insecure: bool = False
    timeout: Duration = Duration(30)
    in_flight: Annotated[int, Meta(ge=1, le=64)] = 32


class HttpSink(Sink):
    """Posts samples to a URL over connections that are kept open."""

    Options = HttpSinkOptions
    options: HttpSinkOptions

    def __init__(self, options: HttpSinkOptions) -> None:
        super().__init__(options)
        self.in_flight = options.in_flight
        self.timeout_s = options.timeout + 1.0  # the client's own limit comes first, and says more
        self._client = Client(
            options.url,
            ca=options.ca,
            timeout_s=options.timeout,
            insecure=options.insecure,
            token=options.token,
            headers={**options.headers, **options.secret_headers},
            bulk=True,
            connections=options.in_flight,
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._client:
            yield self

    async def check(self) -> Sequence[Problem]:
        try:
            await self._client.request("HEAD", expect=_ANSWERS_OF_A_POST_ONLY_URL)
        except RemoteError as exc:
            return [Problem(message=str(exc))]
        return ()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        return [await self._post(sample) for sample in samples]

    async def _post(self, sample: Sample) -> Receipt:
        info = sample.info
        response = await self._client.request(
            "POST",
            files=[
                ("sample", (None, msgspec.json.encode(info), "application/json")),
                ("image", (info.id, sample.image, info.media)),
            ],
            headers={"Idempotency-Key": info.id},
            expect={409},
        )
        return _receipt(response)


def _receipt(response: httpx.Response) -> Receipt:
    if response.is_success and "html" in response.headers.get("content-type", ""):
        url = redacted(str(response.url))
        raise RetryableError(f"{url} answered with a web page; is the URL right, or does the network want a login?")
    said = _object(response.content)
    if response.is_success and (said.get("accepted") is False or said.get("success") is False):
        reasons = (said[key] for key in ("why", "error", "message", "detail") if said.get(key))
        return Refused(why=str(next(reasons, "the receiver gives no reason"))[:_MAX_SAID])
    remote_id = said.get("id")
    return Delivered(
        remote_id=str(remote_id)[:_MAX_SAID] if isinstance(remote_id, (str, int)) else None,
        duplicate=response.status_code == 409 or said.get("duplicate") is True,
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
