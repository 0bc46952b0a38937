"""Environment variables as the reference reads them, with what is wrong about a value said in a sentence.

Empty counts as unset. Of a name and its alias the name wins where they differ (`learning-loop.md` 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from loopcore.errors import ConfigError

_WHOLE = re.compile(r"-?[0-9]{1,15}")
_TRUE = frozenset({"1", "true"})
_FALSE = frozenset({"0", "false", "no", "off", "none"})


class Variables:
    """An environment that is read variable by variable.

    Attributes:
        warnings: What works but should not stay so, one sentence each.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.warnings: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        """The value, without white space around it; the default if it is unset or empty."""
        return self._environment.get(name, "").strip() or default

    def named(self, name: str, alias: str, *, secret: bool = False) -> str:
        """The name under which a value is set: the given one, its alias, or empty if neither is.

        Args:
            name: The name.
            alias: Another name, which shells and platforms set for purposes of their own.
            secret: The values are not shown.
        """
        value, other = self.text(name), self.text(alias)
        if value:
            if other and other != value:
                shown = "" if secret else f" ({value!r}, not {other!r})"
                self.warnings.append(f"{name} and {alias} differ, and {name} counts{shown}")
            return name
        if other:
            what = "others use it for purposes of their own"
            self.warnings.append(f"{alias} is taken for {name}, which is not set; set that instead, because {what}")
            return alias
        return ""

    def flag(self, name: str) -> bool:
        """Whether it is `1` or `true`; unset is no.

        Raises:
            ConfigError: It is neither that nor a no.
        """
        value = self.text(name).lower()
        if value in _TRUE:
            return True
        if value and value not in _FALSE:
            raise self.error(name, "1 or true, 0 or false")
        return False

    def number(self, name: str, *, least: float = -math.inf, most: float = math.inf, unit: str = "") -> float | None:
        """A number within bounds, both included; `None` if it is unset.

        Raises:
            ConfigError: It is none.
        """
        if not (text := self.text(name)):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            raise self.error(name, f"a number{unit}{_within(least, most)}")
        return value

    def whole(self, name: str, *, least: int, most: int | None = None) -> int | None:
        """A whole number within bounds, both included; `None` if it is unset.

        Raises:
            ConfigError: It is none.
        """
        if not (text := self.text(name)):
            return None
        bound = math.inf if most is None else most
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= bound:
            raise self.error(name, f"a whole number{_within(least, bound)}")
        return int(text)

    def word(self, name: str, words: tuple[str, ...]) -> str | None:
        """One of these words, whatever its case; `None` if it is unset.

        Raises:
            ConfigError: It is another.
        """
        if not (text := self.text(name)):
            return None
        found = next((word for word in words if word.lower() == text.lower()), None)
        if found is None:
            raise self.error(name, f"one of {', '.join(words)}")
        return found

    def file(self, name: str) -> str | None:
        """The path of a file that is there; `None` if it is unset.

        Raises:
            ConfigError: There is none.
        """
        path = self.text(name)
        if path and not Path(path).is_file():
            raise self.error(name, "the path of a file that is there")
        return path or None

    def error(self, name: str, expected: str) -> ConfigError:
        """What is wrong with a variable; a variable that holds a secret is never given to this."""
        return ConfigError(f"expected {expected}, got {self.text(name)!r}", key=name)


def _within(least: float, most: float) -> str:
    match math.isfinite(least), math.isfinite(most):
        case True, True:
            return f" from {least:g} to {most:g}"
        case True, False:
            return f", {least:g} or more"
        case False, True:
            return f", {most:g} at most"
    return ""
