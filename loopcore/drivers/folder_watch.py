"""Finding pictures in a folder: those that are whole, and again only what has changed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Container, Sequence
from fnmatch import translate
from hashlib import blake2b
from pathlib import Path
from stat import S_ISREG

from msgspec import Struct, field

_UNFINISHED = ("~", ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload")
_WHOLE_S = 60.0
_WHOLE_SHARE = 200  # a whole look may take this part of the time between two
_TICK_NS = 2_000_000_000  # a folder that changed this recently may change again without showing it


class Found(Struct, frozen=True):
    """A file that has come to rest. `mark` stands for its name, size and time of change."""

    path: Path
    inner: Path
    size: int
    changed_ns: int
    mark: str


class Look(Struct, frozen=True, kw_only=True):
    """What one look has found.

    Attributes:
        found: Files at rest, in order of their paths.
        waiting: How many more are still being written.
        present: The marks of all files there are; `None` if only changes were looked at.
    """

    found: list[Found]
    waiting: int
    present: set[str] | None


class _Folder(Struct):
    changed_ns: int = -1
    folders: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    waiting: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # size, change, seen so since


class FolderWatch:
    """Looks at a folder when asked to. Blocking; one call at a time.

    A file is at rest once its size and time of change have stayed for `settle_s`. Hidden names, names of unfinished
    files and links are left out. A folder whose own time of change stands still is not listed again; a file that was
    overwritten in place does not change it, and is found by a whole look, once a minute or less often.

    Args:
        root: The folder.
        patterns: Globs for names, in any case of letters.
        recursive: Look into folders below, too.
        settle_s: How long a file must rest.
        outside: A folder that does not take part.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        root: Path,
        patterns: Sequence[str],
        *,
        recursive: bool,
        settle_s: float,
        outside: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._wanted = re.compile("|".join(translate(pattern.lower()) for pattern in patterns))
        self._recursive = recursive
        self._settle_s = settle_s
        self._outside = outside
        self._clock = clock
        self._folders: dict[Path, _Folder] = {}
        self._whole_due = clock()

    def look(self, done: Container[str]) -> Look:
        """Find files at rest whose marks are not among the `done`, new or changed since the last look.

        Raises:
            OSError: The folder cannot be read.
        """
        began = self._clock()
        present: set[str] | None = set() if began >= self._whole_due else None
        if present is not None:
            self._folders = {inner: _Folder(waiting=folder.waiting) for inner, folder in self._folders.items()}
        visited = {}
        found: list[Found] = []
        waiting = 0
        todo = [Path()]
        while todo:
            inner = todo.pop()
            try:
                folder, names = self._visit(inner)
            except OSError:
                if inner == Path():
                    raise
                continue
            visited[inner] = folder
            found += self._settled(inner, folder, names, done, present)
            waiting += len(folder.waiting)
            todo += [inner / name for name in folder.folders]
        self._folders = visited
        if present is not None:
            now = self._clock()
            self._whole_due = now + max(_WHOLE_S, _WHOLE_SHARE * (now - began))
        return Look(found=sorted(found, key=lambda each: each.path), waiting=waiting, present=present)

    def again(self, found: Found) -> None:
        """It was not at rest after all: wait for it."""
        folder = self._folders.get(found.inner.parent)
        if folder is not None:
            folder.waiting[found.inner.name] = (-1, -1, self._clock())

    def _visit(self, inner: Path) -> tuple[_Folder, set[str]]:
        """A folder, listed again if it has changed, and the names in it that must be looked at."""
        path = self._root / inner
        folder = self._folders.setdefault(inner, _Folder())
        changed_ns = path.stat().st_mtime_ns
        if changed_ns == folder.changed_ns:
            return folder, set(folder.waiting)
        files, folders = set(), []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if self._recursive and path / entry.name != self._outside:
                        folders.append(entry.name)
                elif self._is_wanted(entry.name):
                    files.add(entry.name)
        fresh = files - folder.files | (files & folder.waiting.keys())
        folder.files, folder.folders = files, sorted(folders)
        folder.waiting = {name: seen for name, seen in folder.waiting.items() if name in files}
        folder.changed_ns = changed_ns if abs(time.time_ns() - changed_ns) > _TICK_NS else -1
        return folder, fresh

    def _settled(
        self, inner: Path, folder: _Folder, names: set[str], done: Container[str], present: set[str] | None
    ) -> list[Found]:
        found = []
        for name in names:
            try:
                status = (self._root / inner / name).lstat()
            except OSError:
                folder.waiting.pop(name, None)
                continue
            if not S_ISREG(status.st_mode):
                continue
            mark = _mark(inner / name, status)
            if present is not None:
                present.add(mark)
            if mark in done:
                folder.waiting.pop(name, None)
            elif self._rests(folder, name, status):
                size, changed_ns = status.st_size, status.st_mtime_ns
                found.append(Found(self._root / inner / name, inner / name, size, changed_ns, mark))
        return found

    def _rests(self, folder: _Folder, name: str, status: os.stat_result) -> bool:
        now = self._clock()
        size, changed_ns, since = folder.waiting.pop(name, (-1, -1, now))
        if (size, changed_ns) != (status.st_size, status.st_mtime_ns):
            since = now
        rests = time.time() - status.st_mtime >= self._settle_s or now - since >= self._settle_s
        if not rests:
            folder.waiting[name] = status.st_size, status.st_mtime_ns, since
        return rests

    def _is_wanted(self, name: str) -> bool:
        lower = name.lower()
        return self._wanted.match(lower) is not None and not lower.endswith(_UNFINISHED)


def unchanged(found: Found) -> bool:
    """Whether the file is still the one that was found."""
    try:
        status = found.path.lstat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (found.size, found.changed_ns)


def _mark(inner: Path, status: os.stat_result) -> str:
    identity = f"{inner.as_posix()}\0{status.st_size}\0{status.st_mtime_ns}"
    return blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
