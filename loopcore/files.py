"""How loopcore changes a disk: atomic writes, durable renames, bounded reads, safe unzip, and a folder's lock.

Every write goes through a `Disk`, so that a test can hand in one that records, fails or tears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from msgspec import Struct

from loopcore.errors import IntegrityError, ModelError, StorageError

if TYPE_CHECKING:
    import sqlite3


class Disk:
    """The few ways in which files are changed. Each method is one step that a power cut may separate from the next."""

    def open(self, path: Path, *, append: bool = False) -> int:
        """Create a file, empty unless `append`, and return its descriptor; the umask says who may read it."""
        mode = os.O_APPEND if append else os.O_TRUNC
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o666)

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        """Write all the parts, one after the other."""
        waiting = [memoryview(part) for part in parts if part]
        while waiting:
            written = os.writev(descriptor, waiting[:512])
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if waiting and written:
                waiting[0] = waiting[0][written:]

    def sync(self, descriptor: int) -> None:
        """What was written to this file survives a power cut. After a failure the descriptor counts as lost."""
        os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name, replacing a file of that name; atomic."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name."""
        new.hardlink_to(old)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        """Make a folder in one that exists, by default for its owner alone; nothing happens if it is there."""
        path.mkdir(mode=mode, exist_ok=True)

    def free(self, path: Path) -> int:
        """How many bytes this user may still write to the disk of a folder."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def database(self, path: Path) -> sqlite3.Connection:
        """Open an SQLite file, or make one, without implicit transactions. Its writes are SQLite's own."""
        import sqlite3

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)

    def sync_folder(self, path: Path) -> None:
        """Names made, changed and removed in this folder survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()
_drafts = count()
_MAX_DEPTH = 32  # below some thousand folders, nothing in Python can remove them again


class UnzipLimits(Struct, frozen=True, kw_only=True):
    """What a zip may cost: members, bytes unpacked, and how many times larger it may become."""

    max_members: int = 10_000
    max_bytes: int = 4_000_000_000
    max_ratio: float = 200.0


def write_atomic(path: Path, data: bytes, *, durable: bool = True, disk: Disk = DISK) -> None:
    """Write a file so that, whatever happens, its name holds the old content or the new, whole; durable on return.

    Args:
        path: The file.
        data: Its new content.
        durable: Without, a power cut may leave an empty or shortened file: for what is checked whenever it is read,
            and can be had again. A hundred times quicker.
        disk: Where to write.

    Raises:
        StorageError: The disk refused. The name holds the old content, or, if only the folder's sync failed, the new.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{next(_drafts)}.tmp")
    try:
        descriptor = disk.open(draft)
        try:
            disk.write(descriptor, [data])
            if durable:
                disk.sync(descriptor)
        finally:
            disk.close(descriptor)
        disk.rename(draft, path)
        if durable:
            disk.sync_folder(path.parent)
    except OSError as exc:
        with suppress(OSError):
            disk.unlink(draft)
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        StorageError: It is missing, unreadable, not a regular file, or larger.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(f"{path} is not a regular file")
            data = file.read(min(limit, found.st_size) + 1)  # so much memory is taken beforehand
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if len(data) > limit:
        raise StorageError(f"{path} is larger than {limit} bytes")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer


def inner_path(folder: Path, name: str) -> Path:
    """The path of a member of a package, checked: relative, with `/`, and inside the folder.

    Raises:
        ModelError: The name leads elsewhere.
    """
    pure = PurePosixPath(name)
    bad = not name or "\\" in name or "\0" in name or ":" in name or pure.is_absolute() or ".." in pure.parts
    if bad or not 0 < len(pure.parts) <= _MAX_DEPTH:
        raise ModelError(f"{name!r} is not a path inside a package")
    return folder.joinpath(*pure.parts)


def unzip(archive: Path, into: Path, limits: UnzipLimits | None = None) -> None:
    """Unpack a zip into an empty folder: only plain files and folders, only inside it, within the limits.

    Raises:
        ModelError: The zip is damaged, encrypted, too large, or has a member that does not belong; the folder may hold
            parts.
    """
    limits = limits or UnzipLimits()
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            _check_members(archive, members, limits)
            budget = limits.max_bytes
            for member in members:
                target = inner_path(into, member.filename)
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                budget -= _extract(bundle, member, target, budget)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        EOFError,
        RuntimeError,
        ValueError,
        zlib.error,
    ) as exc:
        raise ModelError(f"{archive.name} is not a sound zip: {exc}") from exc
    except OSError as exc:
        raise ModelError(f"cannot unpack {archive.name}: {exc.strerror or exc}") from exc


def _check_members(archive: Path, members: Sequence[zipfile.ZipInfo], limits: UnzipLimits) -> None:
    if len(members) > limits.max_members:
        raise ModelError(f"{archive.name} has {len(members)} members, more than {limits.max_members}")
    names = [member.filename.rstrip("/") for member in members]
    if len(set(names)) != len(names):
        raise ModelError(f"{archive.name} holds a name twice")
    if sum(member.file_size for member in members) > limits.max_bytes:
        raise ModelError(f"{archive.name} would unpack to more than {limits.max_bytes} bytes")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ModelError(f"{archive.name}: {member.filename!r} is a link or a device")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(f"{archive.name}: {member.filename!r} is compressed in an unusual way")
        if member.flag_bits & 0x1:
            raise ModelError(f"{archive.name}: {member.filename!r} is encrypted")
        if member.file_size > 1_000_000 and member.file_size > limits.max_ratio * max(member.compress_size, 1):
            raise ModelError(f"{archive.name}: {member.filename!r} unpacks to {limits.max_ratio:.0f} times its size")


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, budget: int) -> int:
    written = 0
    with bundle.open(member) as source, target.open("xb") as file:
        while chunk := source.read(1 << 20):
            written += len(chunk)
            if written > min(budget, member.file_size):
                raise ModelError(f"{member.filename!r} is larger than it says")
            file.write(chunk)
    if written != member.file_size:
        raise IntegrityError(f"{member.filename!r} is {written} bytes, not {member.file_size}")
    return written


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for the length of the block; it falls with the process that holds it.

    Raises:
        StorageError: Another process holds it, or the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StorageError(f"cannot make the lock {path}: {exc.strerror or exc}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StorageError(f"{path.parent} is in use by process {owner}") from exc
        except OSError as exc:
            raise StorageError(f"cannot lock {path}: {exc.strerror or exc}") from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
