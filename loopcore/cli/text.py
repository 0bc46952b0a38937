"""Text from outside, made safe to show: a terminal obeys control characters, so a person gets to see them instead."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1 controls: colours, cursor, title, clipboard
    "\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends and directions that make text read otherwise than it is
    "\ud800-\udfff]"  # halves of characters, from file names that are not UTF-8
)
_UNSAFE_BUT_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def visible(text: str, *, lines: bool = False) -> str:
    """The text with control characters as escapes; with `lines`, line ends and tabs stay."""
    pattern = _UNSAFE_BUT_LINES if lines else _UNSAFE
    return pattern.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def visible_json(text: str) -> str:
    """The same JSON, on one line, with control characters as the escapes of JSON."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
