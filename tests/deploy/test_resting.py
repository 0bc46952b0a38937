"""A model that failed rests, each for itself, and longer each time."""

from __future__ import annotations

from random import Random

import pytest

from loopcore.deploy import resting as module
from loopcore.deploy.resting import Resting
from loopcore.errors import NotReadyError
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio

NO_ROOM = NotReadyError("no room")


def info(version: str) -> ModelInfo:
    return ModelInfo(name="gate", version=version, format="onnx")


async def test_only_the_model_that_failed_rests() -> None:
    resting = Resting(60, Random(1))
    assert resting.failed(info("1"), NO_ROOM) == 1
    assert resting.error(info("1")) is NO_ROOM
    assert resting.error(info("2")) is None


async def test_a_rest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "current_time", lambda: now)
    resting = Resting(10, Random(1))
    for attempt, longest in enumerate((10, 20, 40), 1):
        assert resting.failed(info("1"), NO_ROOM) == attempt
        now += longest / 2 - 0.1
        assert resting.error(info("1")) is NO_ROOM
        now += longest / 2 + 0.2
        assert resting.error(info("1")) is None


async def test_no_more_rests_are_remembered_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    resting = Resting(60, Random(1))
    for version in "1234":
        resting.failed(info(version), NO_ROOM)
    assert [resting.error(info(version)) is None for version in "1234"] == [True, False, False, False]


async def test_a_person_ends_all_rests() -> None:
    resting = Resting(60, Random(1))
    resting.failed(info("1"), NO_ROOM)
    resting.clear()
    assert resting.error(info("1")) is None
