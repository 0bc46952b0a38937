"""The annotator's role: desks of platforms get it, and what fails stays where it failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest
from anyio import create_task_group, fail_after
from anyio.abc import TaskStatus

from loopcore import abc, config
from loopcore.abc import AnnotationDesk, AnnotationSession, Annotator, Proposal, Stroke, StrokeKind
from loopcore.errors import ConfigError, FrameError, LoopcoreError, PluginError, RetryableError, first
from loopcore.node import enduring
from loopcore.node.annotating import Annotating
from loopcore.plan import resolve
from loopcore.registry import Registry

from .conftest import Start, table

pytestmark = pytest.mark.anyio

CapabilityT = TypeVar("CapabilityT")
PICTURE = np.zeros((4, 4, 3), np.uint8)
ENTER = Stroke(kind=StrokeKind.KEY, key="Enter")
CORNERS = ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The role needs no server."""
    name: str = request.param
    return name


class Saying(AnnotationSession):
    """Says, or raises, what its label says."""

    def __init__(self, label: str) -> None:
        self._label = label

    def act(self, stroke: Stroke) -> Proposal:
        answers: dict[str, Any] = {
            "triangle": Proposal(outline=CORNERS, done=True),
            "line": Proposal(outline=CORNERS[:2]),
            "nowhere": Proposal(outline=((float("nan"), 0.0), *CORNERS)),
            "nothing": None,
            "bug": ZeroDivisionError("by zero"),
            "blurred": FrameError("too blurred"),
        }
        answer: Any = answers[self._label]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


class Sayer(Annotator):
    def open(self, pixels: Any, label: str) -> AnnotationSession:
        if label == "unopened":
            raise ZeroDivisionError
        return Saying(label)


class Desk(AnnotationDesk):
    """Serves until told otherwise: each call of `serve` does the next thing of the script."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.served = 0
        self.again = anyio.Event()
        self.annotator: Annotator | None = None
        self.node = ""
        self.restart = anyio.Event()

    async def serve(self, annotator: Annotator, node: str, *, task_status: TaskStatus[None]) -> None:
        self.served += 1
        self.annotator = annotator
        self.node = node
        step = self.script.pop(0) if self.script else None
        if isinstance(step, ConfigError):
            raise step
        task_status.started()
        if step is not None:
            raise step
        self.again.set()
        await self.restart.wait()


def platform_of(desk: Desk | None) -> type[abc.Platform]:
    class Platform(abc.Platform):
        async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
            return desk if kind is AnnotationDesk else None  # type: ignore[return-value]

    return Platform


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Annotating]:
    def make(*desks: Desk | None, annotator: type[Annotator] = Sayer) -> Annotating:
        names = [f"platform{index}" for index in range(len(desks))]
        drivers = {
            "annotator": {"sayer": annotator},
            "platform": dict(zip(names, map(platform_of, desks), strict=True)),
        }
        tables: dict[str, Any] = {
            "backend": None, "selectors": None, "sinks": None, "annotator": {"driver": "sayer"},
            "platforms": [{"driver": name} for name in names],
        }  # fmt: skip
        plan = resolve(config.parse(table(tmp_path, **tables)), Registry(drivers, installed=False))
        assert plan.annotator
        return Annotating(plan.annotator, plan)

    return make


async def test_every_platform_with_a_desk_gets_the_annotator(make: Callable[..., Annotating]) -> None:
    one, other = Desk(), Desk()
    role = make(one, None, other)
    with fail_after(5):
        async with create_task_group() as tasks:
            await tasks.start(role.run)
            await one.again.wait()
            await other.again.wait()
            assert one.annotator
            assert one.annotator is other.annotator
            assert one.node == other.node == "test"
            assert set(role.status()["annotating"]) == {"platform0", "platform2"}
            tasks.cancel_scope.cancel()


async def test_annotator_without_a_desk_ends_the_start(make: Callable[..., Annotating]) -> None:
    with pytest.raises(ConfigError, match="annotator: no platform"):
        await run(make(None))


async def test_desk_that_cannot_begin_ends_the_start(make: Callable[..., Annotating]) -> None:
    with pytest.raises(ConfigError, match="asyncio only"):
        await run(make(Desk(ConfigError("asyncio only"))))


async def test_annotator_that_cannot_be_entered_is_named(make: Callable[..., Annotating]) -> None:
    class Broken(Sayer):
        async def __aenter__(self) -> Any:
            raise ZeroDivisionError

    with pytest.raises(PluginError, match="'sayer' cannot be started"):
        await run(make(Desk(), annotator=Broken))


async def run(role: Annotating) -> None:
    """Raises what ends the start."""
    with fail_after(5):
        try:
            async with create_task_group() as tasks:
                await tasks.start(role.run)
        except (LoopcoreError, ExceptionGroup) as exc:
            raise first(exc) from None


@pytest.mark.parametrize("error", [RetryableError("gone"), ZeroDivisionError("bug")], ids=repr)
async def test_desk_that_failed_is_opened_again(
    make: Callable[..., Annotating], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enduring, "PAUSES_S", (0.0,))
    failing, steady = Desk(error, error), Desk()
    role = make(failing, steady)
    with fail_after(5):
        async with create_task_group() as tasks:
            await tasks.start(role.run)
            await failing.again.wait()
            await steady.again.wait()
            shown = role.status()["annotating"]
            tasks.cancel_scope.cancel()
    assert shown["platform0"] == {"open": True, "failures": 2, "last_error": str(error)}
    assert shown["platform1"] == {"open": True, "failures": 0, "last_error": None}
    assert steady.served == 1


async def test_role_ends_when_a_platform_asks_for_a_restart(make: Callable[..., Annotating]) -> None:
    asking, other = Desk(), Desk()
    with fail_after(5):
        async with create_task_group() as tasks:
            await tasks.start(make(asking, other).run)
            asking.restart.set()


FAULTS: Sequence[tuple[str, type[LoopcoreError], str]] = [
    ("bug", PluginError, "'sayer' failed: ZeroDivisionError: by zero"),
    ("unopened", PluginError, "'sayer' failed: ZeroDivisionError"),
    ("nothing", PluginError, "'sayer' failed"),
    ("line", PluginError, "2 corners"),
    ("nowhere", PluginError, "nowhere"),
    ("blurred", FrameError, "too blurred"),
]


@pytest.mark.parametrize(("label", "kind", "words"), FAULTS)
async def test_desk_sees_only_errors_that_loopcore_knows(
    make: Callable[..., Annotating], label: str, kind: type[LoopcoreError], words: str
) -> None:
    desk = Desk()
    with fail_after(5):
        async with create_task_group() as tasks:
            await tasks.start(make(desk).run)
            await desk.again.wait()
            assert desk.annotator
            with pytest.raises(kind, match=words):
                desk.annotator.open(PICTURE, label).act(ENTER)
            assert desk.annotator.open(PICTURE, "triangle").act(ENTER) == Proposal(outline=CORNERS, done=True)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_node_annotates_and_ends_when_a_platform_asks_for_a_restart(start: Start) -> None:
    desk = Desk()
    drivers = {"annotator": {"sayer": Sayer}, "platform": {"desk": platform_of(desk)}}
    tables = {"annotator": {"driver": "sayer"}, "platforms": [{"driver": "desk"}]}
    async with start(drivers, **tables) as running:
        await desk.again.wait()
        status = (await running.client.get("/status")).json()
        assert status["annotating"] == {"desk": {"open": True, "failures": 0, "last_error": None}}
        desk.restart.set()
        await running.ended.wait()
