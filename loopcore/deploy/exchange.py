"""What every exchange with a platform has around it: a limit, and an owner for what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from anyio import CancelScope, current_time
from msgspec import Struct

from loopcore.errors import AuthError, LoopcoreError, PluginError, RetryableError, first

ASK_S = 60.0
"""How long a platform may take to answer a question."""

FETCH_S = 6 * 3600.0
"""How long a download or an upload may take in all; a platform's client gives up sooner on one that stands still."""

MOST_ASKED_S = 3600.0
"""A peer that asks for more patience does not get it."""


@contextmanager
def exchange(platform: str, limit_s: float = ASK_S) -> Iterator[None]:
    """Around one call of a platform.

    Raises:
        LoopcoreError: What the platform raised.
        RetryableError: It took longer than the limit.
        PluginError: In place of what a platform may not raise.
    """
    scope = CancelScope(deadline=current_time() + limit_s)
    try:
        with scope:
            yield
    except Exception as exc:
        # The driver guard: what a platform raises unforeseen is its fault, and only the end of this exchange.
        error = first(exc)
        if isinstance(error, LoopcoreError):
            raise error from error.__cause__
        raise PluginError(f"the platform {platform!r} failed: {error!r}", plugin=platform) from exc
    if scope.cancelled_caught:
        raise RetryableError(f"the platform {platform!r} has not answered for {limit_s:g} s")


class Patience(Struct):
    """How long to leave a peer alone after failures in a row: a limit that doubles up to a ceiling, with jitter.

    Attributes:
        first_s: The limit after the first failure.
        ceiling_s: The highest limit; where a person must mend something, the first one too.
        failures: In a row.
    """

    first_s: float = 5.0
    ceiling_s: float = 300.0
    failures: int = 0

    def wait_s(self, error: Exception, random: Random) -> float:
        """Count a failure; how long to wait after it, at least as long as the peer asked for."""
        self.failures += 1
        limit = min(self.ceiling_s, self.first_s * 2 ** min(self.failures - 1, 60))
        if isinstance(error, AuthError):
            limit = self.ceiling_s
        asked = error.retry_after_s if isinstance(error, RetryableError) else None
        wait_s: float = max(limit * random.uniform(0.5, 1), min(asked or 0.0, MOST_ASKED_S))
        return wait_s
