"""Model packages of the Loop (`learning-loop.md` 8) become loopcore's, and the other way round.

At the Loop a package is a flat zip with a `model.json` of the Loop's. What loopcore wrote travels in that file under
the key `loopcore`, so that a model that comes back is the model that went.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from loopcore.errors import ModelError, RejectedError, StorageError
from loopcore.files import read_bounded
from loopcore.package import MANIFEST, write_package
from loopcore.types import Model, ModelInfo
from loopcore_learningloop import wire
from loopcore_learningloop.translation import Categories

EXTRA = "learningloop"
"""The key of `ModelInfo.extra` under which a model of a Loop has its `wire.ModelInformation`."""

_PICKLES = frozenset({".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_MAX_MANIFEST = 4_000_000


class Ours(Struct, frozen=True, kw_only=True):
    """What loopcore keeps in the Loop's `model.json`."""

    name: str
    labels: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)


class _Manifest(Struct, kw_only=True):
    """The Loop's `model.json`, as far as it matters here; a base model from outside has none."""

    id: str | None = None
    categories: list[wire.Category] = field(default_factory=list)
    conf_threshold: float | None = None
    loopcore: Ours | None = None


def info_of(model: wire.ModelInformation, format: str, **more: Any) -> ModelInfo:  # noqa: A002 - the field's term
    """A model of a Loop in neutral words; its project's id is its name.

    Args:
        model: What the Loop says.
        format: In which format; empty if that is open.
        more: Other fields of `ModelInfo`.
    """
    extra = more.pop("extra", {}) | msgspec.to_builtins(model)
    return ModelInfo(name=_word(model.project), version=model.version, format=format, extra={EXTRA: extra}, **more)


def told_of(info: ModelInfo) -> wire.ModelInformation | None:
    """What the Loop says of a model that came from it; `None` of one that did not."""
    told = info.extra.get(EXTRA)
    try:
        return msgspec.convert(told, wire.ModelInformation) if told else None
    except msgspec.ValidationError:
        return None


def empty(folder: Path, keep: frozenset[str]) -> None:
    """Remove what an earlier attempt has unpacked. Blocking."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def adopt(folder: Path, model: wire.ModelInformation, format: str, *, pickles: bool) -> Model:  # noqa: A002
    """Make a package of what the Loop's zip held. Blocking.

    Args:
        folder: What was unpacked, and nothing else.
        model: Which model was asked for.
        format: In which format.
        pickles: Take files that run code when they are loaded.

    Raises:
        ModelError: It is another model, or cannot be read, or holds pickles.
    """
    _lift(folder)
    raw, manifest = _read(folder)
    if manifest.id not in (None, model.id):
        raise ModelError(f"the Loop sent the model {manifest.id} in place of {model.id}")
    if not pickles:
        _refuse_pickles(folder, model, format)
    ours = manifest.loopcore or Ours(
        name=model.project,
        labels=tuple(category.name for category in manifest.categories),
        spec=_spec(manifest, format),
    )
    own = {key: value for key, value in raw.items() if key != "loopcore"}
    info = info_of(model, format, labels=ours.labels, spec=ours.spec, extra=own)
    return write_package(folder, replace(info, name=_word(ours.name)))


def manifest_for(info: ModelInfo, categories: Categories, *, anew: bool) -> bytes:
    """The Loop's `model.json` for a package of ours (8): the categories in the order of the model's channels.

    Args:
        info: The package.
        categories: The project's.
        anew: The model is not yet at the Loop: what was said of the one that it came from does not hold.

    Raises:
        RejectedError: The model has a label that the project does not know.
    """
    known = {category.name: category for category in categories.all}
    if unknown := [label for label in info.labels if label not in known]:
        raise RejectedError(f"the project has no category {unknown[0]!r}, which {info.name} {info.version} knows")
    told = {} if anew else info.extra.get(EXTRA)
    theirs = dict(told) if isinstance(told, dict) else {}
    ours = Ours(name=info.name, labels=info.labels, spec=info.spec)
    content = theirs | {"categories": [known[label] for label in info.labels], "loopcore": ours}
    if resolution := _resolution(info):
        content.setdefault("resolution", resolution)
    if "confidence" in info.spec:
        content.setdefault("conf_threshold", info.spec["confidence"])
    return msgspec.json.format(msgspec.json.encode(content), indent=2)


def _lift(folder: Path) -> None:
    """Makers zip a folder where its content is meant; what lies beside `model.json` comes to the top."""
    if (folder / MANIFEST).is_file():
        return
    inside = sorted(folder.rglob(MANIFEST), key=lambda path: len(path.parts))
    entries = list(folder.iterdir())
    root = inside[0].parent if inside else entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
    if root == folder:
        return
    apart = folder / ".lifted"  # a name inside may be that of a folder on the way
    root.rename(apart)
    for path in apart.iterdir():
        target = folder / path.name
        if target.exists():
            raise ModelError(f"the Loop's package holds {path.name!r} twice")
        path.rename(target)
    apart.rmdir()


def _read(folder: Path) -> tuple[dict[str, Any], _Manifest]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}, _Manifest()
    try:
        raw = msgspec.json.decode(read_bounded(path, _MAX_MANIFEST), type=dict[str, Any])
        return raw, msgspec.convert(raw, _Manifest)
    except (StorageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(f"the {MANIFEST} of the Loop's package cannot be read: {exc}") from exc


def _refuse_pickles(folder: Path, model: wire.ModelInformation, format: str) -> None:  # noqa: A002
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if _is_pickle(path):
            raise ModelError(
                f"{path.name} of {model.project} {model.version} ({format}) is a Python pickle, which runs code when it"
                " is loaded: no node serves that; convert the model to onnx where it was trained"
            )


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in _PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as inner:
            return any(name.endswith(".pkl") for name in inner.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return False


def _spec(manifest: _Manifest, format: str) -> dict[str, Any]:  # noqa: A002
    if manifest.conf_threshold is None or not format.startswith("onnx"):
        return {}
    return {"confidence": manifest.conf_threshold}


def _resolution(info: ModelInfo) -> int | None:
    size = info.spec.get("size")
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None


def _word(name: str) -> str:
    """A name as packages may have it."""
    word = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in name)
    return word.lstrip("._-")[:128] or "model"
