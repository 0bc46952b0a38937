"""Snapshots: a data set at one moment, as a folder that is written once and never changed.

```
snapshot.json       labels and entries
images/             each picture once, under the SHA-256 of its bytes
```

`snapshot.json`:

```json
{
  "schema": 1,
  "id": "5be1…",                 SHA-256 over labels and entries: the same content has the same id everywhere
  "labels": ["cat", "dog"],      in the order of a model's channels
  "entries": [
    {
      "id": "a7c2…",             the picture's name where it comes from; unique in the snapshot
      "sha256": "695e…",
      "file": "images/695e….jpg",
      "media": "image/jpeg",
      "width": 640, "height": 480,   after EXIF rotation
      "set": "train",            train, val or test
      "annotations": [{"kind": "box", "label": "cat", "x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0}],
      "tags": []
    }
  ]
}
```

Entries are sorted by `id`. Annotations are those of `loopcore.types`; `null` says that nobody looked. A key that is not
listed here is ignored, so that a newer program's snapshot can be read.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from loopcore.errors import DatasetError, StorageError
from loopcore.files import DISK, Disk, read_bounded, write_atomic
from loopcore.types import Annotation, Digest

MANIFEST = "snapshot.json"

Set: TypeAlias = Literal["train", "val", "test"]

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}
_MAX_MANIFEST = 1_000_000_000
_CHUNK = 1 << 20
_VALIDATION = 0.1
_Side = Annotated[int, Meta(ge=1, le=1_000_000)]


class Entry(Struct, frozen=True, kw_only=True):
    """A picture of a snapshot; the module's docstring tells the fields."""

    id: Annotated[str, Meta(min_length=1, max_length=1_000)]
    sha256: Digest
    file: str
    media: Literal["image/jpeg", "image/png"]
    width: _Side
    height: _Side
    set: Set = "train"
    annotations: tuple[Annotation, ...] | None = None
    tags: tuple[str, ...] = ()


class Manifest(Struct, frozen=True, kw_only=True):
    """What `snapshot.json` holds."""

    schema: Literal[1]
    id: Digest
    labels: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()


class Snapshot(Struct, frozen=True, kw_only=True):
    """A snapshot on this disk."""

    path: Path
    id: str
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]

    def count(self) -> dict[str, int]:
        """How many pictures are in each set."""
        counts = {"train": 0, "val": 0, "test": 0}
        for entry in self.entries:
            counts[entry.set] += 1
        return counts

    def file(self, entry: Entry) -> Path:
        """Where a picture of it lies."""
        return self.path / entry.file


class Picture(Struct, frozen=True, kw_only=True):
    """A picture that is to be in a snapshot; but for `path`, as in `Entry`."""

    path: Path
    id: str
    media: str
    width: int
    height: int
    set: Set = "train"
    annotations: tuple[Annotation, ...] | None = None
    tags: tuple[str, ...] = ()


class SnapshotWriter:
    """Writes a snapshot: the folder appears whole, or not at all. Blocking; one thread at a time.

    Args:
        folder: The snapshot's folder, not there yet; the folder around it is.
        labels: In the order of a model's channels.
        link: The pictures' files are ours and never change: link to them where the disk can, and make them read-only.
        disk: Where to write.
    """

    def __init__(self, folder: Path, labels: Sequence[str], *, link: bool = False, disk: Disk = DISK) -> None:
        self._folder = folder
        self._draft = folder.with_name(f".{folder.name}.draft")
        self._labels = tuple(labels)
        self._link = link
        self._disk = disk
        self._entries: dict[str, Entry] = {}

    def begin(self) -> None:
        """Make the draft, in place of what a crash has left.

        Raises:
            StorageError: The disk refuses.
        """
        with _told(self._draft):
            with suppress(FileNotFoundError):
                shutil.rmtree(self._draft)
            self._disk.mkdir(self._draft, 0o777)
            self._disk.mkdir(self._draft / "images", 0o777)

    def add(self, picture: Picture) -> None:
        """Take a picture in.

        Raises:
            DatasetError: Its id has been taken in before, or it is neither JPEG nor PNG.
            StorageError: It cannot be read, or the disk refuses.
        """
        if picture.id in self._entries:
            raise DatasetError(f"the picture {picture.id!r} comes twice, expected each id once")
        with _told(picture.path):
            digest = _digest(picture.path)
        fields = {name: getattr(picture, name) for name in Picture.__struct_fields__ if name != "path"}
        entry = {**msgspec.to_builtins(fields), "sha256": digest, "file": _file_of(digest, picture.media)}
        try:
            self._entries[picture.id] = found = msgspec.convert(entry, Entry)
        except msgspec.ValidationError as exc:
            raise DatasetError(f"the picture {picture.id!r} does not fit into a snapshot: {exc}") from exc
        self._place(picture.path, self._draft / found.file)

    def finish(self) -> Snapshot:
        """Write `snapshot.json`, and give the folder its name.

        Raises:
            StorageError: The disk refuses, or there is another folder of this name.
        """
        entries = tuple(sorted(self._entries.values(), key=lambda entry: entry.id))
        content = msgspec.to_builtins({"labels": self._labels, "entries": entries})
        manifest = {"schema": 1, "id": _identity(content), **content}
        write_atomic(self._draft / MANIFEST, msgspec.json.encode(manifest), disk=self._disk)
        with _told(self._folder):
            self._disk.sync_folder(self._draft / "images")
            self._disk.rename(self._draft, self._folder)
            self._disk.sync_folder(self._folder.parent)
        return Snapshot(path=self._folder, id=manifest["id"], labels=self._labels, entries=entries)

    def _place(self, source: Path, target: Path) -> None:
        with _told(target):
            if target.exists():
                return  # the same picture under another id
            if self._link:
                try:
                    self._disk.link(source, target)
                except OSError as exc:
                    if exc.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
                        raise
            if not target.exists():
                self._copy(source, target)
            target.chmod(0o444)

    def _copy(self, source: Path, target: Path) -> None:
        descriptor = self._disk.open(target)
        try:
            with source.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self._disk.write(descriptor, [chunk])
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)


def read_snapshot(folder: Path, *, pictures: bool = True) -> Snapshot:
    """Read a snapshot and check that it is what its id says. Blocking.

    Args:
        folder: The snapshot's folder.
        pictures: Check each picture's bytes too.

    Raises:
        DatasetError: There is none, it is damaged, or it is of a later form.
    """
    try:
        content = msgspec.json.decode(read_bounded(folder / MANIFEST, _MAX_MANIFEST))
        manifest = msgspec.convert(content, Manifest)
    except StorageError as exc:
        raise DatasetError(f"{folder} is not a snapshot: {exc}") from exc
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise DatasetError(f"{folder / MANIFEST}: {exc}") from exc
    if _identity(content) != manifest.id:
        raise DatasetError(f"{folder / MANIFEST} has been changed: its content has another hash than its id")
    if len({entry.id for entry in manifest.entries}) != len(manifest.entries):
        raise DatasetError(f"{folder / MANIFEST}: a picture is listed twice")
    for entry in manifest.entries:
        if entry.file != _file_of(entry.sha256, entry.media):
            raise DatasetError(f"{folder / MANIFEST}: {entry.file!r} is not the file of a picture in a snapshot")
    if pictures:
        for digest, file in {entry.sha256: entry.file for entry in manifest.entries}.items():
            _check(folder, file, digest)
    return Snapshot(path=folder, id=manifest.id, labels=manifest.labels, entries=manifest.entries)


def is_for_validation(picture: str) -> bool:
    """Whether a picture of this id is among the tenth that is set aside where a data set has no validation set."""
    return _lot(picture) < _VALIDATION


def set_aside(pictures: Sequence[Picture]) -> list[Picture]:
    """Move about a tenth of the training pictures, at least one, to `val`: always the same ones, by their ids.

    The rule is that of the Learning Loop's trainers, so that figures can be compared.

    Raises:
        DatasetError: There are fewer than two training pictures.
    """
    training = sorted((picture.id for picture in pictures if picture.set == "train"), key=_lot)
    if len(training) < 2:
        raise DatasetError(f"a validation set needs at least 2 training pictures, there are {len(training)}")
    chosen = {training[0], *(picture for picture in training[:-1] if is_for_validation(picture))}
    return [
        replace(picture, set="val") if picture.set == "train" and picture.id in chosen else picture
        for picture in pictures
    ]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageError(f"cannot write or read {path}: {exc.strerror or exc}") from exc


def _lot(picture: str) -> float:
    return float(int(sha256(picture.encode()).hexdigest()[:8], 16) / 16**8)


def _identity(content: Mapping[str, Any]) -> str:
    """Over all that stands there, so that what a newer program has added is part of it too."""
    told = {name: content.get(name, []) for name in ("labels", "entries")}
    return sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


def _file_of(digest: str, media: str) -> str:
    return f"images/{digest}{_SUFFIXES.get(media, '')}"


def _check(folder: Path, file: str, digest: str) -> None:
    try:
        found = _digest(folder / file)
    except OSError as exc:
        raise DatasetError(f"{file} of the snapshot in {folder} cannot be read: {exc.strerror or exc}") from exc
    if found != digest:
        raise DatasetError(f"{file} of the snapshot in {folder} has been changed: its hash differs")


def _digest(path: Path) -> str:
    """The SHA-256 of a regular file, read through no link."""
    digest = sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
