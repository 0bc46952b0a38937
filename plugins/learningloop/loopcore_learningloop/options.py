"""What `[[platforms]] driver = "learningloop"` takes."""

from __future__ import annotations

from pathlib import Path

from loopcore import Duration, Options, Secret


class PlatformOptions(Options, frozen=True, kw_only=True):
    """Options of the platform `learningloop`.

    Attributes:
        organization: The organization's id.
        project: The project's id.
        url: The Loop, without `/api`.
        username: The account; what the node asks for so far needs none.
        password: Its password.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        insecure: Send secrets over plain http to another machine.
        timeout: How long one request may take.
    """

    organization: str
    project: str
    url: str = "https://learning-loop.ai"
    username: str | None = None
    password: Secret | None = None
    ca: Path | None = None
    insecure: bool = False
    timeout: Duration = Duration(10)
