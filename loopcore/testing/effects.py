"""What a piece of code does to the world, as CPython's audit events tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

_EVENTS = frozenset({"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "sqlite3.connect", "subprocess.Popen"})
_CODE = (".py", ".pyc", ".so", ".zip")
_watching: dict[int, list[str]] = {}
_installed: list[bool] = []


@contextmanager
def effects() -> Iterator[list[str]]:
    """Collect what this thread does inside the block: files opened or changed, sockets, databases, processes.

    The reading of Python's own modules does not count.
    """
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_note)  # for the life of the process: there is no way to take one away
    seen: list[str] = []
    _watching[get_ident()] = seen
    try:
        yield seen
    finally:
        del _watching[get_ident()]


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or (seen := _watching.get(get_ident())) is None:
        return
    if event not in _EVENTS and not event.startswith("socket."):
        return
    if event == "open" and str(arguments[0]).endswith(_CODE):
        return
    seen.append(f"{event} {arguments[0]}" if arguments else event)
