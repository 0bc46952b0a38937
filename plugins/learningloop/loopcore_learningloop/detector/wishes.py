"""How clients of all releases say what is to be done with an image (`learning-loop.md` 4.1, 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from loopcore.types import Keep
from loopcore_learningloop.tolerant import CAMERA, CREATED, read_tags, read_time, writable

_log = logging.getLogger(__name__)

AUTOUPLOAD = {"filtered": Keep.SELECTED, "all": Keep.ALL, "disabled": Keep.NONE}


class Wish(Struct, frozen=True, kw_only=True):
    """What is to be done with an image besides looking at it.

    Attributes:
        camera: Which camera took it.
        tags: To be kept with it.
        source: Where it came from.
        created: When it was taken, in UTC; `None` if nobody says, or not in a way that can be read.
        told: The same in the client's words.
        keep: Whether it may go to the Loop.
    """

    camera: str | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    created: datetime | None = None
    told: str | None = None
    keep: Keep = Keep.SELECTED


def wish_of(said: Mapping[str, Any], keep: Keep) -> Wish:
    """Put a wish together.

    Args:
        said: What the client says, by name.
        keep: What it says of `autoupload`.
    """
    told = next((writable(str(said[name])) for name in CREATED if said.get(name)), None)
    camera = next((str(said[name]) for name in CAMERA if said.get(name) is not None), None)
    source = said.get("source")
    return Wish(
        camera=camera,
        tags=tuple(read_tags(said.get("tags"))),
        source=None if source is None else str(source),
        created=_time(told) if told else None,
        told=told,
        keep=keep,
    )


def _time(text: str) -> datetime | None:
    try:
        return read_time(text)
    except ValueError as exc:
        _log.debug("A client's creation date is left out: %s value=%s", exc, text[:100])
        return None


def now() -> str:
    """The present, as an answer tells it where the client did not say when the image was taken."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
