"""What `[[platforms]] driver = "nx"` takes."""

from __future__ import annotations

from pathlib import Path

from loopcore import Duration, Options, Secret


class PlatformOptions(Options, frozen=True, kw_only=True):
    """Options of the platform `nx`.

    Attributes:
        url: The VMS server.
        username: A local account of the server; what the node asks for so far needs none.
        password: Its password.
        ca: A file of certificates (PEM) that are trusted instead of the public ones: a server signs its own.
        insecure: Send secrets over plain http to another machine.
        timeout: How long one request may take.
    """

    url: str = "https://localhost:7001"
    username: str | None = None
    password: Secret | None = None
    ca: Path | None = None
    insecure: bool = False
    timeout: Duration = Duration(10)
