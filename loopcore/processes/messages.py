"""What a process that runs a driver's method is asked, and what it says: JSON, on descriptors of their own."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from loopcore.abc import Score

MESSAGE_BYTES = 4_000_000


class Request(Struct, frozen=True, kw_only=True):
    """What is to be run.

    Attributes:
        module: The module of the driver's class.
        file: Where that module is, for one that cannot be imported by its name: a single-file plugin.
        name: The class's qualified name.
        what: The driver, for people.
        options: Its table, secrets included.
        method: The method.
        paths: Those of its arguments that are paths.
        values: All others.
        line: The descriptor for the messages; what can be read from it is that the end is wanted.
    """

    module: str
    file: str | None
    name: str
    what: str
    options: dict[str, Any]
    method: str
    paths: dict[str, str]
    values: dict[str, Any]
    line: int


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="progress"):
    """A call of `Report`."""

    progress: float
    message: str = ""
    score: Score | None = None
    metrics: dict[str, float] = {}


class Returned(Struct, frozen=True, kw_only=True, tag="returned"):
    """The method has returned this; a path as text."""

    value: Any = None
    is_path: bool = False


class Raised(Struct, frozen=True, kw_only=True, tag="raised"):
    """The method has raised an error of `loopcore.errors`, or it has become one."""

    error: str
    message: str


Message: TypeAlias = Progress | Returned | Raised

_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

encode = msgspec.json.Encoder().encode
decode = _messages.decode
decode_request = msgspec.json.Decoder(Request).decode
