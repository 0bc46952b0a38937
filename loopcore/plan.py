"""From a configuration to what it needs: classes, decoded options and hooks. Nothing is entered, no peer is asked.

What `loopcore check` reports and what the node builds come from here, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from msgspec import Struct

from loopcore.abc import Annotator, Backend, Driver, Platform, Selector, Sink, Source, Trainer
from loopcore.config import (
    BackendTable,
    Config,
    DriverTable,
    PlatformTable,
    SelectorTable,
    SinkTable,
    SourceTable,
)
from loopcore.errors import ConfigError, LoopcoreError, ModelError, PluginError, UnknownDriverError, first
from loopcore.hooks import Hooks
from loopcore.installed import normal
from loopcore.options import Options
from loopcore.registry import Registry, nearest
from loopcore.types import Model

TableT = TypeVar("TableT", bound=DriverTable, covariant=True)
DriverT = TypeVar("DriverT", bound=Driver, covariant=True)


class Part(Struct, Generic[TableT, DriverT], frozen=True, kw_only=True, eq=False):
    """A table and its driver, constructed but not entered; `package` is the distribution that it came with."""

    kind: str
    table: TableT
    driver: DriverT
    package: str | None = None


class BackendPart(Struct, frozen=True, kw_only=True, eq=False):
    """The backend's table, class and options; an instance needs a model, and for another model there is another."""

    table: BackendTable
    type: type[Backend]
    options: Options
    package: str | None = None

    def part(self, model: Model) -> Part[BackendTable, Backend]:
        """An instance for this model, not entered."""
        driver = self.type(self.options, model)
        return Part(kind="backend", table=self.table, driver=driver, package=self.package)


class Plan(Struct, frozen=True, kw_only=True, eq=False):
    """All that a configuration names, found and decoded.

    Attributes:
        packages: The distributions that take part, sorted: those of named drivers, and those of `[plugins] enabled`.
        hooks: The hooks of these distributions and of the single-file plugins.
    """

    config: Config
    hooks: Hooks
    packages: tuple[str, ...]
    backend: BackendPart | None
    platforms: tuple[Part[PlatformTable, Platform], ...]
    selectors: tuple[Part[SelectorTable, Selector], ...]
    sinks: tuple[Part[SinkTable, Sink], ...]
    sources: tuple[Part[SourceTable, Source], ...]
    trainer: Part[DriverTable, Trainer] | None
    annotator: Part[DriverTable, Annotator] | None

    @contextmanager
    def starting(self, part: Part[Any, Any]) -> Iterator[None]:
        """The driver guard of the start: around the block in which a driver is entered or begins.

        Raises:
            ConfigError: The driver's own, with its place in the TOML.
            PluginError: In place of what the driver may not raise.
        """
        with _guarded(self.config, part.kind, part.table, part.package, "started"):
            yield

    def open_model(self, opened: Callable[[Path], Model]) -> Model | None:
        """The model at the path that `[backend] model` names; `None` if it names a mode or a version.

        Args:
            opened: Opens it; raises `ModelError`.

        Raises:
            ConfigError: There is no usable model there, or the backend does not run its format.
        """
        path = self.config.model_path
        if path is None or self.backend is None:
            return None
        try:
            model = opened(path)
        except ModelError as exc:
            raise self.config.error("backend.model", str(exc)) from exc
        if model.info.format not in self.backend.type.formats:
            formats = ", ".join(self.backend.type.formats)
            message = (
                f"the model is in the format {model.info.format!r}, expected one that the backend runs ({formats})"
            )
            raise self.config.error("backend.model", message)
        return model


def resolve(config: Config, registry: Registry) -> Plan:
    """Find and construct everything that the configuration names.

    Raises:
        ConfigError: A driver, a distribution or a file is not there, or a driver's options are wrong.
        PluginError: What is named cannot be loaded, or its hooks do not fit.
    """
    files = _files(config, registry)
    plan: dict[str, Any] = {
        "backend": _backend(config, registry),
        "platforms": tuple(_part(config, registry, "platform", table) for table in config.platforms),
        "selectors": tuple(_part(config, registry, "selector", table) for table in config.selectors),
        "sinks": tuple(_part(config, registry, "sink", table) for table in config.sinks),
        "sources": tuple(_part(config, registry, "source", table) for table in config.sources),
        "trainer": _part(config, registry, "trainer", config.trainer) if config.trainer else None,
        "annotator": _part(config, registry, "annotator", config.annotator) if config.annotator else None,
    }
    packages = _packages(config, registry)
    _warn_of_idle(config)
    return Plan(config=config, hooks=Hooks(files | registry.hook_modules(packages)), packages=packages, **plan)


def _warn_of_idle(config: Config) -> None:
    """What is read and checked, and has no effect yet; nobody should wait for it."""
    for rollout in config.rollouts:
        config.warn(rollout.key, "this version checks the table and rolls nothing out")
    for table in (config.trainer, config.annotator):
        if table is not None:
            config.warn(table.key, "this version checks the table and starts nothing")


def _files(config: Config, registry: Registry) -> dict[str, object]:
    for index, path in enumerate(config.plugins.files):
        if not path.is_file():
            raise config.error(f"plugins.files[{index}]", f"there is no file {path}")
    return dict(registry.add_files(config.plugins.files))


def _packages(config: Config, registry: Registry) -> tuple[str, ...]:
    installed = {normal(package): package for package in registry.packages()}
    named = [registry.package(kind, table.driver) for kind, table in config.drivers()]
    for index, name in enumerate(config.plugins.enabled):
        if normal(name) not in installed:
            near = nearest(name, tuple(installed.values()))
            hint = f"; did you mean {near!r}?" if near else ""
            what = (
                f"no plugin {name!r} is installed{hint} (installed: {', '.join(sorted(installed.values())) or 'none'})"
            )
            raise config.error(f"plugins.enabled[{index}]", what)
        named.append(installed[normal(name)])
    return tuple(sorted({package for package in named if package}))


def _backend(config: Config, registry: Registry) -> BackendPart | None:
    if config.backend is None:
        return None
    found, options = _class(config, registry, "backend", config.backend)
    package = registry.package("backend", config.backend.driver)
    return BackendPart(table=config.backend, type=found, options=options, package=package)


def _part(config: Config, registry: Registry, kind: str, table: DriverTable) -> Part[Any, Any]:
    found, options = _class(config, registry, kind, table)
    package = registry.package(kind, table.driver)
    with _guarded(config, kind, table, package, "constructed"):
        return Part(kind=kind, table=table, driver=found(options), package=package)


@contextmanager
def _guarded(config: Config, kind: str, table: DriverTable, package: str | None, done: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - the driver guard: what is unforeseen is the plugin's fault
        error = first(exc)
        if isinstance(error, ConfigError) and error.file is None:
            raise config.located(error, f"{table.key}.{error.key}" if error.key else table.key) from error.__cause__
        if isinstance(error, LoopcoreError):
            raise error from error.__cause__
        message = f"the {kind} {table.driver!r} cannot be {done}: {type(error).__name__}: {error}"
        raise PluginError(message, plugin=table.driver, package=package) from error


def _class(config: Config, registry: Registry, kind: str, table: DriverTable) -> tuple[Any, Any]:
    try:
        found = registry.driver(kind, table.driver)
    except UnknownDriverError as exc:
        raise config.located(exc, f"{table.key}.driver") from None
    return found, config.decode(table, found.Options)
