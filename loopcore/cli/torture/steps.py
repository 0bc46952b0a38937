"""What can be asked of a disk, one step at a time."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class Create(Struct, frozen=True):
    """A new, empty file."""

    folder: str
    name: str
    file: int


class Write(Struct, frozen=True):
    file: int
    offset: int
    data: bytes


class Truncate(Struct, frozen=True):
    file: int
    size: int


class Sync(Struct, frozen=True):
    """`failed`: what was written so far may be lost for ever."""

    file: int
    failed: bool = False


class Rename(Struct, frozen=True):
    folder: str
    old: str
    new: str


class Unlink(Struct, frozen=True):
    folder: str
    name: str


class Mkdir(Struct, frozen=True):
    folder: str
    name: str


class SyncFolder(Struct, frozen=True):
    folder: str


class Commit(Struct, frozen=True):
    """An SQLite file as it is after a commit."""

    folder: str
    name: str
    data: bytes


Step: TypeAlias = Create | Write | Truncate | Sync | Rename | Unlink | Mkdir | SyncFolder | Commit
