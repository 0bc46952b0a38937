"""What a campaign has found, and where it works."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, field

Progress = Callable[[int], None]
"""Is told how much has been done since it was told last."""

_MEMORY = "/dev/shm"  # noqa: S108 - only a place; what is made in it is made by tempfile


class Finding(Struct):
    """A line of the table.

    Attributes:
        campaign: Its name.
        count: How many states or rounds.
        what: What it counts, in the plural.
        seconds: How long it took.
        broken: How often which promise was broken; the kinds are those of `BrokenPromiseError`, and `error`.
        stories: How the first of them came about.
        detail: What else there is to say.
    """

    campaign: str
    what: str
    count: int = 0
    seconds: float = 0.0
    broken: Counter[str] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)
    detail: str = ""

    def note(self, kind: str, story: str) -> None:
        """A promise was broken."""
        self.broken[kind] += 1
        if len(self.stories) < 3:
            self.stories.append(story)

    @property
    def row(self) -> tuple[str, str, int, int, int, int, str]:
        """For the table: campaign, count, lost, half, sent again, anything else, seconds."""
        named = [self.broken[kind] for kind in ("lost", "half", "again")]
        other = self.broken.total() - sum(named)
        return (self.campaign, f"{self.count:,} {self.what}", *named, other, f"{self.seconds:.0f}")  # type: ignore[return-value]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in memory, where there is one: what is tried there is a disk that is played, not the real one."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="loopcore-torture-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
