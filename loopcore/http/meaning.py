"""What an answer means, and how much of an exchange may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from loopcore.errors import AuthError, RejectedError, RemoteError, RetryableError

MAX_RETRY_AFTER_S = 3600.0
_SHOWN = 300
_NO_CREDENTIALS = frozenset({401, 403, 407})
_NOT_FINAL = frozenset({404, 405, 408, 421, 425, 429})


def translate(response: httpx.Response, *, hide: Iterable[str] = ()) -> RemoteError | None:
    """What an answer means: the error to raise, or `None` for 2xx.

    Args:
        response: It has been read.
        hide: What must not show in the message, even if the peer repeats it.
    """
    status = response.status_code
    if response.is_success:
        return None
    said = shown(response.content.decode(errors="replace"), hide)  # the charset is the peer's word
    message = f"{named(response.request)} answered {status}" + (f": {said}" if said else "")
    if status in _NO_CREDENTIALS:
        return AuthError(message, status=status)
    if response.is_redirect:
        target = redacted(response.headers.get("location", ""))
        return RetryableError(f"{message}, and sends us to {shown(target, hide)}; is the URL right?", status=status)
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


def shown(text: str, hide: Iterable[str]) -> str:
    """The start of a text, without secrets and without characters that a terminal would obey."""
    for secret in hide:
        text = text.replace(secret, "…") if secret else text
    short = text.strip()[:_SHOWN]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)


def cause(failure: BaseException) -> str:
    """The words of the innermost error that has any: what was wrong with a certificate lies below three others."""
    words = type(failure).__name__
    seen: BaseException | None = failure
    while seen is not None:
        words = str(seen) or words
        seen = seen.__cause__ or seen.__context__
    return words


def named(request: httpx.Request) -> str:
    """A request in a sentence."""
    return f"{request.method} {redacted(str(request.url))}"


def _until(date: str, now: datetime) -> float:
    moment = parsedate_to_datetime(date)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
