"""One TOML file configures a node. Every mistake in it is named with file, line, key and what was expected."""

from loopcore.config.checks import is_loopback
from loopcore.config.loading import load, parse
from loopcore.config.root import Config
from loopcore.config.tables import (
    BackendTable,
    ConversionTable,
    DriverTable,
    GateTable,
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
    When,
)

__all__ = [
    "BackendTable",
    "Config",
    "ConversionTable",
    "DriverTable",
    "GateTable",
    "InferenceTable",
    "NodeTable",
    "OutboxTable",
    "PlatformTable",
    "PluginsTable",
    "RolloutTable",
    "SelectorTable",
    "ServerTable",
    "SinkTable",
    "SourceTable",
    "TrainerTable",
    "When",
    "is_loopback",
    "load",
    "parse",
]
