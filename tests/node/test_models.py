"""Which model serves: a person's choice, the platform's wish and the disk, on both event loops."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from anyio import create_task_group, fail_after, from_thread

from loopcore import config
from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.deploy.conversion import Converters
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import ModelError, NotReadyError, RetryableError, StorageError
from loopcore.infer.threads import Threads
from loopcore.node import models as module
from loopcore.node.models import Models
from loopcore.node.rolling import Rolling
from loopcore.node.state import Settings
from loopcore.options import Options
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import FixedBackend, MemoryPlatform, make_model
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import Model, ModelInfo

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
        self.rolling: Rolling = NotImplemented
        self.backend: type[FixedBackend] = FixedBackend

    async def publish(self, version: str, **fields: Any) -> ModelInfo:
        return await self.registry.publish(await self.made(version, **fields))

    async def made(self, version: str, **fields: Any) -> Model:
        folder = self.folder / "made" / f"{version}-{len(await self.registry.list())}"
        return make_model(folder, version=version, content=version.encode(), **fields)

    async def serves(self, version: str | None) -> None:
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

        drivers = {"platform": {"acme": Platform}, "backend": {"fixed": bench.backend}}
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
        converters = Converters(registry, tmp_path / "work")
        bench.rolling = Rolling(plan, bench.models, converters, threads.run, bench.models.status)
        with fail_after(20):
            async with threads, create_task_group() as tasks:
                await tasks.start(bench.models.serving.run)
                await bench.models.start()
                await tasks.start(bench.rolling.run)
                tasks.start_soon(bench.models.keep)
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


class Gated(FixedBackend):
    """Loads the versions in `slow` only when they are let, and fails to load with the next of `troubles`."""

    slow: frozenset[str] = frozenset()
    loading: anyio.Event
    go_on: anyio.Event
    troubles: dict[str, list[Exception]]

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        version = self.model.info.version
        if version in self.slow:
            self.loading.set()
            await self.go_on.wait()
        if self.troubles.get(version):
            raise self.troubles[version].pop(0)
        yield self


@pytest.fixture
async def gated(bench: Bench) -> type[Gated]:
    bench.backend = made = type("Made", (Gated,), {"troubles": {}})
    made.loading, made.go_on = anyio.Event(), anyio.Event()
    return made


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("step", ["hold", "pause", "back"])
async def test_a_model_that_is_being_loaded_gives_way_to_a_person(
    bench: Bench, run: Run, gated: type[Gated], step: str, exclusive: bool
) -> None:
    gated.slow = frozenset("7")
    for number in "56":
        bench.deployment.wanted = await bench.publish(number)
        async with run():
            await bench.serves(number)
    async with run(exclusive=exclusive):
        bench.deployment.wanted = await bench.publish("7")
        await gated.loading.wait()
        served: list[str | None] = []
        bench.models.watchers.append(lambda: served.append(bench.version))
        async with create_task_group() as tasks:
            match step:
                case "hold":
                    await bench.models.hold_updates(True)
                case "pause":
                    tasks.start_soon(bench.models.set_model, "pause")
                case "back":
                    # An exclusive backend has nothing in service now; one step back is from what served last.
                    tasks.start_soon(bench.models.back)
            await anyio.wait_all_tasks_blocked()
            gated.go_on.set()
        await bench.models.reload()  # behind all that has been begun
        assert "7" not in served
        assert bench.version == ("5" if step == "back" else "6")
        active = bench.models.store.active()
        assert active is not None
        assert active.info.version == bench.version


async def test_a_reload_does_not_undo_what_a_rollout_has_done_meanwhile(
    bench: Bench, run: Run, gated: type[Gated]
) -> None:
    gated.slow = frozenset("6")
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
        bench.deployment.wanted = await bench.publish("6")
        await gated.loading.wait()
        served: list[str | None] = []
        bench.models.watchers.append(lambda: served.append(bench.version))
        async with create_task_group() as tasks:
            tasks.start_soon(bench.models.reload)
            await anyio.wait_all_tasks_blocked()
            gated.go_on.set()
        assert set(served) == {"6"}


async def test_a_command_that_comes_while_the_node_looks_for_its_first_model_is_not_overruled(
    bench: Bench, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
    ModelStore(bench.folder / "data" / "models").stage((await bench.made("6")).path)
    looking, go_on, chosen = anyio.Event(), threading.Event(), anyio.Event()
    active = ModelStore.active

    def slow(store: ModelStore) -> Any:
        model = active(store)
        if not go_on.is_set():
            from_thread.run_sync(looking.set)
            go_on.wait(10)
        return model

    monkeypatch.setattr(ModelStore, "active", slow)

    async def choose() -> None:
        await looking.wait()
        async with create_task_group() as tasks:
            tasks.start_soon(bench.models.set_model, "6")
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        chosen.set()

    async with create_task_group() as tasks:
        tasks.start_soon(choose)
        async with run():
            await chosen.wait()
            assert (bench.version, bench.models.choice) == ("6", "6")


async def test_a_device_without_room_refuses_no_model(bench: Bench, run: Run, gated: type[Gated]) -> None:
    gated.troubles["6"] = [MemoryError(), MemoryError()]
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")
        bench.deployment.wanted = await bench.publish("6")
        for left in (1, 0):
            while len(gated.troubles["6"]) > left:
                bench.deployment.asked = anyio.Event()
                await bench.deployment.asked.wait()
            bench.rolling._woken()
        await bench.serves("6")


async def test_an_old_model_for_which_there_was_no_room_serves_again_once_there_is(
    bench: Bench, run: Run, gated: type[Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTORE_S", 0.01)
    bench.deployment.wanted = await bench.publish("5")
    async with run(exclusive=True):
        await bench.serves("5")
        gated.troubles |= {"5": [MemoryError(), MemoryError()], "6": [ModelError("no graph")]}
        bench.deployment.wanted = await bench.publish("6")
        await bench.serves(None)
        await bench.serves("5")
        assert gated.troubles == {"5": [], "6": []}


async def test_a_full_disk_at_the_last_step_leaves_a_model_that_serves_and_a_store_that_can_be_read(
    bench: Bench, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.deployment.wanted = await bench.publish("5")
    async with run():
        await bench.serves("5")

        def full(model: Any) -> None:
            raise StorageError("cannot write active.json: No space left on device")

        monkeypatch.setattr(bench.models.store, "activate", full)
        bench.deployment.wanted = await bench.publish("6")
        await bench.serves("6")
    async with run():
        await bench.serves("6")
