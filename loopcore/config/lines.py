"""Where in a TOML file a key stands. Used only when something is wrong, so that a good start never pays for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from loopcore.errors import ConfigError

MARK = "\0"  # no TOML file can hold it


class Document(Struct, frozen=True):
    """A TOML file and its text; both empty if the configuration was built in memory."""

    file: Path | None = None
    text: str = ""

    def __repr__(self) -> str:
        return f"Document({str(self.file)!r})"  # secrets may stand in the text

    @property
    def folder(self) -> Path:
        """Relative paths are meant from here."""
        return self.file.parent if self.file else Path()

    def error(self, key: str, message: str) -> ConfigError:
        """An error about a key, such as `sinks[0].when`, with file and line."""
        return self.located(ConfigError(message), key)

    def located(self, error: ConfigError, key: str) -> ConfigError:
        """The same error, now with file, line and key."""
        error.file, error.key, error.line = self.file, key, line_of(self.text, path_of(key))
        return error


def path_of(key: str) -> tuple[str | int, ...]:
    """`sinks[0].when` as `("sinks", 0, "when")`."""
    return tuple(int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key))


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line of a key, or of the nearest table around it; `None` if nothing of the path is there.

    tomlkit keeps every character but no line numbers. So the item gets a mark in front of it, and the mark is looked
    for in the document written out again.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    for length in range(len(path), 0, -1):
        try:
            document = tomlkit.parse(text)
            item: Any = document
            for part in path[:length]:
                item = _child(item, part)
        except (TOMLKitError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            continue
        if (line := _line(document, item)) is not None:
            return line
    return None


def _child(item: Any, part: str | int) -> Any:
    container = getattr(item, "value", item)  # a Table keeps its keys in a container
    if isinstance(part, str) and hasattr(container, "item"):
        return container.item(part)  # not [part]: that would turn a boolean into Python's own
    return item[part]


def _line(document: Any, item: Any) -> int | None:
    """Not every item is written: of a table that only dotted keys speak of, the first key is what can be found."""
    while True:
        if hasattr(item, "trivia"):
            item.trivia.indent = MARK + item.trivia.indent
            before, found, _ = document.as_string().partition(MARK)
            if found:
                return int(before.count("\n")) + 1
        if isinstance(item, dict) and item:
            item = _child(item, next(iter(item)))
        elif isinstance(item, list) and item:
            item = item[0]
        else:
            return None
