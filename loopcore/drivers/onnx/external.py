"""What a graph refers to outside its own file, found before onnxruntime reads a byte.

The `onnx` package is not needed at runtime, so the few messages that may hold a tensor are walked here by hand. The
numbers are the fields of `onnx.proto3`; everything else is stepped over by its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from loopcore.errors import ModelError
from loopcore.files import inner_path
from loopcore.types import Model

_Kind: TypeAlias = str

_INNER: dict[_Kind, dict[int, _Kind]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {13: "entry"},
}
_OP_TYPE = 4
_KEYS = {"location", "offset", "length", "checksum"}
_MAX_FIELDS = 5_000_000
_MAX_DEPTH = 100


def check_external(data: bytes, model: Model) -> tuple[str, ...]:
    """Make sure that a graph reads no file but those of its package.

    Args:
        data: The bytes of the `.onnx` file.
        model: The package.

    Returns:
        The names of the files that hold some of its tensors; mostly none.

    Raises:
        ModelError: It refers to something else, or cannot be understood.
    """
    if b"location" not in data and b"EPContext" not in data:
        return ()  # every tensor elsewhere has an entry with that key
    names: dict[str, None] = {}
    for entries in _external_tensors(data):
        unknown = sorted(set(entries) - _KEYS)
        if unknown:
            raise ModelError(f"a tensor's external data has the unknown keys {', '.join(map(repr, unknown))}")
        name = entries.get("location", "")
        _check_file(model, name, _number(entries, "offset"), _number(entries, "length"))
        names[name] = None
    return tuple(names)


def _check_file(model: Model, name: str, offset: int, length: int) -> None:
    path = inner_path(model.path, name)
    listed = next((file for file in model.info.files if file.name == name), None)
    if listed is None or "*" in name:  # onnxruntime takes "*/…" for an address in memory
        raise ModelError(f"a tensor lies in {name!r}, which is not a file of the package")
    inside = [path, *path.parents][: len(path.relative_to(model.path).parts)]
    if any(step.is_symlink() for step in inside) or not path.is_file() or path.stat().st_nlink != 1:
        raise ModelError(f"a tensor lies in {name!r}, which is a link or not a file")
    if offset + length > path.stat().st_size:
        raise ModelError(f"a tensor reaches over the end of {name!r}")


def _number(entries: dict[str, str], key: str) -> int:
    text = entries.get(key, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"a tensor's external {key} is {text[:40]!r}, not a number of bytes")
    return int(text)


def _external_tensors(data: bytes) -> Iterator[dict[str, str]]:
    view = memoryview(data)
    waiting: list[tuple[_Kind, int, int, int]] = [("model", 0, len(data), 0)]
    seen = 0
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ModelError(f"the graph is nested more than {_MAX_DEPTH} levels deep")
        entries: dict[str, str] = {}
        for number, at, stop in _fields(view, start, end):
            seen += 1
            if seen > _MAX_FIELDS:
                raise ModelError(f"the graph has more than {_MAX_FIELDS} parts")
            inner = _INNER[kind].get(number)
            if inner == "entry":
                key, value = _entry(view, at, stop)
                entries[key] = value
            elif inner is not None:
                waiting.append((inner, at, stop, depth + 1))
            elif kind == "node" and number == _OP_TYPE and bytes(view[at:stop]) == b"EPContext":
                raise ModelError("the graph holds a compiled part (EPContext), which may name files anywhere")
        if entries:
            yield entries


def _entry(view: memoryview, start: int, end: int) -> tuple[str, str]:
    parts = {number: bytes(view[at:stop]) for number, at, stop in _fields(view, start, end)}
    try:
        return parts.get(1, b"").decode(), parts.get(2, b"").decode()
    except UnicodeDecodeError as exc:
        raise ModelError("a tensor's external data is not described in text") from exc


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number, start and end of each field with a length; numbers by themselves are stepped over."""
    while at < end:
        tag, at = _varint(view, at, end)
        match tag & 7:
            case 0:
                _, at = _varint(view, at, end)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(view, at, end)
                if at + length > end:
                    raise ModelError("the graph is cut off or not ONNX")
                yield tag >> 3, at, at + length
                at += length
            case _:
                raise ModelError("the graph is damaged or not ONNX")
    if at > end:
        raise ModelError("the graph is cut off or not ONNX")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ModelError("the graph is cut off or not ONNX")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ModelError("the graph is damaged or not ONNX")
