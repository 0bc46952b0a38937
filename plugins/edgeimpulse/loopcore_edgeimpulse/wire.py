"""The messages of the Edge Impulse Studio API, as far as they are used."""

from __future__ import annotations

from msgspec import Struct


class KeyInfo(Struct, frozen=True):
    """`GET /api/projects/api-key-info`."""

    success: bool
    error: str = "no reason given"
