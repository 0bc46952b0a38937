"""A table of the TOML becomes a Struct, or a sentence with what was expected and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from loopcore.options import Secret
from loopcore.options import decode as decode_options

StructT = TypeVar("StructT")

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "datetime": "a date and time",
    "date": "a date",
    "time": "a time",
}
_PATTERN = re.compile(r"Expected `str` matching regex .*")


class Mistake(Exception):  # noqa: N818 - it never leaves this package: `Config.error` makes a ConfigError of it
    """What is wrong with one table: the path to the key inside it, and the sentence."""

    def __init__(self, path: str, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.message = message
        self.missing = missing


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of the names, if any is similar."""
    matches = get_close_matches(name.lower(), by_case := {other.lower(): other for other in names}, 1, 0.6)
    return by_case[matches[0]] if matches else None


def unknown(what: str, given: str, names: Iterable[str]) -> str:
    """The sentence for a key or table that is none of these."""
    valid = sorted(names)
    return f"unknown {what}{_hint(given, valid)} (valid: {', '.join(valid) or 'none'})"


def convert(table: Mapping[str, Any], kind: type[StructT], folder: Path, *, also: Iterable[str] = ()) -> StructT:
    """Decode a table.

    Args:
        table: As tomllib read it.
        kind: The Struct it becomes.
        folder: Where the TOML lies.
        also: Keys that belong in the same table but to somebody else; they are named as valid ones.

    Raises:
        Mistake: It does not fit.
    """
    try:
        return decode_options(table, kind, folder=folder)
    except msgspec.ValidationError as exc:
        message, path = re.fullmatch(r"(.*?)(?: - at `\$(.*)`)?", str(exc), re.DOTALL).groups("")  # type: ignore[union-attr]  # it matches anything
        raise _mistake(message, path, kind, also) from None


def literal_secrets(value: object, path: str = "") -> list[str]:
    """The paths of the secrets in a decoded Struct that stand in the TOML as they are."""
    match value:
        case Secret():
            return [path] if value.literal else []
        case Struct():
            fields = msgspec.structs.fields(value)
            children = [(_join(path, one.encode_name), getattr(value, one.name)) for one in fields]
        case dict():
            children = [(_join(path, str(key)), child) for key, child in value.items()]
        case list() | tuple():
            children = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
        case _:
            return []
    return [found for name, child in children for found in literal_secrets(child, name)]


def _mistake(message: str, path: str, kind: type, also: Iterable[str]) -> Mistake:
    path = path.removeprefix(".")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        name = match[1]
        names = [*_keys(kind, path), *([] if path else also)]
        return Mistake(_join(path, name), unknown("key", name, names))
    if match := re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL):
        return Mistake(_join(path, match[1]), "this key is missing", missing=True)
    if match := re.fullmatch(r"Invalid enum value (?:'(.*)'|(.*))", message, re.DOTALL):
        values = _values(kind, path)
        given = match[1] if match[1] is not None else match[2]
        return Mistake(path, f"expected one of {', '.join(map(repr, values))}, got {given!r}{_hint(given, values)}")
    if _PATTERN.fullmatch(message):
        return Mistake(path, "expected letters, digits, '.', '_' and '-', 64 at most, a letter or digit first")
    return Mistake(path, _plain(message))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _hint(given: str, values: Iterable[str]) -> str:
    near = nearest(given, values)
    return f"; did you mean {near!r}?" if near else ""


def _plain(message: str) -> str:
    def words(match: re.Match[str]) -> str:
        kinds = [_WORDS.get(part, part) for part in match[1].split(" | ") if part != "null"]
        return " or ".join(kinds)

    message = re.sub(r"`([^`]*)`", words, message)
    return message[:1].lower() + message[1:]


def _keys(kind: type, path: str) -> list[str]:
    structs = [node for node in _at(kind, path) if isinstance(node, msgspec.inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]


def _values(kind: type, path: str) -> list[str]:
    found: list[str] = []
    for node in _at(kind, path):
        if isinstance(node, msgspec.inspect.LiteralType):
            found += map(str, node.values)
        elif isinstance(node, msgspec.inspect.EnumType):
            found += [str(member.value) for member in node.cls]
    return found


def _at(kind: type, path: str) -> list[msgspec.inspect.Type]:
    nodes = _flat(msgspec.inspect.type_info(kind))
    for name, _ in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        nodes = [inner for node in nodes for inner in _flat(_step(node, name))]
    return nodes


def _step(node: msgspec.inspect.Type, name: str) -> msgspec.inspect.Type | None:
    match node:
        case msgspec.inspect.StructType():
            return next((field.type for field in node.fields if field.encode_name == name), None)
        case msgspec.inspect.DictType():
            return node.value_type
        case (
            msgspec.inspect.ListType()
            | msgspec.inspect.VarTupleType()
            | msgspec.inspect.SetType()
            | msgspec.inspect.FrozenSetType()
        ):
            return node.item_type
    return None


def _flat(node: msgspec.inspect.Type | None) -> list[msgspec.inspect.Type]:
    match node:
        case None:
            return []
        case msgspec.inspect.UnionType():
            return [inner for part in node.types for inner in _flat(part)]
        case msgspec.inspect.Metadata():
            return _flat(node.type)
    return [node]
