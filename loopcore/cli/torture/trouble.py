"""What a disk may do instead of what it is asked."""

from __future__ import annotations

import os


class KilledError(BaseException):
    """The process ended."""


def no_trouble(kind: str) -> None:
    """All is well."""


class Kill:
    """The process is killed after so many steps."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, kind: str) -> None:  # noqa: ARG002 - at any
        self._after -= 1
        if self._after < 0:
            raise KilledError

    def __repr__(self) -> str:
        return f"Kill({self._after})"

    def copy(self) -> Kill:
        """The same, from the start."""
        return Kill(self._after)


class Trouble:
    """The disk fails at one kind of step: the so-and-so-manieth, and perhaps from then on.

    Attributes:
        struck: Whether it has.
    """

    def __init__(self, kind: str, code: int, after: int, lasting: bool) -> None:
        self._words = (kind, code, after, lasting)
        self._kind = kind
        self._code = code
        self._after = after
        self._lasting = lasting
        self.struck = False

    def __call__(self, kind: str) -> OSError | None:
        if kind != self._kind:
            return None
        self._after -= 1
        if self._after == -1 or (self._lasting and self._after < 0):
            self.struck = True
            return OSError(self._code, os.strerror(self._code))
        return None

    def __repr__(self) -> str:
        return f"Trouble{self._words}"

    def copy(self) -> Trouble:
        """The same, from the start."""
        return Trouble(*self._words)
