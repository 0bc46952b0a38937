"""Models that failed for a reason that may pass, such as a device without room: each is left alone for a while."""

from __future__ import annotations

from itertools import islice
from random import Random

from anyio import current_time
from msgspec import Struct

from loopcore.deploy.exchange import Patience
from loopcore.deploy.identity import key_of
from loopcore.errors import LoopcoreError
from loopcore.types import ModelInfo

MOST = 100
"""The one that failed first is forgotten first."""

CEILING_S = 900.0
"""How long a model rests at most: each attempt may cost a download, and where the device has room for one model only, a
gap in the service."""


class _Rest(Struct):
    patience: Patience
    error: LoopcoreError
    until: float = 0.0


class Resting:
    """In memory alone: a restart is a reason to try again.

    Args:
        first_s: How long a model rests at most when it has failed for the first time; then twice as long, and so on.
        random: For the jitter.
    """

    def __init__(self, first_s: float, random: Random) -> None:
        self._first_s = first_s
        self._random = random
        self._rests: dict[str, _Rest] = {}

    def error(self, model: ModelInfo) -> LoopcoreError | None:
        """Why this model rests, if it does."""
        rest = self._rests.get(key_of(model))
        return rest.error if rest and current_time() < rest.until else None

    def failed(self, model: ModelInfo, error: LoopcoreError) -> int:
        """It has failed; how often in a row."""
        key = key_of(model)
        rest = self._rests.pop(key, None) or _Rest(Patience(first_s=self._first_s, ceiling_s=CEILING_S), error)
        rest.error = error
        rest.until = current_time() + rest.patience.wait_s(error, self._random)
        self._rests[key] = rest
        for oldest in list(islice(self._rests, max(0, len(self._rests) - MOST))):
            del self._rests[oldest]
        return rest.patience.failures

    def clear(self) -> None:
        """Try all of them again at once."""
        self._rests.clear()
