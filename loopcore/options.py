"""Types for drivers' Options: what a person may write in the TOML, and what the driver gets.

Each type is a plain value at runtime; `decode` turns the spelling of the TOML into it. A driver's Options is a frozen
Struct with `forbid_unknown_fields=True`, so that a typing error is found by name.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from datetime import time
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

OptionsT = TypeVar("OptionsT")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECRET = 64_000
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every driver's Options; by itself the options of a driver that has none."""


class Secret:
    """A value that never shows: not in `repr`, not in `str`, not in an error, not in JSON. `reveal()` gives it.

    In the TOML: `{ env = "NAME" }`, `{ file = "path" }` or the literal, which is warned about.
    """

    __slots__ = ("_value", "literal")

    def __init__(self, value: str, *, literal: bool = False) -> None:
        self._value = value
        self.literal = literal

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class Size(int):
    """A number of bytes. In the TOML: a whole number, or `"20 GB"`, `"64 MiB"`."""


class Duration(float):
    """A number of seconds. In the TOML: a number, or `"500 ms"`, `"90 s"`, `"15 min"`, `"2 h"`, `"30 d"`."""


class Rate(float):
    """Bytes a second. In the TOML: a number, or `"500 KB/s"`."""


class Window:
    """A part of each day, local time. In the TOML: `"22:00-06:00"`; it may run over midnight."""

    __slots__ = ("end", "start")

    def __init__(self, start: time, end: time) -> None:
        self.start = start
        self.end = end

    def contains(self, moment: time) -> bool:
        if self.start <= self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


def decode(table: Mapping[str, Any], options: type[OptionsT], *, folder: Path | None = None) -> OptionsT:
    """Turn a table of the TOML into a driver's Options.

    Args:
        table: The table, without the keys that belong to the core.
        options: The driver's Options.
        folder: Where the TOML lies; relative paths (`Path` fields and secret files) are meant from there.

    Raises:
        msgspec.ValidationError: The table does not fit; the message ends with the path to the field.
    """

    def hook(kind: type, value: Any) -> Any:
        try:
            return _hook(kind, value, folder or Path())
        except OSError as exc:
            raise ValueError(f"{exc.strerror}: {exc.filename}") from exc  # msgspec adds the path to the field

    return msgspec.convert(dict(table), options, dec_hook=hook)


def encode(options: Struct) -> dict[str, Any]:
    """The table that `decode` makes these options of, with its secrets as they are: for a child's standard input."""
    table: dict[str, Any] = msgspec.to_builtins(options, enc_hook=_plain)
    return table


def _plain(value: Any) -> Any:
    match value:
        case Secret():
            return value.reveal()
        case Path():
            return str(value.absolute())
        case Window():
            return f"{value.start:%H:%M}-{value.end:%H:%M}"
        case Size():
            return int(value)
        case Duration() | Rate():
            return float(value)
    raise TypeError(f"Options cannot hold a {type(value).__name__}")


def parse_size(value: object) -> Size:
    """`20_000_000`, `"20 MB"` or `"64 MiB"` as bytes.

    Raises:
        ValueError: It is none of these.
    """
    units = _UNITS | _BINARY_UNITS
    match = re.fullmatch(_NUMBER + r"([A-Za-z]*)", str(value)) if isinstance(value, (str, int)) else None
    if isinstance(value, bool) or not match or match[2] not in units or not isfinite(float(match[1])):
        raise ValueError(f"Expected a size such as 500_000, '20 GB' or '64 MiB', got {value!r}")
    return Size(float(match[1]) * units[match[2]])


def parse_duration(value: object) -> Duration:
    """`1.5`, `"500 ms"`, `"15 min"` … as seconds.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(_NUMBER + r"([a-z]*)", str(value)) if isinstance(value, (str, int, float)) else None
    if isinstance(value, bool) or not match or (match[2] or "s") not in _SECONDS:
        raise ValueError(f"Expected a duration such as 1.5, '500 ms', '15 min', '2 h' or '30 d', got {value!r}")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not isfinite(seconds):
        raise ValueError("Expected a duration that ends, such as '30 d'")
    return Duration(seconds)


def _parse_rate(value: object) -> Rate:
    text = value.removesuffix("/s").rstrip() if isinstance(value, str) else value
    try:
        rate = Rate(parse_size(text))
    except ValueError:
        rate = Rate(0)
    if rate <= 0:
        raise ValueError(f"Expected bytes a second, more than 0, such as '500 KB/s', got {value!r}")
    return rate


def _parse_window(value: object) -> Window:
    match = re.fullmatch(r"\s*(\d{1,2}:\d{2})\s*-\s*(\d{1,2}:\d{2})\s*", value) if isinstance(value, str) else None
    if not match:
        raise ValueError(f"Expected a part of the day such as '22:00-06:00', got {value!r}")
    return Window(*(time.fromisoformat(part.zfill(5)) for part in match.groups()))


def _parse_secret(value: object, folder: Path) -> Secret:
    match value:
        case str():
            return Secret(value, literal=True)
        case {"env": str(name), **rest} if not rest:
            if name not in os.environ:
                raise ValueError(f"Expected the environment variable {name} to be set")
            return Secret(os.environ[name])
        case {"file": str(name), **rest} if not rest:
            return Secret(_read_secret((folder / name).expanduser()))
    raise ValueError("Expected a secret: { env = 'NAME' }, { file = 'path' } or a string")


def _read_secret(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_SECRET:
        raise ValueError(f"Expected a file of at most {_MAX_SECRET} bytes, {path} is none")
    return path.read_text(encoding="utf-8").strip()


def _hook(kind: type, value: Any, folder: Path) -> Any:
    if kind is Secret:
        return _parse_secret(value, folder)
    if kind is Size:
        return parse_size(value)
    if kind is Duration:
        return parse_duration(value)
    if kind is Rate:
        return _parse_rate(value)
    if kind is Window:
        return _parse_window(value)
    if kind is Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"Expected a path, got {value!r}")
        return folder / Path(value).expanduser()
    raise TypeError(f"Options cannot hold a {kind.__name__}")
