"""What a configuration names, found and decoded."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from loopcore import config
from loopcore.abc import Platform
from loopcore.errors import ConfigError, PluginError
from loopcore.options import Options
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import MemorySink

CapabilityT = TypeVar("CapabilityT")


class Shelf(Platform):
    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        return None


class Choosy(MemorySink):
    def __init__(self, options: Options) -> None:
        raise ConfigError("such a peer is not known", key="url")


class Clumsy(MemorySink):
    def __init__(self, options: Options) -> None:
        raise KeyError("x")


def plan(**tables: Any) -> Any:
    drivers = {"sink": {"choosy": Choosy, "clumsy": Clumsy, "memory": MemorySink}, "platform": {"shelf": Shelf}}
    loaded = config.parse({"node": {"data_dir": "d"}, **tables})
    return resolve(loaded, Registry(drivers, installed=False))  # type: ignore[arg-type]


def test_tables_without_effect_in_this_version_are_said_to_be_so() -> None:
    made = plan(platforms=[{"driver": "shelf"}], rollouts=[{"from": "shelf"}])
    (warning,) = made.config.warnings
    assert warning.startswith("rollouts[0]: ")
    assert "rolls nothing out" in warning


def test_a_configuration_that_is_used_in_full_has_no_warnings() -> None:
    assert plan(sinks=[{"driver": "memory"}]).config.warnings == []


def test_a_driver_s_own_mistake_is_placed_in_its_table() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(sinks=[{"driver": "memory"}, {"driver": "choosy"}])
    assert caught.value.key == "sinks[1].url"


def test_a_driver_that_cannot_be_constructed_is_a_plugin_s_fault_and_keeps_its_cause() -> None:
    with pytest.raises(PluginError, match="the sink 'clumsy' cannot be constructed: KeyError: 'x'") as caught:
        plan(sinks=[{"driver": "clumsy"}])
    assert isinstance(caught.value.__cause__, KeyError)
