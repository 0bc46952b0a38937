"""Model packages: what `model.json` says, and opening them where they lie.

A package is a folder, or a zip of one, with a `model.json`:

```json
{
  "schema": 1,
  "name": "gate",                the model's name: letters, digits, ".", "_", "-"; at most 128
  "version": "3.1",              which of the models of that name; the same characters
  "format": "onnx",              what the files are; a backend says which formats it runs
  "labels": ["cat", "dog"],      class names in the order of the model's channels; may be absent
  "spec": {},                    how to feed it and read its answer, in its backend's words; may be absent
  "files": [{"name": "model.onnx", "size": 3660092, "sha256": "695e…"}],
  "extra": {}                    whatever else the maker wants to keep; may be absent
}
```

Names of files are relative, with `/`, and stay inside the package; what is not listed is not part of it. A key that is
not listed here is ignored, so that a newer maker's package can be read. A bare `.onnx` is a package too: its labels are
the lines of a `labels.txt` beside it, its version the beginning of its hash.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from loopcore.errors import IntegrityError, ModelError, StorageError
from loopcore.files import DISK, Disk, inner_path, read_bounded, unzip, write_atomic
from loopcore.types import Model, ModelFile, ModelInfo

MANIFEST = "model.json"

_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
_MAX_MANIFEST = 4_000_000
_CHUNK = 1 << 20


class Manifest(Struct, frozen=True, kw_only=True):
    """What `model.json` holds."""

    schema: Literal[1]
    name: _Word
    version: _Word
    format: _Word
    labels: tuple[str, ...] = ()
    spec: dict[str, Any] = {}
    files: Annotated[tuple[ModelFile, ...], Meta(min_length=1)]
    extra: dict[str, Any] = {}


def open_model(path: Path, unpack_into: Path) -> Model:
    """Open a model where it lies, and check its files against its `model.json`.

    Args:
        path: A package folder, a zip of one, or a bare `.onnx`.
        unpack_into: An empty folder for the members of a zip; made if it is absent, untouched unless it is a zip.

    Raises:
        IntegrityError: A file is missing, or is not the one that `model.json` names.
        ModelError: It is none of these, or its `model.json` is wrong.
    """
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        raise ModelError(f"there is no model at {path}")
    if path.suffix.lower() == ".onnx":
        return _open_bare(path)
    if path.suffix.lower() != ".zip":
        raise ModelError(f"{path} is not a model: expected a folder with {MANIFEST}, a .zip of one, or an .onnx file")
    unpack_into.mkdir(parents=True, exist_ok=True)
    unzip(path, unpack_into)
    inner = [unpack_into, *sorted(folder for folder in unpack_into.iterdir() if folder.is_dir())]
    roots = [folder for folder in inner if (folder / MANIFEST).is_file()]
    if len(roots) != 1:
        raise ModelError(f"{path.name} holds {len(roots)} packages, expected one {MANIFEST}")
    return open_folder(roots[0])


def write_package(folder: Path, info: ModelInfo, *, disk: Disk = DISK) -> Model:
    """Make a package of all files in a folder: list and hash them and write `model.json`.

    Args:
        folder: Holds the model's files.
        info: Name, version, format, labels, spec and extra; id and files are found out.
        disk: Where to write.

    Raises:
        ModelError: The name, version or format cannot be used, or the folder holds links or nothing.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    files = tuple(_measure(folder, name) for name in names if name != MANIFEST)
    manifest = encode_manifest(msgspec.structs.replace(info, files=files))
    write_atomic(folder / MANIFEST, manifest, disk=disk)
    return Model(info=_info(_parse(manifest, folder)), path=folder)


def open_folder(folder: Path) -> Model:
    """Open a package folder, and check its files against its `model.json`.

    Raises:
        ModelError: As `open_model`.
    """
    model = Model(info=read_info(folder), path=folder)
    check_files(model)
    return model


def check_files(model: Model) -> None:
    """Check a model's files against what is said of them.

    Raises:
        IntegrityError: One is missing, or is not the one that was promised.
        ModelError: One is a link, or no regular file.
    """
    for file in model.info.files:
        found = _measure(model.path, file.name)
        if found != file:
            kind = "size" if found.size != file.size else "hash"
            what = f"{file.name} of {model.info.name} {model.info.version}"
            raise IntegrityError(f"{what} has another {kind} than promised")


def _open_bare(path: Path) -> Model:
    folder = path.parent
    # Tensors too large for the file itself lie beside it, under the names that exporters give them.
    beside = [f"{path.name}.data", f"{path.name}_data", f"{path.stem}.data"]
    files = tuple(_measure(folder, name) for name in [path.name, *beside] if (folder / name).is_file())
    labels: tuple[str, ...] = ()
    if (folder / "labels.txt").is_file():
        labels = read_labels(folder / "labels.txt")
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in path.stem)
    info = ModelInfo(
        name=name.lstrip("._-")[:128] or "model",
        version=files[0].sha256[:12],
        format="onnx",
        labels=labels,
        id=_identity(files),
        files=files,
    )
    return Model(info=info, path=folder)


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line, in the order of the model's channels.

    Raises:
        ModelError: It cannot be read or is not text.
    """
    try:
        lines = read_bounded(path, 1_000_000).decode().splitlines()
    except (StorageError, UnicodeDecodeError) as exc:
        raise ModelError(f"{path} is not a list of labels: {exc}") from exc
    return tuple(line.strip() for line in lines if line.strip())


def read_info(folder: Path) -> ModelInfo:
    """What a package's `model.json` says; its files are not looked at.

    Raises:
        ModelError: It is missing or wrong.
    """
    return _info(_read_manifest(folder))


def _read_manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        graphs = sorted(path.name for path in folder.glob("*.onnx"))
        hint = f"; to use a bare model, name its file: {folder / graphs[0]}" if graphs else ""
        raise ModelError(f"{folder} is not a model package: it has no {MANIFEST}{hint}")
    try:
        return _parse(read_bounded(folder / MANIFEST, _MAX_MANIFEST), folder)
    except StorageError as exc:
        raise ModelError(str(exc)) from exc


def _parse(data: bytes, folder: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ModelError(f"{folder / MANIFEST}: {exc}") from exc
    names = [inner_path(folder, file.name) for file in manifest.files]
    if len(set(names)) != len(names) or folder / MANIFEST in names:
        raise ModelError(f"{folder / MANIFEST}: a file is listed twice, or {MANIFEST} itself is listed")
    return manifest


def encode_manifest(info: ModelInfo) -> bytes:
    """The bytes of `model.json`; the same for the same model.

    Raises:
        ModelError: The name, version or format cannot be used.
    """
    fields = {name: getattr(info, name) for name in Manifest.__struct_fields__ if name != "schema"}
    try:
        manifest = msgspec.convert(msgspec.to_builtins({"schema": 1, **fields}), Manifest)
    except msgspec.ValidationError as exc:
        raise ModelError(f"no package can be made of {info.name!r} {info.version!r}: {exc}") from exc
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)


def _info(manifest: Manifest) -> ModelInfo:
    return ModelInfo(
        name=manifest.name,
        version=manifest.version,
        format=manifest.format,
        labels=manifest.labels,
        id=_identity(manifest.files),
        files=manifest.files,
        spec=manifest.spec,
        extra=manifest.extra,
    )


def _identity(files: tuple[ModelFile, ...]) -> str:
    digest = sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.name}\0{file.sha256}\0".encode())
    return digest.hexdigest()


def _measure(folder: Path, name: str) -> ModelFile:
    digest = sha256()
    size = 0
    for chunk in chunks(folder, name):
        digest.update(chunk)
        size += len(chunk)
    return ModelFile(name=name, size=size, sha256=digest.hexdigest())


def chunks(folder: Path, name: str) -> Iterator[bytes]:
    """The content of one file of a package; through no link.

    Raises:
        ModelError: The name leads elsewhere, or is not that of a regular file.
        IntegrityError: It cannot be read.
    """
    path = inner_path(folder, name)
    steps = [path, *path.parents][: len(path.relative_to(folder).parts)]
    try:
        if any(step.is_symlink() for step in steps):
            raise ModelError(f"{name!r} of the package in {folder} is a link")
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelError(f"{name!r} of the package in {folder} is not a regular file")
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as exc:
        raise IntegrityError(f"{name!r} of the package in {folder} cannot be read: {exc.strerror or exc}") from exc
