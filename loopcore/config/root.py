"""The whole configuration, and how a driver's options come out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import fields

from loopcore.config.decoding import Mistake, convert, literal_secrets
from loopcore.config.lines import Document, path_of
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
from loopcore.errors import ConfigError

OptionsT = TypeVar("OptionsT")


class Config(Struct, kw_only=True, eq=False):
    """What a TOML file says, checked as far as it can be without the drivers.

    Attributes:
        document: The file and its text, to find the lines of mistakes.
        warnings: What works but should not stay so, one sentence each; `decode` adds to it.
    """

    node: NodeTable
    server: ServerTable = ServerTable()
    backend: BackendTable | None = None
    inference: InferenceTable = InferenceTable()
    platforms: tuple[PlatformTable, ...] = ()
    rollouts: tuple[RolloutTable, ...] = ()
    conversions: tuple[ConversionTable, ...] = ()
    selectors: tuple[SelectorTable, ...] = ()
    sinks: tuple[SinkTable, ...] = ()
    sources: tuple[SourceTable, ...] = ()
    outbox: OutboxTable = OutboxTable()
    plugins: PluginsTable = PluginsTable()
    trainer: TrainerTable | None = None
    annotator: DriverTable | None = None
    document: Document = Document()
    warnings: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path | None:
        """The TOML file; `None` if the configuration was built in memory."""
        return self.document.file

    @property
    def folder(self) -> Path:
        """Relative paths are meant from here."""
        return self.document.folder

    @property
    def model_path(self) -> Path | None:
        """`[backend] model` where it is a path, not a version or a mode."""
        model = self.backend.model if self.backend else ""
        if "/" in model or model.endswith((".onnx", ".zip")):
            return self.folder / Path(model).expanduser()
        return None

    def drivers(self) -> Iterator[tuple[str, DriverTable]]:
        """Every table that names a driver, after its kind."""
        several = {"source": self.sources, "platform": self.platforms, "selector": self.selectors, "sink": self.sinks}
        for kind, tables in several.items():
            for table in tables:
                yield kind, table
        for kind, single in {"backend": self.backend, "trainer": self.trainer, "annotator": self.annotator}.items():
            if single is not None:
                yield kind, single

    def decode(self, table: DriverTable, options: type[OptionsT]) -> OptionsT:
        """The options of a driver's table, with what a sink takes over from its platform.

        Raises:
            ConfigError: A key is unknown or missing, or a value does not fit.
        """
        platform = self._like(table)
        taken = _shared(platform.options, options) if platform else {}

        def owner(path: str) -> DriverTable:
            key = path_of(path)[0] if path else ""
            return platform if platform and key in taken and key not in table.options else table

        try:
            decoded = convert(taken | table.options, options, self.folder, also=own_keys(type(table)))
        except Mistake as exc:
            message = exc.message + self._choice(table, exc)
            raise self.error(f"{owner(exc.path).key}.{exc.path}".rstrip("."), message) from None
        for path in literal_secrets(decoded):
            self._note_literal(f"{owner(path).key}.{path}")
        return decoded

    def error(self, key: str, message: str) -> ConfigError:
        """An error about a key, such as `sinks[0].when`, with file and line."""
        return self.document.error(key, message)

    def located(self, error: ConfigError, key: str) -> ConfigError:
        """The same error, now with file, line and key."""
        return self.document.located(error, key)

    def note_literals(self, table: Struct, key: str) -> None:
        """Warn of the secrets in a decoded table that stand in the file as they are."""
        for path in literal_secrets(table):
            self._note_literal(f"{key}.{path}")

    def warn(self, key: str, message: str) -> None:
        """Add to the warnings: what about this key should not stay so."""
        sentence = str(self.error(key, message))
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def _note_literal(self, key: str) -> None:
        self.warn(key, "the secret stands in the file itself, better { env = 'NAME' } or { file = 'path' }")

    def _like(self, table: DriverTable) -> PlatformTable | None:
        if not isinstance(table, SinkTable):
            return None
        if table.like is not None:
            return next(platform for platform in self.platforms if platform.name == table.like)
        same = [platform for platform in self.platforms if platform.driver == table.driver]
        return same[0] if len(same) == 1 else None

    def _choice(self, table: DriverTable, mistake: Mistake) -> str:
        """With several platforms of its driver a sink takes nothing over until it says from which."""
        if not isinstance(table, SinkTable) or table.like is not None or not mistake.missing:
            return ""
        names = [repr(platform.name) for platform in self.platforms if platform.driver == table.driver]
        return f"; or say which platform this sink is like: {' or '.join(names)}" if len(names) > 1 else ""


def _shared(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    names = {one.encode_name for one in fields(kind)}
    return {name: value for name, value in options.items() if name in names}
