"""From the file to a `Config`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from loopcore.config.checks import check
from loopcore.config.decoding import Mistake, convert, nearest, unknown
from loopcore.config.lines import Document
from loopcore.config.root import Config
from loopcore.config.tables import (
    BackendTable,
    ConversionTable,
    DriverTable,
    InferenceTable,
    NodeTable,
    OutboxTable,
    PlatformTable,
    PluginsTable,
    RolloutTable,
    SelectorTable,
    ServerTable,
    SinkTable,
    SourceTable,
    TrainerTable,
    own_keys,
)
from loopcore.errors import ConfigError, StorageError
from loopcore.files import read_bounded

TableT = TypeVar("TableT", bound=Struct)

MAX_BYTES = 1_000_000  # a configuration, not data

_BACKSLASH = "; where a backslash is meant, use single quotes; a path is written with /"
_HINTS = {
    "Invalid value": " (a text stands in quotes)",
    "Invalid hex value": _BACKSLASH,
    "Unescaped '\\' in a string": _BACKSLASH,
}
"""What is most likely behind a sentence of tomllib."""

_SINGLE: dict[str, type[Struct]] = {
    "node": NodeTable,
    "server": ServerTable,
    "inference": InferenceTable,
    "outbox": OutboxTable,
    "plugins": PluginsTable,
    "backend": BackendTable,
    "trainer": TrainerTable,
    "annotator": DriverTable,
}
_SEVERAL: dict[str, type[Struct]] = {
    "platforms": PlatformTable,
    "rollouts": RolloutTable,
    "conversions": ConversionTable,
    "selectors": SelectorTable,
    "sinks": SinkTable,
    "sources": SourceTable,
}


def load(path: Path) -> Config:
    """Read and check a TOML file.

    Raises:
        ConfigError: It cannot be read, is no TOML, or says something that cannot be meant.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8-sig")
    except StorageError as exc:
        raise ConfigError(_why_unreadable(path, exc), file=path) from exc
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError("expected UTF-8 text, this is another encoding", file=path, line=line) from None
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError("the tables are nested too deep", file=path) from None
    except ValueError as exc:  # besides TOMLDecodeError: a number of too many digits
        raise _syntax_error(path, text, str(exc)) from None
    return _build(table, Document(path, text))


def parse(table: Mapping[str, Any], file: Path | None = None) -> Config:
    """Check a configuration built in memory: what the TOML would hold.

    Args:
        table: The tables.
        file: Where it would lie; relative paths are meant from its folder.

    Raises:
        ConfigError: It says something that cannot be meant.
    """
    return _build(table, Document(file))


def _why_unreadable(path: Path, error: StorageError) -> str:
    if not path.exists():
        return "there is no such file"
    if not path.is_file():
        return "expected a TOML file, this is not a regular file"
    if path.stat().st_size > MAX_BYTES:
        return f"expected a TOML file of at most {MAX_BYTES:,} bytes, this one is larger"
    return str(error)


def _syntax_error(path: Path, text: str, message: str) -> ConfigError:
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = int(place[1]) if place and place[1] else text.count("\n") + 1 if place else None
    what = message[: place.start()] if place else message.partition(";")[0]
    if twice := re.fullmatch(r"Cannot declare \((.*)\) twice", what):
        name = ".".join(part.strip(" '\"") for part in twice[1].split(",") if part)
        return ConfigError(f"[{name}] stands here a second time, expected one such table", file=path, line=line)
    if what == "Cannot overwrite a value":
        what = "this key stands here a second time"
    hint = _HINTS.get(what, "")
    return ConfigError(f"not valid TOML: {what[:1].lower()}{what[1:]}{hint}", file=path, line=line)


def _build(table: Mapping[str, Any], document: Document) -> Config:
    for name in table:
        if name not in _SINGLE and name not in _SEVERAL:
            raise document.error(name, unknown("table", name, [*_SINGLE, *_SEVERAL]))
    if "node" not in table:
        raise document.error("node.data_dir", "this key is missing, expected the folder for what must survive")
    tables: dict[str, Any] = {}
    for name, kind in _SINGLE.items():
        if name in table:
            tables[name] = _convert(document, name, _one(document, name, table[name]), kind)
    for name, kind in _SEVERAL.items():
        if name in table:
            rows = _rows(document, name, table[name])
            tables[name] = tuple(_convert(document, f"{name}[{index}]", row, kind) for index, row in enumerate(rows))
    config = Config(**tables, document=document)
    check(config)
    return config


def _one(document: Document, name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        key = f"{name}[1]" if len(value) > 1 else f"{name}[0]"
        raise document.error(key, f"expected one table [{name}], not a list of them [[{name}]]")
    if not isinstance(value, Mapping):
        raise document.error(name, f"expected a table [{name}]")
    return value


def _rows(document: Document, name: str, value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        raise document.error(name, f"expected [[{name}]], with two brackets, because there may be several")
    if not isinstance(value, (list, tuple)) or not all(isinstance(row, Mapping) for row in value):
        raise document.error(name, f"expected tables [[{name}]]")
    return list(value)


def _convert(document: Document, key: str, table: Mapping[str, Any], kind: type[TableT]) -> TableT:
    own = own_keys(kind)
    rest = {name: value for name, value in table.items() if name not in own}
    if rest and not issubclass(kind, DriverTable):
        wrong = next(iter(rest))
        raise document.error(f"{key}.{wrong}", unknown("key", wrong, own))
    try:
        decoded = convert({name: table[name] for name in own if name in table}, kind, document.folder)
    except Mistake as exc:
        if exc.missing and (meant := nearest(exc.path, rest)):
            raise document.error(f"{key}.{meant}", f"unknown key; did you mean {exc.path!r}?") from None
        raise document.error(f"{key}.{exc.path}".rstrip("."), exc.message) from None
    if isinstance(decoded, DriverTable):
        return replace(decoded, key=key, options=rest, name=decoded.name or decoded.driver)
    return replace(decoded, key=key) if isinstance(decoded, (RolloutTable, ConversionTable)) else decoded
