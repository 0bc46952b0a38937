"""Find and load drivers, hook modules and commands by name. The only module that knows stevedore.

Listing reads metadata and imports nothing. Loading imports the one module that was asked for. What is installed is
looked up once for each `Registry`; stevedore's own look-up is not used, because its cache in the home folder takes a
changed file for the old one for up to two minutes (it keeps the times as 32-bit floats).
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from stevedore.driver import DriverManager

from loopcore.abc import KINDS, Driver
from loopcore.errors import PluginError, UnknownDriverError
from loopcore.installed import Entry, normal, scan

if TYPE_CHECKING:
    import typer

    from loopcore.abc import Launcher


class Broken(Struct, frozen=True):
    """An entry that cannot be used, and why."""

    entry: Entry
    cause: str


class _Loader(DriverManager[Any]):
    """stevedore's driver manager over what the registry has found."""

    def __init__(self, group: str, name: str, found: Sequence[EntryPoint]) -> None:
        self._found = list(found)
        super().__init__(group, name, invoke_on_load=False, on_missing_entrypoints_callback=None)

    def list_entry_points(self) -> list[EntryPoint]:
        return self._found


class Registry:
    """What is installed, by kind and name.

    Args:
        drivers: More drivers by kind and name; one of these is taken before an installed one of the same name.
        installed: Whether to look at what is installed at all.
    """

    def __init__(
        self, drivers: Mapping[str, Mapping[str, type[Driver]]] | None = None, *, installed: bool = True
    ) -> None:
        self._given = {kind: dict(named) for kind, named in (drivers or {}).items()}
        self._sources: dict[tuple[str, str], Entry] = {}
        self._installed = installed
        self._found: dict[Entry, EntryPoint] | None = None

    def driver(self, kind: str, name: str) -> type[Driver]:
        """The class of a driver; imports its module and no other.

        Raises:
            UnknownDriverError: Nothing of this kind and name is installed.
            PluginError: It cannot be imported, is no driver of this kind, or two distributions announce it.
        """
        if name in self._given.get(kind, {}):
            return self._given[kind][name]
        entries = self._named(kind, name)
        if not entries:
            raise UnknownDriverError(kind, name, self.names(kind), nearest(name, self.names(kind)))
        if len(entries) > 1:
            raise _duplicate(entries)
        found = self._load(entries[0])
        _check_class(entries[0], found)
        driver: type[Driver] = found
        return driver

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of a kind, sorted; from metadata alone."""
        installed = (entry.name for entry in self._scan() if entry.kind == kind)
        return tuple(sorted({*installed, *self._given.get(kind, ())}))

    def package(self, kind: str, name: str) -> str | None:
        """The distribution that announces a driver; `None` if it was given, came from a file, or is unknown."""
        if name in self._given.get(kind, {}):
            return None
        entries = self._named(kind, name)
        return entries[0].package if entries else None

    def version(self, kind: str, name: str) -> str:
        """The version of that distribution; empty if there is none."""
        entries = [] if name in self._given.get(kind, {}) else self._named(kind, name)
        return entries[0].version if entries else ""

    def entries(self) -> tuple[Entry, ...]:
        """All that is announced, sorted; from metadata alone."""
        return tuple(sorted([*self._scan(), *self._sources.values()]))

    def packages(self) -> tuple[str, ...]:
        """The distributions that announce anything, sorted."""
        return tuple(sorted({entry.package for entry in self._scan()}))

    def hook_modules(self, packages: Collection[str]) -> dict[str, ModuleType]:
        """The hook modules of these distributions, by the name of their entry.

        Raises:
            PluginError: One cannot be imported, or two have one name.
        """
        wanted = {normal(package) for package in packages}
        modules: dict[str, ModuleType] = {}
        for entry in self._scan():
            if entry.kind == "hooks" and normal(entry.package) in wanted:
                if entry.name in modules:
                    raise _duplicate(self._named("hooks", entry.name))
                modules[entry.name] = self._load(entry)
        return modules

    def command_names(self) -> dict[str, str]:
        """The commands of plugins and the distributions that announce them; from metadata alone."""
        return {entry.name: entry.package for entry in self._scan() if entry.kind == "command"}

    def command(self, name: str) -> Callable[[Launcher], typer.Typer]:
        """What makes a plugin's command.

        Raises:
            UnknownDriverError: There is none of this name.
            PluginError: It cannot be imported, is no function, or two distributions announce it.
        """
        entries = self._named("command", name)
        if not entries:
            names = tuple(sorted(self.command_names()))
            raise UnknownDriverError("command", name, names, nearest(name, names))
        if len(entries) > 1:
            raise _duplicate(entries)
        found = self._load(entries[0])
        if not callable(found):
            raise _broken(entries[0], f"expected a function command(launcher), found a {type(found).__name__}")
        command: Callable[[Launcher], typer.Typer] = found
        return command

    def add_files(self, paths: Iterable[Path]) -> dict[str, ModuleType]:
        """Load single-file plugins; their `loopcore_drivers()` become drivers. Returns the modules by file name.

        Raises:
            PluginError: A file cannot be imported, or a driver in it has no name, no kind, or a name that is taken.
        """
        modules: dict[str, ModuleType] = {}
        for path in paths:
            entry = Entry("file", path.name, path.name, "", str(path))
            if path.name in modules:
                raise _broken(entry, "two single-file plugins have this name")
            modules[path.name] = module = _import_file(entry, path)
            for driver in _file_drivers(entry, module):
                self._add(entry, driver)
        return modules

    def check_all(self) -> tuple[Broken, ...]:
        """Load everything that is installed, and say what is broken and why."""
        broken: list[Broken] = []
        for entry in sorted(self._scan()):
            try:
                if len(same := self._named(entry.kind, entry.name)) > 1:
                    raise _duplicate(same)
                found = self._load(entry)
                if entry.kind in KINDS:
                    _check_class(entry, found)
            except PluginError as exc:
                broken.append(Broken(entry, str(exc)))
        return tuple(broken)

    def _add(self, source: Entry, driver: type[Driver]) -> None:
        name = getattr(driver, "name", None)
        kind = next((kind for kind, base in KINDS.items() if _is_driver(driver, base)), None)
        if kind is None:
            raise _broken(
                source, f"loopcore_drivers() answers {driver!r}, expected subclasses of a class of loopcore.abc"
            )
        if not isinstance(name, str) or not name:
            raise _broken(source, f"the driver {driver.__name__} has no class attribute 'name'")
        if missing := sorted(getattr(driver, "__abstractmethods__", ())):
            raise _broken(source, f"the driver {driver.__name__} does not implement {', '.join(missing)}")
        if name in self.names(kind):
            raise _broken(source, f"the {kind} {name!r} exists already")
        self._given.setdefault(kind, {})[name] = driver
        self._sources[kind, name] = Entry(kind, name, source.package, "", source.value)

    def _scan(self) -> dict[Entry, EntryPoint]:
        if self._found is None:
            self._found = dict(scan()) if self._installed else {}
        return self._found

    def _named(self, kind: str, name: str) -> list[Entry]:
        return [entry for entry in self._scan() if entry.kind == kind and entry.name == name]

    def _load(self, entry: Entry) -> Any:
        point = self._scan()[entry]
        try:
            return _Loader(point.group, point.name, [point]).driver
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            raise _broken(entry, _cause(exc)) from exc


def _is_driver(found: object, base: type[Driver]) -> bool:
    return inspect.isclass(found) and issubclass(found, base)


def _check_class(entry: Entry, found: object) -> None:
    base = KINDS[entry.kind]
    if not _is_driver(found, base):
        what = (
            f"class {found.__module__}.{found.__qualname__}" if inspect.isclass(found) else repr(type(found).__name__)
        )
        raise _broken(entry, f"expected a subclass of loopcore.abc.{base.__name__}, found {what}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise _broken(entry, f"it does not implement {', '.join(missing)}")


def _import_file(entry: Entry, path: Path) -> ModuleType:
    name = f"loopcore_file_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise _broken(entry, "expected a file that ends in .py" if path.is_file() else "there is no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the Structs in it can look up their own names
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        del sys.modules[name]
        if isinstance(exc, KeyboardInterrupt):
            raise
        raise _broken(entry, _cause(exc)) from exc
    return module


def _file_drivers(entry: Entry, module: ModuleType) -> list[type[Driver]]:
    answer = getattr(module, "loopcore_drivers", None)
    if answer is None:
        return []
    try:
        return list(answer())
    except (Exception, SystemExit) as exc:
        raise _broken(entry, f"loopcore_drivers() raised {_cause(exc)}") from exc


def _cause(exc: BaseException) -> str:
    where = f" ({Path(exc.filename).name}, line {exc.lineno})" if isinstance(exc, SyntaxError) and exc.filename else ""
    text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return f"{type(exc).__name__}: {text}{where}" if text else type(exc).__name__


def _broken(entry: Entry, cause: str) -> PluginError:
    if entry.kind == "file":
        return PluginError(f"the plugin file {entry.value} cannot be used: {cause}", plugin=entry.name)
    what = "hook module" if entry.kind == "hooks" else entry.kind
    message = f"the {what} {entry.name!r} of {entry.package} {entry.version} cannot be used: {cause}"
    return PluginError(message, plugin=entry.name, package=entry.package, version=entry.version)


def _duplicate(entries: Sequence[Entry]) -> PluginError:
    what = "hook module" if entries[0].kind == "hooks" else entries[0].kind
    packages = sorted({f"{entry.package} {entry.version}" for entry in entries})
    message = f"the {what} {entries[0].name!r} is announced by {' and by '.join(packages)}; uninstall one of them"
    names = ", ".join(sorted({entry.package for entry in entries}))
    return PluginError(message, plugin=entries[0].name, package=names)


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The most similar of the names, if any is similar."""
    return next(iter(get_close_matches(name, names, 1)), None)
