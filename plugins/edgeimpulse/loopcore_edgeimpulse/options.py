"""What `[[platforms]] driver = "edgeimpulse"` takes."""

from __future__ import annotations

from pathlib import Path

from loopcore import Duration, Options, Secret


class PlatformOptions(Options, frozen=True, kw_only=True):
    """Options of the platform `edgeimpulse`.

    Attributes:
        api_key: A key of the project.
        url: The Studio API.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        insecure: Send secrets over plain http to another machine.
        timeout: How long one request may take.
    """

    api_key: Secret
    url: str = "https://studio.edgeimpulse.com/v1"
    ca: Path | None = None
    insecure: bool = False
    timeout: Duration = Duration(10)
