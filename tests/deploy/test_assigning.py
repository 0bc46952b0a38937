"""From one platform to another: published once, assigned, and seen to be the target."""

from __future__ import annotations

from pathlib import Path

import pytest
from anyio import to_thread
from msgspec.structs import replace

from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.config import GateTable
from loopcore.deploy.assigning import OtherPlatform
from loopcore.deploy.bringing import Bringer, Doing
from loopcore.deploy.conversion import Converters
from loopcore.deploy.gate import gate_for
from loopcore.deploy.modelstore import ModelStore
from loopcore.deploy.notes import Notes
from loopcore.errors import ModelError, RejectedError, RetryableError
from loopcore.options import Options
from loopcore.registry import Registry
from loopcore.testing import MemoryPlatform, make_model
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import Model, ModelInfo

pytestmark = pytest.mark.anyio


class Renaming(MemoryModels):
    """Gives each model a name of its own."""

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        own = replace(
            package.info, name="device", version=f"d{package.info.version}", extra={"device": {"id": "7"}}, id=""
        )
        await super().publish(replace(package, info=own), job)
        return own


class Bench:
    """Two platforms, and what lies between them."""

    def __init__(self, folder: Path, *, there: MemoryPlatform | None = None, **gate: tuple[str, ...]) -> None:
        self.folder = folder
        self.here = MemoryPlatform(Options())
        self.there = there or MemoryPlatform(Options())
        self.told: list[Doing] = []
        self.notes = Notes(folder / "notes.json")
        self.notes.load()
        store = ModelStore(folder / "passing")

        async def refused(model: ModelInfo, why: str) -> None:
            raise AssertionError(f"{model.version}: {why}")

        converters = Converters(Registry(installed=False), folder / "converting")
        self.place = OtherPlatform(
            "device",
            self._of(ModelRegistry),
            self._of(DeploymentTarget),
            bringer=Bringer("acme", self.here.models, store, converters, self.notes, refused),
            store=store,
            formats=(),
            gate=gate_for(GateTable(**gate), to_thread.run_sync),
            notes=self.notes,
            conditions="any",
        )

    def _of(self, kind: type) -> object:
        return self.there.capabilities[kind]

    async def roll(self, wanted: ModelInfo) -> None:
        await self.place.bring(wanted, self.told.append)
        await self.place.activate(wanted, self.told.append)

    async def publish(self) -> ModelInfo:
        return await self.here.models.publish(make_model(self.folder / "made", extra={"acme": {"id": "x"}}))


def renaming() -> MemoryPlatform:
    platform = MemoryPlatform(Options())
    platform.models = Renaming()
    platform.deployment = MemoryDeployment(platform.models)
    platform.capabilities = {ModelRegistry: platform.models, DeploymentTarget: platform.deployment}
    return platform


async def test_a_model_is_published_and_assigned(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    wanted = await bench.publish()
    assert not await bench.place.has(wanted)
    await bench.roll(wanted)
    assert await bench.place.has(wanted)
    assert [info.id for info in await bench.there.models.list()] == [wanted.id]
    assert bench.told == ["fetching", "checking"]


async def test_a_platform_that_gives_models_other_names_is_understood_even_after_a_restart(tmp_path: Path) -> None:
    there = renaming()
    first = Bench(tmp_path, there=there)
    wanted = await first.publish()
    await first.roll(wanted)
    again = Bench(tmp_path, there=there)
    assert await again.place.has(wanted)


async def test_a_model_that_was_published_is_only_assigned_the_next_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    wanted = await bench.publish()
    await bench.roll(wanted)
    bench.there.deployment.wanted = None
    assert not await bench.place.has(wanted)
    await bench.roll(wanted)
    assert await bench.place.has(wanted)
    assert bench.here.models.fetched == [("1", "null")]


async def test_a_model_whose_upload_fails_is_not_fetched_again_for_the_next_attempt(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    wanted = await bench.publish()
    bench.there.models.errors.append(RetryableError("reset"))
    with pytest.raises(RetryableError):
        await bench.roll(wanted)
    await bench.roll(wanted)
    assert await bench.place.has(wanted)
    assert bench.here.models.fetched == [("1", "null")]


async def test_a_platform_that_has_lost_a_model_gets_it_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    wanted = await bench.publish()
    await bench.roll(wanted)
    bench.there.models.forget()
    bench.there.deployment.wanted = None
    with pytest.raises(RejectedError):
        await bench.roll(wanted)
    await bench.roll(wanted)
    assert await bench.place.has(wanted)


class Deaf(MemoryDeployment):
    async def assign(self, model: ModelInfo) -> None:
        pass


async def test_a_platform_that_does_not_take_the_target_is_found_out(tmp_path: Path) -> None:
    there = MemoryPlatform(Options())
    there.capabilities[DeploymentTarget] = Deaf(there.models)
    bench = Bench(tmp_path, there=there)
    with pytest.raises(RetryableError, match="names another target"):
        await bench.roll(await bench.publish())


async def test_a_package_that_fails_the_gate_is_not_published(tmp_path: Path) -> None:
    bench = Bench(tmp_path, labels=("fox",))
    with pytest.raises(ModelError) as caught:
        await bench.roll(await bench.publish())
    assert caught.value.rule == "labels"
    assert await bench.there.models.list() == []
