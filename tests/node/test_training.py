"""A node with a `[trainer]`: jobs come by its platforms, and the trainer works in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import pytest
from anyio.abc import TaskStatus
from train.world import World

from loopcore import config
from loopcore.abc import Accepted, Job, JobQueue, Platform, Worker
from loopcore.errors import ConfigError, LoopcoreError, PluginError, RetryableError, first
from loopcore.node import Node
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import FixedBackend, FixedTrainer, NullBackend

pytestmark = pytest.mark.anyio

CapabilityT = TypeVar("CapabilityT")
LIMIT_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Giving(World):
    """Gives its jobs to the worker that serves it.

    Attributes:
        worker: The node's.
        steady: Set once `serve` does not raise.
        errors: What `serve` raises, each time.
        restart: Set: the platform asks for the node's restart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.restart = anyio.Event()
        self.worker: Worker | None = None
        self.steady = anyio.Event()

    async def serve(self, worker: Worker, *, task_status: TaskStatus[None]) -> None:
        self.worker = worker
        task_status.started()
        if self.errors:
            raise self.errors.pop(0)
        self.steady.set()
        await self.restart.wait()


class Giver(Platform):
    world: ClassVar[Giving]

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        return self.world if kind is JobQueue else None  # type: ignore[return-value]


class Idle(Platform):
    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        return None


class Formless(FixedTrainer):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.formats = ()


class Other(NullBackend):
    formats = ("other",)


@pytest.fixture
def world() -> Giving:
    Giver.world = Giving()
    return Giver.world


def make(tmp_path: Path, trainer: Mapping[str, Any], **tables: Any) -> Node:
    drivers = {
        "platform": {"giver": Giver, "idle": Idle},
        "trainer": {"fixed": FixedTrainer, "formless": Formless},
        "backend": {"fixed": FixedBackend, "other": Other},
    }
    table = {
        "node": {"name": "gate-3", "data_dir": str(tmp_path / "data")},
        "server": {"port": 0},
        "platforms": [{"driver": "giver", "name": "loop"}],
        "trainer": {"driver": "fixed", **trainer},
        **tables,
    }
    return Node(resolve(config.parse(table), Registry(drivers, installed=False)))


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(node.run)
            yield node
            tasks.cancel_scope.cancel()


async def ended(worker: Worker, job: Job) -> None:
    """The job is carried out."""
    assert await worker.offer(job) == Accepted()
    while worker.state() is not None:
        state = worker.state()
        assert state is None or not (state.error and state.step == "ended"), state
        await worker.changed()


async def test_job_is_done_in_a_process_of_its_own_and_the_node_s_backend_looks_at_the_images(
    tmp_path: Path, world: Giving
) -> None:
    async with running(make(tmp_path, {"steps": 2})) as node:
        assert world.worker is not None
        assert (await node.status())["jobs"] == []
        await ended(world.worker, world.job(parameters={"secret": "canary"}))
    assert world.published == {"null": {"model.txt": b"null after 2 steps\n"}}
    assert set(world.seen) == {f"image-{number}" for number in range(6)}
    assert world.scores[-1].epoch == 2


async def test_status_shows_the_job_and_none_of_the_platform_s_words(tmp_path: Path, world: Giving) -> None:
    async with running(make(tmp_path, {"steps": 2, "pause": "1 h"})) as node:
        assert world.worker is not None
        job = world.job(parameters={"secret": "canary"}, context={"key": "canary"})
        assert await world.worker.offer(job) == Accepted()
        while (state := world.worker.state()) is not None and state.score is None:
            await world.worker.changed()
        status = await node.status()
        assert "canary" not in str(status)
        (shown,) = status["jobs"]
        assert (shown["platform"], shown["job"], shown["step"], shown["progress"]) == ("loop", "job-1", "training", 0.0)
        assert shown["images"] == {"train": 3, "val": 0, "test": 1, "missing": 0}
        assert status["queues"] == {"loop": {"open": True, "failures": 0, "last_error": None}}
        await world.worker.abort("job-1")
        while world.worker.state() is not None:
            await world.worker.changed()


async def test_job_goes_on_in_the_next_node(tmp_path: Path, world: Giving) -> None:
    async with running(make(tmp_path, {"steps": 2, "pause": "1 h"})):
        assert world.worker is not None
        assert await world.worker.offer(world.job()) == Accepted()
        while (state := world.worker.state()) is not None and state.score is None:
            await world.worker.changed()
    async with running(make(tmp_path, {"steps": 2})):
        assert world.worker is not None
        while world.worker.state() is not None:
            await world.worker.changed()
    assert set(world.published) == {"null"}


async def test_trainer_is_described_as_its_options_have_it(tmp_path: Path, world: Giving) -> None:
    async with running(make(tmp_path, {"formats": ["null", "other"]})):
        assert world.worker is not None
        info = world.worker.describe()
    assert (info.architecture, info.formats, info.pretrained) == ("fixed", ("null", "other"), ("small", "large"))
    assert info.node == "gate-3"


@pytest.mark.parametrize("keys", [{"exit_after": True}, {"idle_exit": "10 ms"}])
async def test_node_ends_when_the_trainer_has_done_its_duty(
    tmp_path: Path, world: Giving, keys: dict[str, Any]
) -> None:
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(tmp_path, keys).run)
            if "exit_after" in keys:
                assert world.worker is not None
                assert await world.worker.offer(world.job()) == Accepted()


async def test_node_ends_when_the_platform_asks_for_its_restart(tmp_path: Path, world: Giving) -> None:
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(tmp_path, {}).run)
            world.restart.set()


async def test_queue_that_fails_is_served_again(tmp_path: Path, world: Giving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.node.enduring.PAUSES_S", (0.0,))
    world.errors = [RetryableError("gone"), ZeroDivisionError("bug")]
    async with running(make(tmp_path, {})) as node:
        await world.steady.wait()
        status = (await node.status())["queues"]["loop"]
    assert status == {"open": True, "failures": 2, "last_error": "bug"}


async def start(node: Node) -> None:
    """Raises what ends the start."""
    with anyio.fail_after(LIMIT_S):
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(node.run)
        except (LoopcoreError, ExceptionGroup) as exc:
            raise first(exc) from None


async def test_trainer_without_a_platform_that_gives_jobs_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainer: no platform of this file gives jobs"):
        await start(make(tmp_path, {}, platforms=[{"driver": "idle"}]))


async def test_trainer_that_makes_nothing_ends_the_start(tmp_path: Path, world: Giving) -> None:
    with pytest.raises(PluginError, match="'formless' names no format"):
        await start(make(tmp_path, {"driver": "formless"}))


async def test_platform_that_fails_at_once_ends_the_start(tmp_path: Path, world: Giving) -> None:
    class Refusing(Giving):
        async def serve(self, worker: Worker, *, task_status: TaskStatus[None]) -> None:
            raise ConfigError("on asyncio only")

    Giver.world = Refusing()
    with pytest.raises(ConfigError, match="on asyncio only"):
        await start(make(tmp_path, {}))


# Which backend looks


def eyes(tmp_path: Path, trainer: Mapping[str, Any], **tables: Any) -> str | None:
    node = make(tmp_path, trainer, **tables)
    part = node._plan.eyes
    return part.table.driver if part else None


def test_backend_of_the_node_looks_if_it_can_and_else_one_that_can(tmp_path: Path) -> None:
    assert eyes(tmp_path, {}) == "fixed"
    assert eyes(tmp_path, {"formats": ["other", "null"]}, backend={"driver": "fixed"}) == "fixed"
    assert eyes(tmp_path, {"formats": ["other"]}, backend={"driver": "fixed"}) == "other"
    assert eyes(tmp_path, {"formats": ["other", "null"], "backend": "other"}, backend={"driver": "fixed"}) == "other"


def test_backend_that_is_named_twice_keeps_its_options(tmp_path: Path) -> None:
    boxes = [{"label": "cat"}]
    node = make(tmp_path, {"backend": "fixed"}, backend={"driver": "fixed", "boxes": boxes})
    assert node._plan.eyes is node._plan.backend


def test_no_backend_is_a_warning(tmp_path: Path) -> None:
    node = make(tmp_path, {"formats": ["strange"]})
    assert node._plan.eyes is None
    assert (
        "trainer: no backend runs the models that it makes (strange), so they look at no images"
        in node._config.warnings
    )


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"backend": "fixd"}, "trainer.backend: no backend 'fixd' is installed; did you mean 'fixed'"),
        ({"backend": "other"}, "trainer.backend: the backend 'other' does not run what the trainer makes (null)"),
        ({"slot": "/no/such/folder/slot"}, "trainer.slot: there is no folder /no/such/folder for this file"),
        ({"idle_exit": 0}, "trainer.idle_exit: expected more than 0 s"),
        ({"batch": 0}, "trainer.batch: expected"),
        ({"keep_old": 1}, "trainer.keep_old: expected true or false"),
        ({"stepz": 1}, "trainer.stepz: unknown key; did you mean 'steps'?"),
    ],
)
def test_mistake_is_found_by_name(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, keys)
    assert sentence in str(caught.value)


def test_trainer_without_platforms_is_a_warning(tmp_path: Path) -> None:
    node = make(tmp_path, {}, platforms=[])
    assert "trainer: no platform of this file gives it jobs" in node._config.warnings
