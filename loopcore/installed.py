"""What the installed distributions announce: metadata only, nothing is imported.

Kept free of all but the standard library, because `loopcore --help` waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distribution, distributions
from typing import NamedTuple

GROUPS = {
    "loopcore.annotators": "annotator",
    "loopcore.backends": "backend",
    "loopcore.commands": "command",
    "loopcore.converters": "converter",
    "loopcore.hooks": "hooks",
    "loopcore.platforms": "platform",
    "loopcore.selectors": "selector",
    "loopcore.sinks": "sink",
    "loopcore.sources": "source",
    "loopcore.trainers": "trainer",
}
"""Every entry-point group and what its entries are."""


class Entry(NamedTuple):
    """One thing that an installed distribution announces.

    Attributes:
        kind: A kind of driver, `hooks` or `command`.
        name: Its name.
        package: The distribution.
        version: The distribution's version.
        value: Where it is, `module:attribute`; a path for a single-file plugin.
    """

    kind: str
    name: str
    package: str
    version: str
    value: str


def scan() -> Iterator[tuple[Entry, EntryPoint]]:
    """What all distributions announce; of two installations of one distribution, the first on the path counts."""
    seen: set[str] = set()
    for candidate in distributions():
        if not _announces(candidate) or normal(name := _identity(candidate)[0]) in seen or not name:
            continue
        seen.add(normal(name))
        first = distribution(name)
        package, version = _identity(first)
        for point in first.entry_points:
            if kind := GROUPS.get(point.group):
                yield Entry(kind, point.name, package, version, point.value), point


def normal(package: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _announces(candidate: Distribution) -> bool:
    try:
        return "[loopcore." in (candidate.read_text("entry_points.txt") or "")
    except (OSError, UnicodeDecodeError):
        return False  # a damaged stranger


def _identity(candidate: Distribution) -> tuple[str, str]:
    """Name and version, from two lines: importlib parses the whole of METADATA, readme included, for each of them."""
    head = (candidate.read_text("METADATA") or candidate.read_text("PKG-INFO") or "").partition("\n\n")[0]
    found = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)", head, re.MULTILINE))
    return found.get("Name", ""), found.get("Version", "")
