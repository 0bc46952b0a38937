"""What a campaign has found, and where it works."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msgspec import Struct, field

from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.errors import ConfigError

Progress = Callable[[int], None]
"""Is told how much has been done since it was told last."""

_PREFIX = f"loopcore-torture-{os.getpid()}-"
_MEMORY = "/dev/shm"  # noqa: S108 - only a place; what is made in it is made by tempfile
_MEMORY_BYTES = 1 << 28  # a container often has only 64 MB of it
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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

    @contextmanager
    def trying(self, what: object) -> Iterator[None]:
        """Whatever an outbox does in this block that it should not, is told as a story."""
        try:
            yield
        except BrokenPromiseError as exc:
            self.note(exc.kind, f"{what}: {exc}")
        except Exception as exc:  # noqa: BLE001 - as the docstring says
            self.note("error", f"{what}: {type(exc).__name__}: {exc}")

    @property
    def row(self) -> tuple[str, str, int, int, int, int, str]:
        """For the table: campaign, count, lost, half, sent again, anything else, seconds."""
        lost, half, again = (self.broken[kind] for kind in ("lost", "half", "again"))
        other = self.broken.total() - lost - half - again
        return (self.campaign, f"{self.count:,} {self.what}", lost, half, again, other, f"{self.seconds:.0f}")


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """A new folder in a place, which is removed after the block.

    Args:
        place: By default in memory, where there is room in it: for a disk that is played.

    Raises:
        ConfigError: It cannot be made there.
    """
    with ExitStack() as stack:
        try:
            with interrupts_held():
                made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place or _memory(), ignore_cleanup_errors=True)
                folder = stack.enter_context(made)
        except OSError as exc:
            raise ConfigError(f"cannot make a folder in {place}: {exc.strerror or exc}") from exc
        yield Path(folder)


def _memory() -> str | None:
    with suppress(OSError):
        if os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES:
            return _MEMORY
    return None


@contextmanager
def interrupts_held() -> Iterator[None]:
    """What would end this process waits until the end of the block. A process that is started in it never hears of any
    such thing: who has started it ends it, too.
    """
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # inherited; another thread here may still be told
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
