"""An HTTP request as the reference's clients write it, and its answer. Without a framework: this is the hot path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from loopcore.forms import Field, read_body, read_form

JSON = "application/json"
_MAX_HEADER = 2000
_json = msgspec.json.Encoder()
_BASIC = ((b"content-type", JSON.encode()),)


class Gone(Exception):  # noqa: N818 - it is no error
    """The client has gone away before its request was whole; nobody reads an answer."""


class Request:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self._receive = receive

    def said(self, names: Mapping[bytes, str]) -> dict[str, str]:
        """What the client says under these names, be it in headers or in the query; a header counts more.

        Args:
            names: In lower case, as bytes and as text.
        """
        query: bytes = self.scope["query_string"]
        said = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}
        for name, value in self.scope["headers"]:
            if name in names:
                said[names[name]] = _text(value)
        return said

    async def body(self) -> bytes:
        """All of it.

        Raises:
            Gone: The client has gone away.
        """
        body = await read_body(self._receive)
        if body is None:
            raise Gone
        return body

    async def word(self) -> str:
        """A body that is one word, whatever its media type; curl sends it as a form, others as JSON."""
        return (await self.body()).decode("utf-8", "replace").strip().strip('"')

    async def form(self) -> list[Field]:
        """The parts of a form; none if the body is no form at all.

        Raises:
            FrameError: The form is damaged.
            Gone: The client has gone away.
        """
        body = await self.body()
        kind = next((value.decode("latin-1") for name, value in self.scope["headers"] if name == b"content-type"), "")
        return read_form(body, kind) if kind.lower().startswith("multipart/form-data") else []


class Answer(Struct):
    """An answer, with its body as it goes out."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = _BASIC

    async def send(self, send: Send) -> None:
        size = (b"content-length", b"%d" % len(self.body))
        await send({"type": "http.response.start", "status": self.status, "headers": [*self.headers, size]})
        await send({"type": "http.response.body", "body": self.body})


def answer_json(content: object, status: int = 200, **headers: str | None) -> Answer:
    """JSON, with further headers: `retry_after="1"` is `Retry-After: 1`, and `None` is none."""
    return Answer(_json.encode(content), status, (*_BASIC, *_further(headers)) if headers else _BASIC)


def answer_text(text: str, media: str = "text/plain; charset=utf-8", **headers: str | None) -> Answer:
    """Text of any kind."""
    return Answer(text.encode(), 200, ((b"content-type", media.encode()), *_further(headers)))


def invalid(place: str, name: str, message: str, kind: str, value: Any = None) -> Answer:
    """422 in the form that the reference's framework gives it."""
    return answer_json({"detail": [{"type": kind, "loc": [place, name], "msg": message, "input": value}]}, 422)


def _text(value: bytes) -> str:
    """A header's value: UTF-8, or what clients took for it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _further(headers: Mapping[str, str | None]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers.items():
        if value is not None:
            yield name.replace("_", "-").encode(), _plain(value)


def _plain(value: str) -> bytes:
    """As a header may hold it."""
    return "".join(char if " " <= char <= "~" else "?" for char in value[:_MAX_HEADER]).encode()
