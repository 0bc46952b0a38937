"""What the detector does not do, and why, in the client's terms."""

from __future__ import annotations

from loopcore.errors import (
    BusyError,
    FrameError,
    LoopcoreError,
    NotReadyError,
    StorageError,
)


class Refusal(LoopcoreError):  # noqa: N818 - it is an answer
    """The client asked for what there is not.

    Args:
        message: What, and what there is.
        status: The HTTP status that says the same.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: LoopcoreError) -> int:
    """The HTTP status that says the same as an error."""
    match error:
        case Refusal(status=status) | FrameError(status=status):
            return status
        case NotReadyError():
            return 503
        case BusyError():
            return 429
        case StorageError():
            return 507
    return 500


def retry_after(error: LoopcoreError) -> str | None:
    """When to ask again, in seconds, where that makes sense."""
    return str(max(1, round(error.retry_after_s))) if isinstance(error, NotReadyError | BusyError) else None
