"""The model packages of a node: stage, activate, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from loopcore.deploy.identity import ids_of, made_from, same_model, shown
from loopcore.errors import IntegrityError, ModelError, StorageError
from loopcore.files import DISK, Disk, inner_path, read_bounded, write_atomic
from loopcore.package import MANIFEST, chunks, encode_manifest, open_folder, open_model, read_info
from loopcore.types import Digest, Model, ModelInfo

_ARRIVING = ".arriving-"
_ID_CHARACTERS = 8


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
        self._used: set[Path] = set()

    def stage(self, path: Path, sources: Sequence[ModelInfo] = ()) -> Model:
        """Copy a package, zip or bare `.onnx` in; when this returns, it is whole and survives a power cut.

        Staging the same again returns the one that is there.

        Args:
            path: The package.
            sources: What else is known of the model, and which packages this one was made from; kept in its `extra`.

        Raises:
            IntegrityError: A file is not the one that was promised.
            ModelError: It is not a model.
            StorageError: The disk refused; nothing has changed.
        """
        with self._draft() as draft:
            source = open_model(path, draft / "unpacked")
            if sources:
                source = replace(source, info=made_from(source.info, sources))
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

    def get(self, choice: str, formats: Sequence[str] = ()) -> Model | None:
        """The model of this version, or of an id that begins so, checked; `None` if there is none.

        Args:
            choice: A version, or the first 8 or more characters of an id.
            formats: Those that are wanted; all by default.

        Raises:
            IntegrityError: It is damaged.
            ModelError: There are several.
        """
        here = [model for model in self.list() if not formats or model.info.format in formats]
        found = one_of(choice, [model.info for model in here])
        return open_folder(next(model.path for model in here if model.info == found)) if found else None

    def find(self, wanted: ModelInfo, formats: Sequence[str]) -> Model | None:
        """This model in the first of these formats that it has here, checked; `None` if it is not here, or damaged.

        Args:
            wanted: The model, as a platform speaks of it.
            formats: Best first; none: any.
        """
        here = [model for model in self.list() if same_model(wanted, model.info)]
        if formats:
            fit = [model for model in here if model.info.format in formats]
            here = sorted(fit, key=lambda model: formats.index(model.info.format))
        for model in here:
            with suppress(ModelError):
                return open_folder(model.path)
        return None

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

    def marked(self) -> tuple[Path | None, Path | None]:
        """The folders of the active and the previous model, unchecked.

        Raises:
            ModelError: The record is damaged.
        """
        record = self._record()
        names = (record.active, record.previous) if record else (None, None)
        active, previous = (self.folder / name if name else None for name in names)
        return active, previous

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

    def arrival(self, key: str) -> Path:
        """A folder into which a package is fetched; it may hold the part that an earlier attempt has left.

        One package arrives at a time: the parts of others are given up.

        Args:
            key: The model and its format, so that a part is never taken for one of another; hexadecimal digits.

        Raises:
            StorageError: The disk refuses.
        """
        folder = self.folder / f"{_ARRIVING}{key}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._disk.mkdir(folder)
        except OSError as exc:
            raise StorageError(f"cannot write {self.folder}: {exc.strerror or exc}") from exc
        self.give_up(all_but=folder)
        return folder

    def clear(self, folder: Path) -> None:
        """Remove what has arrived in this folder."""
        shutil.rmtree(folder, ignore_errors=True)

    def give_up(self, *, all_but: Path | None = None) -> None:
        """Remove all that has arrived in part."""
        for folder in self.folder.glob(f"{_ARRIVING}*") if self.folder.is_dir() else ():
            if folder != all_but:
                self.clear(folder)

    def prune(self, keep: int = 3) -> tuple[Model, ...]:
        """Remove all but the active, the previous and the last `keep` staged models, and what crashes left behind.

        What has arrived in part stays: it is gone on with.

        Raises:
            ModelError: The record is damaged; nothing was removed.
            StorageError: The disk refuses.
        """
        record = self._record()
        held = {record.active, record.previous} if record else set()
        gone = tuple(model for model in self.list()[keep:] if model.path.name not in held)
        try:
            for model in gone:
                self._discard(model.path)
        except OSError as exc:
            raise StorageError(f"cannot remove old models: {exc.strerror or exc}") from exc
        for path in self.folder.glob(".*-*") if self.folder.is_dir() else ():
            if path not in self._used and not path.name.startswith(_ARRIVING):
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
        found = []
        for path in self.folder.glob(f"*/{MANIFEST}"):
            with suppress(OSError):  # it is being removed in this moment
                if not path.parent.name.startswith("."):
                    found.append((-path.stat().st_mtime_ns, path.parent))
        return [folder for _, folder in sorted(found)]

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        draft = self.folder / f".draft-{token_hex(8)}"
        self._used.add(draft)  # before it is there: another thread may be pruning
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._disk.mkdir(draft)
            except OSError as exc:
                raise StorageError(f"cannot write {self.folder}: {exc.strerror or exc}") from exc
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            self._used.discard(draft)

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


def one_of(choice: str, known: Sequence[ModelInfo]) -> ModelInfo | None:
    """The model that a person means by a version, or by the first characters of an id; `None` if there is none.

    Raises:
        ModelError: There are several.
    """
    long = len(choice) >= _ID_CHARACTERS
    meant = [
        info
        for info in known
        if info.version == choice or (long and any(one.startswith(choice) for one in ids_of(info)))
    ]
    for other in meant[1:]:
        if not same_model(meant[0], other):
            several = ", ".join(f"{info.name} {info.version} ({shown(info)['id'] or 'no id'})" for info in meant)
            raise ModelError(f"{choice!r} may be each of {several}; say the id of the one that is meant")
    return meant[0] if meant else None
