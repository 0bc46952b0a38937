"""From a configuration to what it needs: classes, decoded options and hooks. Nothing is entered, no peer is asked.

What `loopcore check` reports and what the node builds come from here, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    TrainerTable,
)
from loopcore.errors import ConfigError, LoopcoreError, ModelError, PluginError, UnknownDriverError, first
from loopcore.hooks import Hooks
from loopcore.installed import normal
from loopcore.options import Options
from loopcore.registry import Registry, nearest
from loopcore.types import Model

TableT = TypeVar("TableT", bound=DriverTable, covariant=True)
DriverT = TypeVar("DriverT", bound=Driver, covariant=True)
CapabilityT = TypeVar("CapabilityT")


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
        registry: Where all of it was found; converters are looked for there when they are needed.
        packages: The distributions that take part, sorted: those of named drivers, and those of `[plugins] enabled`.
        hooks: The hooks of these distributions and of the single-file plugins.
        eyes: The backend with which the trainer's models look at the platforms' images, if one runs them.
    """

    config: Config
    registry: Registry
    hooks: Hooks
    packages: tuple[str, ...]
    backend: BackendPart | None
    platforms: tuple[Part[PlatformTable, Platform], ...]
    selectors: tuple[Part[SelectorTable, Selector], ...]
    sinks: tuple[Part[SinkTable, Sink], ...]
    sources: tuple[Part[SourceTable, Source], ...]
    trainer: Part[TrainerTable, Trainer] | None
    eyes: BackendPart | None
    annotator: Part[DriverTable, Annotator] | None

    def drivers(self) -> tuple[Driver, ...]:
        """All that are constructed: of every kind but backends, which come with their models."""
        single = (part for part in (self.trainer, self.annotator) if part)
        parts = (*self.platforms, *self.selectors, *self.sinks, *self.sources, *single)
        return tuple(part.driver for part in parts)

    @contextmanager
    def starting(self, part: Part[Any, Any]) -> Iterator[None]:
        """The driver guard of the start: around the block in which a driver is entered or begins.

        Raises:
            ConfigError: The driver's own, with its place in the TOML.
            PluginError: In place of what the driver may not raise.
        """
        with _guarded(self.config, part.kind, part.table, part.package, "started"):
            yield

    async def capability(self, platform: str, kind: type[CapabilityT]) -> CapabilityT | None:
        """What an entered platform of the TOML can do; `None` if it cannot.

        Raises:
            LoopcoreError: The platform failed.
        """
        part = next(part for part in self.platforms if part.table.name == platform)
        with self.starting(part):
            return await part.driver.capability(kind)

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
        "backend": _backend(config, registry, config.backend),
        "platforms": tuple(_part(config, registry, "platform", table) for table in config.platforms),
        "selectors": tuple(_part(config, registry, "selector", table) for table in config.selectors),
        "sinks": tuple(_part(config, registry, "sink", table) for table in config.sinks),
        "sources": tuple(_part(config, registry, "source", table) for table in config.sources),
        "trainer": _part(config, registry, "trainer", config.trainer) if config.trainer else None,
        "annotator": _part(config, registry, "annotator", config.annotator) if config.annotator else None,
    }
    packages = _packages(config, registry)
    plan["eyes"] = _eyes(config, registry, plan["trainer"], plan["backend"], packages)
    _check_formats(config, registry, plan["backend"])
    if config.trainer and not config.platforms:
        config.warn("trainer", "no platform of this file gives it jobs")
    hooks = Hooks(files | registry.hook_modules(packages))
    return Plan(config=config, registry=registry, hooks=hooks, packages=packages, **plan)


def _check_formats(config: Config, registry: Registry, backend: BackendPart | None) -> None:
    for rollout in config.rollouts:
        if rollout.target == "self" and backend and rollout.format not in (None, *backend.type.formats):
            formats = ", ".join(backend.type.formats)
            raise config.error(f"{rollout.key}.format", f"expected a format that the backend runs ({formats})")
    if config.conversions:
        _check_conversions(config, registry.names("converter"))


def _eyes(
    config: Config,
    registry: Registry,
    trainer: Part[TrainerTable, Trainer] | None,
    backend: BackendPart | None,
    packages: Sequence[str],
) -> BackendPart | None:
    """The backend that runs what the trainer makes: the one that is named, that of the node, or the first that does.

    Only distributions that take part are looked at, and this one.
    """
    if trainer is None:
        return None
    formats, named = trainer.driver.formats, trainer.table.backend
    if named is not None:
        if named not in (names := registry.names("backend")):
            raise config.located(UnknownDriverError("backend", named, names, nearest(named, names)), "trainer.backend")
        table = BackendTable(driver=named, name=named, key="trainer.backend")
        found = backend if backend and backend.table.driver == named else _backend(config, registry, table)
        if found is None or set(formats).isdisjoint(found.type.formats):
            message = f"the backend {named!r} does not run what the trainer makes ({', '.join(formats)})"
            raise config.error("trainer.backend", message)
        return found
    if backend and not set(formats).isdisjoint(backend.type.formats):
        return backend
    for name in registry.names("backend"):
        if registry.package("backend", name) in (None, "loopcore", *packages):
            table = BackendTable(driver=name, name=name, key="trainer")
            with suppress(ConfigError, PluginError):  # it needs options, so it has to be named; or it is broken
                found = _backend(config, registry, table)
                if found and not set(formats).isdisjoint(found.type.formats):
                    return found
    made = ", ".join(formats)
    config.warn("trainer", f"no backend runs the models that it makes ({made}), so they look at no images")
    return None


def _check_conversions(config: Config, names: Sequence[str]) -> None:
    from loopcore.deploy.conversion import leads  # brings much along that few need

    for conversion in config.conversions:
        if not leads(names, conversion.source, conversion.target):
            ways = f"from {conversion.source!r} to {conversion.target!r}"
            what = f"no installed converters lead {ways} (installed: {', '.join(names) or 'none'})"
            raise config.error(conversion.key, what)


def _files(config: Config, registry: Registry) -> dict[str, object]:
    for index, path in enumerate(config.plugins.files):
        if not path.is_file():
            raise config.error(f"plugins.files[{index}]", f"there is no file {path}")
    return dict(registry.add_files(config.plugins.files))


def _packages(config: Config, registry: Registry) -> tuple[str, ...]:
    installed = {normal(package): package for package in registry.packages()}
    named = [registry.package(kind, table.driver) for kind, table in config.drivers()]
    if config.trainer and config.trainer.backend:
        named.append(registry.package("backend", config.trainer.backend))
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


def _backend(config: Config, registry: Registry, table: BackendTable | None) -> BackendPart | None:
    if table is None:
        return None
    found, options = _class(config, registry, "backend", table)
    package = registry.package("backend", table.driver)
    return BackendPart(table=table, type=found, options=options, package=package)


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
