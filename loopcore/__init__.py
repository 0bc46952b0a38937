"""loopcore: the whole road of a learning camera, from a frame to a better model.

The public names. They are imported when first used, so that `import loopcore` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopcore import abc as abc
    from loopcore import errors as errors
    from loopcore import types as types
    from loopcore.hookspecs import Mount as Mount
    from loopcore.hookspecs import hookimpl as hookimpl
    from loopcore.options import Duration as Duration
    from loopcore.options import Options as Options
    from loopcore.options import Rate as Rate
    from loopcore.options import Secret as Secret
    from loopcore.options import Size as Size
    from loopcore.options import Window as Window

_HOMES = {
    "Duration": "options",
    "Mount": "hookspecs",
    "Options": "options",
    "Rate": "options",
    "Secret": "options",
    "Size": "options",
    "Window": "options",
    "hookimpl": "hookspecs",
}
_MODULES = ("abc", "errors", "types")

__version__ = "0.1.0"
__all__ = [
    "Duration",
    "Mount",
    "Options",
    "Rate",
    "Secret",
    "Size",
    "Window",
    "abc",
    "errors",
    "hookimpl",
    "types",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"loopcore.{name}")
    if name in _HOMES:
        return getattr(import_module(f"loopcore.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'loopcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
