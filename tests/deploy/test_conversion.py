"""Chains are planned over names and costs, and run step by step, each step in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore.abc import Converter, Driver
from loopcore.deploy.conversion import RULE, Chain, Converters, leads
from loopcore.errors import ConversionError, PluginError
from loopcore.registry import Registry
from loopcore.testing import make_model
from loopcore.types import Model

from .converters import Dying, Idle, Lying, NullToBest, PtToRaw, RawToNull, Refusing, Waiting

pytestmark = pytest.mark.anyio


class Counting(Registry):
    """A registry that says which drivers it was asked for."""

    def __init__(self, costs: Mapping[str, float | None]) -> None:
        super().__init__({"converter": {name: edge(name, cost or 1) for name, cost in costs.items()}}, installed=False)
        self.broken = {name for name, cost in costs.items() if cost is None}
        self.asked: list[str] = []

    def driver(self, kind: str, name: str) -> type[Driver]:
        self.asked.append(name)
        if name in self.broken:
            raise PluginError(f"{name} cannot be imported")
        return super().driver(kind, name)


def edge(name: str, cost: float = 1.0) -> type[Converter]:
    source, _, target = name.partition("-to-")
    return type(name, (Converter,), {"source": source, "target": target, "cost": cost})


def planned(registry: Registry, sources: set[str], targets: set[str]) -> list[str]:
    return [step.name for step in Converters(registry, Path()).plan(sources, targets).steps]


def test_the_cheapest_chain_is_taken_even_where_it_is_longer() -> None:
    registry = Counting({"a-to-d": 5, "a-to-b": 1, "b-to-d": 2, "a-to-c": 1, "c-to-d": 3})
    assert planned(registry, {"a"}, {"d"}) == ["a-to-b", "b-to-d"]


def test_of_chains_that_cost_the_same_the_shortest_is_taken() -> None:
    assert planned(Counting({"a-to-d": 2, "a-to-b": 1, "b-to-d": 1}), {"a"}, {"d"}) == ["a-to-d"]


def test_only_converters_whose_cost_can_matter_are_imported() -> None:
    registry = Counting({"a-to-b": 1, "b-to-c": 1, "a-to-x": 1, "x-to-y": 1, "y-to-c": 1, "c-to-d": 1, "z-to-c": 1})
    assert planned(registry, {"a"}, {"c"}) == ["a-to-b", "b-to-c"]
    assert sorted(registry.asked) == ["a-to-b", "b-to-c"]


def test_a_chain_may_begin_and_end_in_one_of_several_formats() -> None:
    registry = Counting({"a-to-b": 1, "b-to-c": 1, "x-to-c": 1})
    assert planned(registry, {"a", "x"}, {"c", "d"}) == ["x-to-c"]


def test_a_converter_that_cannot_be_imported_is_gone_round(caplog: pytest.LogCaptureFixture) -> None:
    assert planned(Counting({"a-to-c": None, "a-to-b": 1, "b-to-c": 1}), {"a"}, {"c"}) == ["a-to-b", "b-to-c"]
    assert "a-to-c cannot be imported" in caplog.text


def test_converters_of_data_sets_make_no_models() -> None:
    class Datasets(edge("a-to-c")):  # type: ignore[misc]
        subject = "dataset"

    registry = Registry({"converter": {"a-to-c": Datasets, "a-to-b": edge("a-to-b")}}, installed=False)
    with pytest.raises(ConversionError):
        planned(registry, {"a"}, {"c"})


def test_where_nothing_leads_the_error_names_what_is_installed() -> None:
    with pytest.raises(ConversionError, match=r"from 'a' or 'x' to 'z' \(installed: a-to-b\)") as caught:
        planned(Counting({"a-to-b": 1}), {"a", "x"}, {"z"})
    assert caught.value.rule is None


def test_a_circle_leads_nowhere() -> None:
    assert not leads(["a-to-b", "b-to-a"], "a", "c")
    assert leads(["a-to-b", "b-to-a", "b-to-c"], "a", "c")


# Running


@pytest.fixture
def source(tmp_path: Path) -> Model:
    return make_model(tmp_path / "raw", version="3", format="raw", content=b"", extra={"acme": {"id": "x"}})


def chain(*drivers: type[Converter]) -> Chain:
    named = {f"{driver.source}-to-{driver.target}": driver for driver in drivers}
    return Converters(Registry({"converter": named}, installed=False), Path()).plan(
        {drivers[0].source}, {drivers[-1].target}
    )


@pytest.fixture
def converters(tmp_path: Path) -> Converters:
    return Converters(Registry(installed=False), tmp_path / "converting")


async def test_each_step_reads_what_the_last_one_wrote_and_the_model_keeps_its_name(
    converters: Converters, source: Model, tmp_path: Path
) -> None:
    heard: list[float] = []
    with fail_after(30):
        async with converters.converted(
            source, chain(RawToNull, NullToBest), lambda part, _: heard.append(part)
        ) as made:
            assert (made.path / "weights.bin").read_bytes() == b" null best"
    assert (made.info.name, made.info.version, made.info.format) == ("made", "3", "best")
    assert made.info.labels == ("cat", "dog")
    assert made.info.extra == {"acme": {"id": "x"}, "origin": [source.info.id]}
    assert heard == [0.0, 0.25, 0.5, 0.75]
    assert list((tmp_path / "converting").iterdir()) == []


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (Refusing, "the converter 'raw-to-null' failed: the head is not understood"),
        (Dying, "was killed by SIGKILL"),
        (Lying, "in the format 'raw', not 'null'"),
        (Idle, "not a model package"),
    ],
)
async def test_a_step_that_fails_is_named_with_its_reason_and_leaves_nothing(
    converters: Converters, source: Model, tmp_path: Path, driver: type[Converter], why: str
) -> None:
    with fail_after(30), pytest.raises(ConversionError, match=f"made 3 cannot be converted.*{why}") as caught:
        async with converters.converted(source, chain(driver)):
            pass
    assert caught.value.rule == RULE
    assert list((tmp_path / "converting").iterdir()) == []


async def test_a_conversion_that_is_given_up_ends_its_process_and_leaves_nothing(
    converters: Converters, source: Model, tmp_path: Path
) -> None:
    begun = anyio.Event()

    def heard(progress: float, message: str) -> None:
        if message == "waiting":
            begun.set()

    async def convert() -> None:
        async with converters.converted(source, chain(Waiting), heard):
            raise AssertionError("it has ended by itself")

    with fail_after(30):
        async with create_task_group() as tasks:
            tasks.start_soon(convert)
            await begun.wait()
            tasks.cancel_scope.cancel()
    assert list((tmp_path / "converting").iterdir()) == []


async def test_what_a_crash_has_left_is_gone_with_the_next_conversion(
    converters: Converters, source: Model, tmp_path: Path
) -> None:
    (tmp_path / "converting" / "old").mkdir(parents=True)
    with fail_after(30):
        async with converters.converted(source, chain(RawToNull)):
            assert not (tmp_path / "converting" / "old").exists()


def test_a_chain_is_told_by_its_names_and_versions() -> None:
    assert str(chain(PtToRaw, RawToNull)) == "pt-to-raw, raw-to-null"
