"""A model comes into service, and no call fails because of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after

from loopcore.abc import Backend
from loopcore.errors import ModelError, NotReadyError, PluginError
from loopcore.infer.serving import Serving
from loopcore.options import Options
from loopcore.types import Frame, Model, ModelInfo, Prediction

pytestmark = pytest.mark.anyio


class Diary(Backend):
    """A backend that writes down when it is opened and closed, and fails as its model's name says."""

    formats = ("test",)
    entries: list[str]

    def __init__(self, model: Model, entries: list[str]) -> None:
        super().__init__(Options(), model)
        self.entries = entries

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        version = self.model.info.version
        if version == "unreadable":
            raise ModelError("cannot be read")
        if version == "buggy":
            raise ZeroDivisionError
        if self.model.info.extra:
            raise ModelError("the disk has eaten it")
        self.entries.append(f"open {version}")
        try:
            yield self
        finally:
            self.entries.append(f"close {version}")

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        return [Prediction(model_version=self.model.info.version) for _ in frames]


def model(version: str) -> Model:
    return Model(info=ModelInfo(name="m", version=version, format="test"), path=Path())


@asynccontextmanager
async def serving(
    entries: list[str],
    activated: Callable[[Backend, Model | None], Awaitable[None]] | None = None,
    swapped: Callable[[Backend], None] = lambda _: None,
    *,
    exclusive: bool = False,
) -> AsyncGenerator[Serving]:
    async def quiet(backend: Backend, previous: Model | None) -> None:
        pass

    service = Serving(lambda model: Diary(model, entries), swapped, activated or quiet, exclusive=exclusive)
    with fail_after(10):
        async with create_task_group() as group:
            await group.start(service.run)
            yield service
            group.cancel_scope.cancel()


def served(service: Serving) -> str:
    with service.borrow() as backend:
        return backend.model.info.version


async def test_nothing_is_borrowed_before_a_model_serves() -> None:
    async with serving([]) as service:
        with pytest.raises(NotReadyError):
            served(service)


async def test_the_new_model_is_open_before_the_old_one_closes() -> None:
    entries: list[str] = []
    async with serving(entries) as service:
        await service.activate(model("1"))
        await service.activate(model("2"))
        assert served(service) == "2"
        await anyio.wait_all_tasks_blocked()
        assert entries == ["open 1", "open 2", "close 1"]


async def test_the_old_model_closes_only_after_its_last_call() -> None:
    entries: list[str] = []
    async with serving(entries) as service:
        await service.activate(model("1"))
        with service.borrow() as old:
            await service.activate(model("2"))
            await anyio.wait_all_tasks_blocked()
            assert entries == ["open 1", "open 2"]
            assert old.model.info.version == "1"
        await anyio.wait_all_tasks_blocked()
        assert entries == ["open 1", "open 2", "close 1"]


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("unreadable", ModelError),
        ("buggy", PluginError),
    ],
)
async def test_a_model_that_cannot_serve_is_refused_and_the_old_one_goes_on(
    version: str, error: type[Exception]
) -> None:
    entries: list[str] = []
    async with serving(entries) as service:
        await service.activate(model("1"))
        with pytest.raises(error):
            await service.activate(model(version))
        assert served(service) == "1"
        assert "close 1" not in entries
        await service.activate(model("2"))
        assert served(service) == "2"


async def test_the_activation_is_told_while_the_old_model_is_still_open() -> None:
    entries: list[str] = []
    told: list[Any] = []

    async def activated(backend: Backend, previous: Model | None) -> None:
        told.append((backend.model.info.version, previous and previous.info.version, "close 1" in entries))

    async with serving(entries, activated) as service:
        await service.activate(model("1"))
        await service.activate(model("2"))
    assert told == [("1", None, False), ("2", "1", False)]


async def test_whoever_sizes_the_batches_hears_of_a_swap_before_the_next_call_can_come() -> None:
    heard: list[tuple[str, str | None]] = []
    async with serving([], swapped=lambda backend: heard.append((backend.model.info.version, now()))) as service:

        def now() -> str | None:
            return service.model.info.version if service.model else None

        await service.activate(model("1"))
        await service.activate(model("2"))
    assert heard == [("1", None), ("2", "1")]


async def refused(backend: Backend) -> None:
    raise ModelError(f"{backend.model.info.version} may not")


async def test_a_model_that_is_not_admitted_never_serves() -> None:
    entries: list[str] = []
    async with serving(entries) as service:
        await service.activate(model("1"))
        with pytest.raises(ModelError, match="2 may not"):
            await service.activate(model("2"), refused)
        assert served(service) == "1"
        assert entries == ["open 1", "open 2", "close 2"]


async def test_an_exclusive_model_is_loaded_when_the_old_one_is_closed_and_calls_are_refused_meanwhile() -> None:
    entries: list[str] = []
    seen: list[str] = []

    async with serving(entries, exclusive=True) as service:

        async def looked(backend: Backend) -> None:
            with pytest.raises(NotReadyError, match="updating model to version 2"):
                served(service)
            seen.extend(entries)

        await service.activate(model("1"))
        await service.activate(model("2"), looked)
        assert seen == ["open 1", "close 1", "open 2"]
        assert served(service) == "2"


async def test_an_exclusive_swap_waits_for_the_calls_that_have_begun() -> None:
    entries: list[str] = []
    async with serving(entries, exclusive=True) as service, create_task_group() as tasks:
        await service.activate(model("1"))
        with service.borrow() as old:
            tasks.start_soon(service.activate, model("2"))
            await anyio.wait_all_tasks_blocked()
            assert entries == ["open 1"]
            assert old.model.info.version == "1"
        await anyio.wait_all_tasks_blocked()
        assert entries == ["open 1", "close 1", "open 2"]
        assert served(service) == "2"


@pytest.mark.parametrize("version", ["unreadable", "buggy", "2"])
async def test_the_old_model_serves_again_when_an_exclusive_one_cannot(version: str) -> None:
    entries: list[str] = []
    async with serving(entries, exclusive=True) as service:
        await service.activate(model("1"))
        with pytest.raises((ModelError, PluginError)):
            await service.activate(model(version), refused)
        assert served(service) == "1"
        assert entries[-1] == "open 1"
        await service.activate(model("3"))
        assert served(service) == "3"


async def test_an_exclusive_swap_that_is_cancelled_leaves_the_old_model_serving() -> None:
    async with serving([], exclusive=True) as service:
        await service.activate(model("1"))
        with CancelScope() as scope:

            async def cancel(backend: Backend) -> None:
                scope.cancel()
                await anyio.sleep_forever()

            await service.activate(model("2"), cancel)
        assert scope.cancelled_caught
        assert served(service) == "1"


async def test_calls_are_told_why_nothing_serves_when_the_old_model_cannot_be_loaded_again() -> None:
    entries: list[str] = []
    async with serving(entries, exclusive=True) as service:
        await service.activate(first := model("1"))

        async def spoilt(backend: Backend) -> None:
            first.info.extra["broken"] = True
            raise ModelError("no")

        with pytest.raises(ModelError, match="no"):
            await service.activate(model("2"), spoilt)
        with pytest.raises(NotReadyError, match="the disk has eaten it"):
            served(service)
        await service.activate(model("3"))
        assert served(service) == "3"
