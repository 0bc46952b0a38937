"""Which model serves: a person's choice, the platform's wish and the disk, on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore import config
from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.deploy.conversion import Converters
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import ModelError, NotReadyError, RetryableError
from loopcore.infer.threads import Threads
from loopcore.node.models import Models
from loopcore.node.rolling import Rolling
from loopcore.node.state import Settings
from loopcore.options import Options
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import FixedBackend, MemoryPlatform, make_model
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Nothing here needs a server."""
    name: str = request.param
    return name


class Bench:
    """A node's models, and the platform that it follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = MemoryModels()
        self.deployment = MemoryDeployment(self.registry)
        self.models: Models = NotImplemented

    async def publish(self, version: str, **fields: Any) -> ModelInfo:
        folder = self.folder / "made" / str(len(await self.registry.list()))
        return await self.registry.publish(make_model(folder, version=version, content=version.encode(), **fields))

    async def serves(self, version: str) -> None:
        """Wait until this version serves."""
        while self.version != version:
            changed = anyio.Event()
            self.models.watchers.append(changed.set)
            if self.version != version:
                await changed.wait()
            self.models.watchers.remove(changed.set)

    @property
    def version(self) -> str | None:
        model = self.models.serving.model
        return model and model.info.version


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


Run = Callable[..., Any]


@pytest.fixture
def run(bench: Bench, tmp_path: Path) -> Run:
    @asynccontextmanager
    async def running(**backend: Any) -> AsyncIterator[None]:
        class Platform(MemoryPlatform):
            def __init__(self, options: Options) -> None:
                super().__init__(options)
                self.capabilities = {ModelRegistry: bench.registry, DeploymentTarget: bench.deployment}

        drivers = {"platform": {"acme": Platform}, "backend": {"fixed": FixedBackend}}
        registry = Registry(drivers, installed=False)  # type: ignore[arg-type]
        tables = {
            "node": {"data_dir": str(tmp_path / "data")},
            "backend": {"driver": "fixed", **backend},
            "platforms": [{"driver": "acme"}],
            "rollouts": [{"from": "acme", "every": "100 ms"}],
        }
        plan = resolve(config.parse(tables), registry)
        (tmp_path / "data").mkdir(exist_ok=True)
        settings, threads = Settings(tmp_path / "data"), Threads()
        settings.load()
        bench.models = Models(plan, settings, threads, lambda _: None)
        rolling = Rolling(plan, bench.models, Converters(registry, tmp_path / "work"), threads.run, bench.models.status)
        with fail_after(20):
            async with threads, create_task_group() as tasks:
                await tasks.start(bench.models.serving.run)
                await bench.models.start()
                await tasks.start(rolling.run)
                yield
                tasks.cancel_scope.cancel()

    return running


async def test_what_the_platform_wants_serves_and_after_a_restart_without_it_too(bench: Bench, run: Run) -> None:
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
    bench.deployment.errors.extend(RetryableError("no route") for _ in range(100))
    async with run():
        assert bench.version == "5"


async def test_a_choice_and_the_way_back(bench: Bench, run: Run) -> None:
    await bench.publish("6")
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
        await bench.models.set_model("6")
        assert (bench.version, bench.models.choice) == ("6", "6")
        await bench.models.back()
        assert (bench.version, bench.models.choice) == ("5", "pause")
        bench.deployment.wanted = await bench.publish("7")
        await bench.models.set_model("follow")
        await bench.serves("7")
    async with run():
        assert (bench.version, bench.models.choice) == ("7", "follow")


async def test_a_version_that_nobody_has_changes_nothing(bench: Bench, run: Run) -> None:
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
        with pytest.raises(ModelError, match="has no model '9'"):
            await bench.models.set_model("9")
        bench.registry.errors.append(RetryableError("no route"))
        with pytest.raises(RetryableError):
            await bench.models.set_model("9")
        assert (bench.version, bench.models.choice) == ("5", "follow")


async def test_a_chosen_version_that_the_node_lacks_is_fetched_once_the_platform_is_there(
    bench: Bench, run: Run
) -> None:
    await bench.publish("8")
    async with run(model="8"):
        await bench.serves("8")


async def test_without_a_model_there_is_nothing_to_reload(bench: Bench, run: Run) -> None:
    async with run():
        with pytest.raises(NotReadyError):
            await bench.models.reload()


async def test_of_two_models_of_one_version_the_one_that_served_serves_again(bench: Bench, run: Run) -> None:
    old = await bench.publish("5", labels=("a",))
    bench.deployment.wanted = old
    async with run():
        await bench.serves("5")
        await bench.models.set_model("5")
    again = make_model(bench.folder / "again", version="5", content=b"another")
    ModelStore(bench.folder / "data" / "models").stage(again.path)
    async with run():
        model = bench.models.serving.model
        assert model is not None
        assert model.info.id == old.id
        with pytest.raises(ModelError, match="say the id"):
            await bench.models.set_model("5")
        await bench.models.set_model(again.info.id)
        assert bench.models.serving.model is not None
        assert bench.models.serving.model.info.id == again.info.id


async def test_a_damaged_model_is_fetched_again_when_it_is_chosen(bench: Bench, run: Run) -> None:
    bench.deployment.wanted = await bench.publish("5")
    await bench.publish("6")
    async with run():
        await bench.serves("5")
        await bench.models.set_model("6")
        five = next(model for model in bench.models.store.list() if model.info.version == "5")
        (five.path / "weights.bin").write_bytes(b"rot")
        await bench.models.set_model("5")
        assert bench.version == "5"
    assert [version for version, _ in bench.registry.fetched] == ["5", "6", "5"]
