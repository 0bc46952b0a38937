"""What a sink's answer or error amounts to."""

from __future__ import annotations

from collections.abc import Sequence

from loopcore.errors import PluginError, RejectedError
from loopcore.types import Delivered, Receipt, Refused

_NOT_FINAL = frozenset({401, 403, 404, 405, 408, 421, 425, 429})


def check_receipts(receipts: Sequence[Receipt], count: int) -> None:
    """One receipt for each sample.

    Raises:
        PluginError: The sink gave something else.
    """
    if len(receipts) != count or not all(isinstance(receipt, (Delivered, Refused)) for receipt in receipts):
        raise PluginError(f"for {count} samples the sink gave {len(receipts)} answers, or such that are no receipts")


def is_final(exc: RejectedError) -> bool:
    """Whether this may be the sample's fault: without status, or a 4xx that time, place or login do not mend."""
    return exc.status is None or (400 <= exc.status < 500 and exc.status not in _NOT_FINAL)
