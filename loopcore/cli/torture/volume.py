"""A disk in memory: what was asked of it, step by step, and what of that a power cut may leave.

The rules are the weaker ones where POSIX and ext4 differ:

- What was written to a file and not synced is there or not, each block of 512 bytes or 4 KiB for itself; where it is
  not, there is what was there before, or zeroes if the file has grown. The file may have any length between the two.
- Names made, changed and removed in a folder and not synced are there or not, each for itself (ext4 keeps their order);
  a rename happens whole or not at all. Syncing a file does not make its name durable (on ext4 it does).
- After a sync that failed, what it was for stays in doubt, whatever is synced later.
- A commit of SQLite with `synchronous = FULL` is one step, and durable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

from msgspec import Struct

from loopcore.cli.torture.steps import Commit, Create, Mkdir, Rename, Step, Sync, SyncFolder, Truncate, Unlink, Write

_BLOCKS = (512, 4096)


@dataclass(slots=True)
class _File:
    durable: bytes = b""
    pending: list[Write | Truncate] = field(default_factory=list)
    in_doubt: bool = False


@dataclass(slots=True)
class _Folder:
    durable: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)
    pending: list[_Naming] = field(default_factory=list)


_Node: TypeAlias = _File | _Folder


class _Naming(Struct, frozen=True):
    """A name comes (`new`), goes (`old`) or changes (both)."""

    node: _File | _Folder
    old: str | None = None
    new: str | None = None

    def apply(self, names: dict[str, _Node]) -> None:
        if self.old is not None and names.get(self.old) is self.node:
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.node


class Image(Struct, frozen=True):
    """What is on a disk: files by path, relative to its root, and folders, each after the one that it is in."""

    files: dict[str, bytes]
    folders: tuple[str, ...]

    def digest(self, known: dict[bytes, bytes]) -> bytes:
        """A hash of all of it.

        Args:
            known: The digests of contents, to be kept from one call to the next: most files stay as they are.
        """
        total = blake2b(repr(self.folders).encode(), digest_size=16)
        for path in sorted(self.files):
            data = self.files[path]
            if data not in known:
                known[data] = blake2b(data, digest_size=16).digest()
            total.update(path.encode() + b"\0" + known[data])
        return total.digest()


class Volume:
    """A disk that steps are applied to.

    Args:
        image: What is on it, durably, at first.
    """

    def __init__(self, image: Image) -> None:
        self._root = _Folder()
        self._files: dict[int, _File] = {}
        for path in image.folders:
            self._put(path, _Folder())
        for number, path in enumerate(sorted(image.files)):
            self._files[number] = _File(image.files[path])
            self._put(path, self._files[number])

    def apply(self, step: Step) -> None:
        """The next step happens."""
        match step:
            case Create(folder, name, number):
                self._files[number] = _File()
                self._name(folder, _Naming(self._files[number], new=name))
            case Write(number) | Truncate(number):
                self._files[number].pending.append(step)
            case Sync(number, failed):
                file = self._files[number]
                file.in_doubt |= failed
                if not file.in_doubt:
                    file.durable = _written(file.durable, file.pending)
                    file.pending.clear()
            case Rename(folder, old, new):
                self._name(folder, _Naming(self._folder(folder).now[old], old=old, new=new))
            case Unlink(folder, name):
                self._name(folder, _Naming(self._folder(folder).now[name], old=name))
            case Mkdir(folder, name):
                self._name(folder, _Naming(_Folder(), new=name))
            case SyncFolder(folder):
                found = self._folder(folder)
                found.durable = dict(found.now)
                found.pending.clear()
            case Commit(folder, name, data):
                found = self._folder(folder)
                found.durable[name] = found.now[name] = _File(data)

    @property
    def unsynced(self) -> tuple[int, int]:
        """How many writes to files, and how many names, a power cut may undo."""
        folders, names, writes = [self._root], 0, 0
        while folders:
            folder = folders.pop()
            names += len(folder.pending)
            for node in folder.now.values():
                if isinstance(node, _Folder):
                    folders.append(node)
                else:
                    writes += len(node.pending)
        return writes, names

    def lost(self) -> Image:
        """Nothing is left that was not synced."""
        return self._image(lambda _: (), lambda file: file.durable)

    def kept(self) -> Image:
        """Everything is left."""
        return self._image(lambda pending: pending, lambda file: _written(file.durable, file.pending))

    def torn(self, rng: random.Random) -> Image:
        """Some of what was not synced is left."""
        return self._image(lambda pending: _some(pending, rng), lambda file: _torn(file, rng))

    def _put(self, path: str, node: _Node) -> None:
        folder, _, name = path.rpartition("/")
        found = self._folder(folder)
        found.durable[name] = found.now[name] = node

    def _folder(self, path: str) -> _Folder:
        node: _Node = self._root
        for name in path.split("/") if path else ():
            if isinstance(node, _Folder):
                node = node.now[name]
        if not isinstance(node, _Folder):
            raise NotADirectoryError(path)
        return node

    def _name(self, folder: str, naming: _Naming) -> None:
        found = self._folder(folder)
        found.pending.append(naming)
        naming.apply(found.now)

    def _image(
        self,
        names: Callable[[Sequence[_Naming]], Sequence[_Naming]],
        content: Callable[[_File], bytes],
    ) -> Image:
        files: dict[str, bytes] = {}
        folders: list[str] = []
        waiting = [("", self._root)]
        while waiting:
            path, folder = waiting.pop()
            left = dict(folder.durable)
            for naming in names(folder.pending):
                naming.apply(left)
            for name, node in left.items():
                if isinstance(node, _Folder):
                    folders.append(path + name)
                    waiting.append((f"{path}{name}/", node))
                else:
                    files[path + name] = content(node)
        return Image(files, tuple(sorted(folders)))


def _written(data: bytes, pending: Iterable[Write | Truncate]) -> bytes:
    if not pending:
        return data
    content = bytearray(data)
    for step in pending:
        _write(content, step)
    return bytes(content)


def _write(content: bytearray, step: Write | Truncate) -> None:
    match step:
        case Write(_, offset, data):
            _reach(content, offset)
            content[offset : offset + len(data)] = data
        case Truncate(_, size):
            _reach(content, size)
            del content[size:]


def _reach(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def _some(pending: Sequence[_Naming], rng: random.Random) -> Sequence[_Naming]:
    fate = rng.randrange(3)
    return pending if fate == 0 else () if fate == 1 else [naming for naming in pending if rng.random() < 0.5]


def _torn(file: _File, rng: random.Random) -> bytes:
    fate = rng.randrange(5) if file.pending else 0
    if fate == 0:
        return file.durable
    whole = _written(file.durable, file.pending)
    if fate == 1:
        return whole
    if fate == 2:
        size = rng.randint(*sorted((len(file.durable), len(whole))))
        return whole[:size]
    return _in_blocks(file, _BLOCKS[fate - 3], len(whole), rng)


def _in_blocks(file: _File, block: int, size: int, rng: random.Random) -> bytes:
    content = bytearray(file.durable)
    for step in file.pending:
        if isinstance(step, Truncate):
            if rng.random() < 0.5:
                _write(content, step)
            continue
        start, end = step.offset, step.offset + len(step.data)
        while start < end:
            upto = min(end, (start // block + 1) * block)
            if rng.random() < 0.5:
                _write(content, Write(step.file, start, step.data[start - step.offset : upto - step.offset]))
            start = upto
    if rng.random() < 0.5:  # the length is there before the data
        _reach(content, size)
    return bytes(content)
