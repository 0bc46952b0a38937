"""What a configuration names, found and decoded."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from loopcore import config
from loopcore.abc import Converter, Platform
from loopcore.errors import ConfigError, PluginError
from loopcore.options import Options
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import FixedBackend, MemorySink

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
    drivers = {
        "sink": {"choosy": Choosy, "clumsy": Clumsy, "memory": MemorySink},
        "platform": {"shelf": Shelf},
        "backend": {"fixed": FixedBackend},
        "converter": {"a-to-b": Converter},
    }
    loaded = config.parse({"node": {"data_dir": "d"}, **tables})
    return resolve(loaded, Registry(drivers, installed=False))  # type: ignore[arg-type]


def test_a_rollout_in_a_format_that_the_backend_does_not_run_is_refused_with_those_it_does() -> None:
    rollouts = [{"from": "shelf", "format": "tensorrt"}]
    with pytest.raises(ConfigError, match=r"a format that the backend runs \(null\)") as caught:
        plan(backend={"driver": "fixed"}, platforms=[{"driver": "shelf"}], rollouts=rollouts)
    assert caught.value.key == "rollouts[0].format"


def test_a_conversion_that_no_installed_converters_make_is_refused_with_those_there_are() -> None:
    conversions = [{"platform": "shelf", "from": "a", "to": "z"}]
    with pytest.raises(
        ConfigError, match=r"no installed converters lead from 'a' to 'z' \(installed: a-to-b\)"
    ) as caught:
        plan(platforms=[{"driver": "shelf"}], conversions=conversions)
    assert caught.value.key == "conversions[0]"


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
