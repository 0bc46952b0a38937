"""The model packages of a node: stage, activate, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Literal

import msgspec
from msgspec import Struct

from loopcore.errors import IntegrityError, ModelError, StorageError
from loopcore.files import DISK, Disk, inner_path, read_bounded, write_atomic
from loopcore.package import MANIFEST, chunks, encode_manifest, open_folder, open_model, read_info
from loopcore.types import Digest, Model


class _Record(Struct, frozen=True, kw_only=True):
    """Which packages serve, by the names of their folders."""

    version: Literal[1] = 1
    active: Digest
    previous: Digest | None = None


class ModelStore:
    """The packages of one node, in a folder of its own.

    Each lies in a folder named by the hash of its `model.json`, so that no name from outside becomes a path, and is
    never changed. Which one serves, and which did before, is one small record, replaced as a whole.
    Methods block; one process at a time uses the folder, which the node's lock sees to.
    """

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        self.folder = folder
        self._disk = disk

    def stage(self, path: Path) -> Model:
        """Copy a package, zip or bare `.onnx` in; when this returns, it is whole and survives a power cut.

        Staging the same again returns the one that is there.

        Raises:
            IntegrityError: A file is not the one that was promised.
            ModelError: It is not a model.
            StorageError: The disk refused; nothing has changed.
        """
        with self._draft() as draft:
            source = open_model(path, draft / "unpacked")
            package = draft / "package"
            manifest = encode_manifest(source.info)
            try:
                self._copy(source, package)
                write_atomic(package / MANIFEST, manifest, disk=self._disk)
                target = self._place(package, sha256(manifest).hexdigest())
            except OSError as exc:
                raise StorageError(f"cannot store {path}: {exc.strerror or exc}") from exc
        return Model(info=source.info, path=target)

    def list(self) -> tuple[Model, ...]:
        """What is here, the last staged first. Files are not checked; what cannot be read is left out."""
        found = []
        for folder in self._folders():
            try:
                found.append(Model(info=read_info(folder), path=folder))
            except ModelError:
                continue  # `get` and `active` say what is wrong with it
        return tuple(found)

    def get(self, version: str, name: str | None = None) -> Model:
        """The last staged model of this version, checked.

        Raises:
            ModelError: There is none, or it is damaged.
        """
        here = self.list()
        for model in here:
            if model.info.version == version and name in (None, model.info.name):
                return open_folder(model.path)
        known = ", ".join(f"{model.info.name} {model.info.version}" for model in here) or "none"
        hint = f"; if a path is meant, write './{version}'"
        raise ModelError(f"no model of version {version!r} is in the store (there: {known}){hint}")

    def active(self) -> Model | None:
        """The model that was activated last, checked; `None` if none ever was.

        Raises:
            ModelError: It is damaged or gone, or the record is.
        """
        record = self._record()
        return open_folder(self.folder / record.active) if record else None

    def previous(self) -> Model | None:
        """The model that was active before the active one, checked: activate it to go back.

        Raises:
            ModelError: It is damaged or gone, or the record is.
        """
        record = self._record()
        return open_folder(self.folder / record.previous) if record and record.previous else None

    def activate(self, model: Model) -> None:
        """Make a model of this store the active one; durable on return.

        Raises:
            ModelError: It is not from this store.
            StorageError: The disk refused; what was active still is, or if only the very last step failed, this is.
        """
        if model.path.parent != self.folder or not (model.path / MANIFEST).is_file():
            raise ModelError(f"{model.info.name} {model.info.version} has not been staged")
        try:
            old = self._record()
        except ModelError:
            old = None  # a damaged record is mended by the next one
        if old and old.active == model.path.name:
            return
        record = _Record(active=model.path.name, previous=old.active if old else None)
        write_atomic(self._record_path, msgspec.json.encode(record), disk=self._disk)

    def prune(self, keep: int = 3) -> tuple[Model, ...]:
        """Remove all but the active, the previous and the last `keep` staged models, and what crashes left behind.

        Raises:
            ModelError: The record is damaged; nothing was removed.
        """
        record = self._record()
        held = {record.active, record.previous} if record else set()
        gone = tuple(model for model in self.list()[keep:] if model.path.name not in held)
        for model in gone:
            self._discard(model.path)
        for path in self.folder.glob(".*-*") if self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
        return gone

    @property
    def _record_path(self) -> Path:
        return self.folder / "active.json"

    def _record(self) -> _Record | None:
        if not self._record_path.exists():
            return None
        try:
            return msgspec.json.decode(read_bounded(self._record_path, 10_000), type=_Record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StorageError) as exc:
            raise ModelError(f"the record of the active model is damaged: {exc}") from exc

    def _folders(self) -> Sequence[Path]:
        if not self.folder.is_dir():
            return []
        manifests = [path for path in self.folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")]
        return [path.parent for path in sorted(manifests, key=lambda path: -path.stat().st_mtime_ns)]

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        draft = self.folder / f".draft-{token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._disk.mkdir(draft)
        except OSError as exc:
            raise StorageError(f"cannot write {self.folder}: {exc.strerror or exc}") from exc
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _copy(self, source: Model, package: Path) -> None:
        self._disk.mkdir(package)
        folders = [package]
        for file in source.info.files:
            target = inner_path(package, file.name)
            for parent in reversed(target.relative_to(package).parents[:-1]):
                if package / parent not in folders:
                    folders.append(package / parent)
                    self._disk.mkdir(package / parent)
            descriptor = self._disk.open(target)
            try:
                digest = sha256()
                for chunk in chunks(source.path, file.name):
                    digest.update(chunk)
                    self._disk.write(descriptor, [chunk])
                self._disk.sync(descriptor)
            finally:
                self._disk.close(descriptor)
            if digest.hexdigest() != file.sha256:
                raise IntegrityError(f"{file.name} of {source.info.name} {source.info.version} changed while copied")
        for folder in reversed(folders):
            self._disk.sync_folder(folder)

    def _place(self, package: Path, digest: str) -> Path:
        target = self.folder / digest
        if target.exists():
            try:
                open_folder(target)
            except ModelError:
                self._discard(target)
            else:
                return target
        self._disk.rename(package, target)
        self._disk.sync_folder(self.folder)
        return target

    def _discard(self, package: Path) -> None:
        trash = self.folder / f".trash-{token_hex(8)}"
        self._disk.rename(package, trash)
        shutil.rmtree(trash, ignore_errors=True)
