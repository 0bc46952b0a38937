"""A rollout brings what is wanted, once, and says where it stands."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore.deploy.bringing import Told
from loopcore.deploy.identity import same_model
from loopcore.deploy.notes import Notes
from loopcore.deploy.rollout import Rollout
from loopcore.errors import (
    AuthError,
    ConversionError,
    LoopcoreError,
    ModelError,
    NotReadyError,
    PluginError,
    RetryableError,
    StorageError,
)
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio


def info(id: str, version: str = "1") -> ModelInfo:
    return ModelInfo(name="gate", version=version, format="onnx", extra={"acme": {"id": id}})


class Shelf:
    """A place that keeps a diary; what is in `troubles` is raised by the next steps of that name."""

    name = "shelf"
    conditions = "any"

    def __init__(self) -> None:
        self.live: ModelInfo | None = None
        self.shut: Literal["paused", "held"] | None = None
        self.diary: list[str] = []
        self.troubles: dict[str, list[LoopcoreError]] = {"bring": [], "activate": []}
        self.brought = anyio.Event()
        self.go_on = anyio.Event()
        self.go_on.set()

    def closed(self) -> Literal["paused", "held"] | None:
        return self.shut

    async def has(self, wanted: ModelInfo) -> bool:
        return self.live is not None and same_model(wanted, self.live)

    async def bring(self, wanted: ModelInfo, told: Told) -> None:
        self.diary.append(f"bring {wanted.extra['acme']['id']}")
        told("fetching")
        self.brought.set()
        await self.go_on.wait()
        self._trouble("bring")

    async def activate(self, wanted: ModelInfo, told: Told) -> bool:
        self.diary.append(f"activate {wanted.extra['acme']['id']}")
        told("checking")
        self._trouble("activate")
        if self.shut is None:
            self.live = wanted
        return self.live == wanted

    def _trouble(self, step: str) -> None:
        if self.troubles[step]:
            raise self.troubles[step].pop(0)


class Bench:
    """A rollout at work, and what is around it."""

    def __init__(self, folder: Path, every_s: float) -> None:
        self.target = MemoryDeployment(MemoryModels())
        self.place = Shelf()
        self.notes = Notes(folder / "notes.json")
        self.notes.load()
        self.states: list[str] = []
        self._changed = anyio.Event()
        self.rollout = Rollout("acme", self.target, self.place, every_s=every_s, notes=self.notes, changed=self._note)

    def _note(self) -> None:
        if not self.states or self.states[-1] != self.rollout.showing.state:
            self.states.append(self.rollout.showing.state)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, state: str) -> None:
        while self.rollout.showing.state != state:
            await self._changed.wait()

    async def turn(self) -> None:
        """Wake it and wait until it has asked and acted."""
        self.target.asked = anyio.Event()
        self.rollout.wake()
        await self.target.asked.wait()
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def rolling(
    folder: Path, wanted: ModelInfo | None = None, *, every_s: float = 3600, **troubles: list[LoopcoreError]
) -> AsyncGenerator[Bench]:
    bench = Bench(folder, every_s)
    bench.target.wanted = wanted
    bench.place.troubles |= troubles
    with fail_after(10):
        async with create_task_group() as tasks:
            await tasks.start(bench.rollout.run)
            yield bench
            tasks.cancel_scope.cancel()


async def test_what_is_wanted_goes_live_once(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x")) as bench:
        await bench.until("current")
        await bench.turn()
        assert bench.place.diary == ["bring x", "activate x"]
        assert bench.states == ["fetching", "checking", "current"]
        assert bench.rollout.status() == {
            "from": "acme",
            "to": "shelf",
            "target": {"name": "gate", "version": "1", "id": "x"},
            "state": "current",
            "error": None,
        }


async def test_a_model_trained_anew_under_the_same_version_is_another_model(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x")) as bench:
        await bench.until("current")
        bench.target.wanted = info("y")
        await bench.turn()
        assert bench.place.live == info("y")


async def test_a_new_target_is_never_shown_as_current_before_it_is(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x")) as bench:
        await bench.until("current")
        shown: list[tuple[str, ModelInfo | None, ModelInfo | None]] = []
        bench.rollout._changed = lambda: shown.append(
            (bench.rollout.showing.state, bench.rollout.showing.target, bench.place.live)
        )
        bench.target.wanted = info("y")
        await bench.turn()
    assert [live for state, _, live in shown if state == "current"] == [info("y")]


async def test_where_nobody_has_chosen_nothing_happens(tmp_path: Path) -> None:
    async with rolling(tmp_path) as bench:
        await bench.turn()
        assert (bench.rollout.showing.state, bench.place.diary) == ("waiting", [])


@pytest.mark.parametrize("shut", ["paused", "held"])
async def test_a_closed_place_is_left_alone_and_the_target_is_shown_all_the_same(
    tmp_path: Path, shut: Literal["paused", "held"]
) -> None:
    async with rolling(tmp_path) as bench:
        bench.place.shut = shut
        bench.target.wanted = info("x")
        await bench.turn()
        assert bench.rollout.showing.state == shut
        assert bench.rollout.showing.target == info("x")
        assert bench.place.diary == []
        bench.place.shut = None
        await bench.turn()
        assert bench.place.live == info("x")


async def test_a_place_that_closes_during_the_download_is_not_changed(tmp_path: Path) -> None:
    async with rolling(tmp_path) as bench:
        bench.place.go_on = anyio.Event()
        bench.target.wanted = info("x")
        bench.rollout.wake()
        await bench.place.brought.wait()
        bench.place.shut = "held"
        bench.place.go_on.set()
        await bench.until("held")
        assert bench.place.diary == ["bring x"]


async def test_what_is_not_wanted_any_more_when_it_has_come_does_not_go_live(tmp_path: Path) -> None:
    async with rolling(tmp_path) as bench:
        bench.place.go_on = anyio.Event()
        bench.target.wanted = info("x")
        bench.rollout.wake()
        await bench.place.brought.wait()
        bench.target.wanted = info("y")
        bench.place.go_on.set()
        await bench.until("current")
        assert bench.place.diary == ["bring x", "bring y", "activate y"]


async def test_a_refused_model_is_not_fetched_again_before_it_changes(tmp_path: Path) -> None:
    refusal = ModelError("the rule 'warm-up' refuses it", rule="warm-up")
    async with rolling(tmp_path, info("x"), activate=[refusal]) as bench:
        await bench.until("refused")
        await bench.turn()
        assert bench.rollout.status()["error"] == "the rule 'warm-up' refuses it"
        assert bench.place.diary == ["bring x", "activate x"]
    async with rolling(tmp_path, info("x")) as bench:
        await bench.until("refused")
        assert bench.place.diary == []
        bench.target.wanted = info("y")
        await bench.turn()
        assert bench.place.live == info("y")


async def test_a_refused_model_is_tried_again_under_other_conditions_and_when_a_person_says_so(tmp_path: Path) -> None:
    refusal = ModelError("no", rule="warm-up")
    async with rolling(tmp_path, info("x"), activate=[refusal, refusal]) as bench:
        await bench.until("refused")
        bench.place.conditions = "others"
        await bench.turn()
        assert bench.place.diary == ["bring x", "activate x"] * 2
        await bench.notes.forget()
        await bench.turn()
        assert bench.rollout.showing.state == "current"


@pytest.mark.parametrize(
    "trouble",
    [RetryableError("it is away"), ModelError("it is torn"), StorageError("the disk is full"), AuthError("who?")],
)
async def test_a_download_that_fails_is_tried_again_later(tmp_path: Path, trouble: LoopcoreError) -> None:
    async with rolling(tmp_path, info("x"), bring=[trouble]) as bench:
        await bench.until("failed")
        assert bench.rollout.status()["error"] == str(trouble)
        await bench.turn()
        assert (bench.rollout.showing.state, bench.rollout.showing.error) == ("current", None)


async def test_a_conversion_that_failed_is_shown_as_a_refusal_and_asked_for_again(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x"), bring=[ConversionError("no", rule="conversion")]) as bench:
        await bench.until("refused")
        await bench.turn()
        assert bench.rollout.showing.state == "current"


async def test_a_platform_that_is_away_changes_nothing_that_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with rolling(tmp_path, info("x")) as bench:
        await bench.until("current")
        bench.target.errors.append(RetryableError("it is away"))
        bench.rollout.wake()
        await bench.until("failed")
        assert bench.rollout.status()["target"] == {"name": "gate", "version": "1", "id": "x"}
        assert bench.place.live == info("x")
        assert "answers again" not in caplog.text
        bench.rollout.wake()
        await bench.until("current")
        assert "answers again from=acme" in caplog.text


async def test_a_platform_that_breaks_its_contract_ends_nothing(tmp_path: Path) -> None:
    async with rolling(tmp_path) as bench:
        bench.target.errors.append(KeyError("version"))
        bench.rollout.wake()
        await bench.until("failed")
        assert bench.rollout.status()["error"] == "the platform 'acme' failed: KeyError('version')"


@pytest.mark.parametrize(
    "trouble", [NotReadyError("no room"), PluginError("the device is lost"), ModelError("damaged")]
)
async def test_what_may_pass_is_no_refusal_and_is_tried_again(tmp_path: Path, trouble: LoopcoreError) -> None:
    async with rolling(tmp_path, info("x"), activate=[trouble]) as bench:
        await bench.until("failed")
        assert bench.notes.refusal(info("x"), "any") is None
        await bench.turn()
        assert bench.rollout.showing.state == "current"


async def test_a_model_that_fails_rests_and_does_not_hold_up_the_one_that_is_wanted_next(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x"), every_s=0.01, activate=[NotReadyError("no room")]) as bench:
        await bench.until("failed")
        for _ in range(3):
            bench.target.asked = anyio.Event()
            await bench.target.asked.wait()
        assert bench.place.diary == ["bring x", "activate x"]
        bench.target.wanted = info("y")
        await bench.until("current")
        assert bench.place.live == info("y")


class Flipping(MemoryDeployment):
    """Wants another model whenever it is asked."""

    count = 0

    async def target(self) -> ModelInfo | None:
        self.count += 1
        self.wanted = info(f"{self.count % 2}")
        return await super().target()


async def test_a_target_that_changes_with_every_question_is_not_run_after(tmp_path: Path) -> None:
    bench = Bench(tmp_path, every_s=3600)
    bench.rollout._target = flipping = Flipping(MemoryModels())
    with fail_after(10):
        async with create_task_group() as tasks:
            await tasks.start(bench.rollout.run)
            await bench.until("failed")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert bench.place.diary == ["bring 1", "bring 0", "bring 1"]
    assert flipping.count == 3
    assert "wants another model whenever one has come" in str(bench.rollout.showing.error)


async def test_a_target_with_an_endless_version_is_not_remembered_or_shown(tmp_path: Path) -> None:
    async with rolling(tmp_path, info("x", version="9" * 10_000_000)) as bench:
        await bench.until("failed")
        assert bench.rollout.status()["target"] is None
        assert len(str(bench.rollout.status())) < 500
