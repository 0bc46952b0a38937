"""What the small selectors want, and what they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from loopcore.drivers.selectors import Below, Count, Interval, Label, Random
from loopcore.options import decode
from loopcore.testing import SelectorSuite
from loopcore.types import Box, FrameInfo, Prediction

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


class TestBelowSuite(SelectorSuite):
    driver = Below


class TestCountSuite(SelectorSuite):
    driver = Count

    @pytest.fixture
    def table(self) -> dict[str, Any]:
        return {"under": 1, "over": 3, "changed": True}


class TestIntervalSuite(SelectorSuite):
    driver = Interval

    @pytest.fixture
    def table(self) -> dict[str, Any]:
        return {"every": "5 s"}


class TestLabelSuite(SelectorSuite):
    driver = Label

    @pytest.fixture
    def table(self) -> dict[str, Any]:
        return {"labels": ["seal"], "rare": 0.1, "among": 100}


class TestRandomSuite(SelectorSuite):
    driver = Random

    @pytest.fixture
    def table(self) -> dict[str, Any]:
        return {"share": 0.3}


def make(driver: Any, **table: Any) -> Any:
    return driver(decode(table, driver.Options))


def ask(selector: Any, *found: tuple[str, float], at: float = 0, camera: str | None = "gate") -> bool:
    """Whether a frame with these labels and confidences is wanted, for the reason that is the driver's name."""
    info = FrameInfo(width=640, height=480, time=NOON + timedelta(seconds=at), camera=camera)
    boxes = tuple(Box(label=label, confidence=value, x=0, y=0, width=9, height=9) for label, value in found)
    reasons = tuple(selector.consider(info, Prediction(detections=boxes), None))
    assert reasons in ((), (type(selector).__name__.lower(),))
    return bool(reasons)


def test_below_wants_any_detection_under_the_confidence() -> None:
    selector = make(Below, confidence=0.8)
    assert ask(selector, ("seal", 0.9), ("gull", 0.79))
    assert not ask(selector, ("seal", 0.8))
    assert not ask(selector)


def test_below_looks_at_the_named_labels_alone() -> None:
    selector = make(Below, confidence=0.8, labels=["seal"])
    assert not ask(selector, ("gull", 0.1))
    assert ask(selector, ("seal", 0.1))


def test_count_wants_fewer_and_more() -> None:
    selector = make(Count, under=1, over=2)
    wanted = [ask(selector, *[("seal", 0.5)] * number) for number in range(5)]
    assert wanted == [True, False, False, True, True]


def test_count_leaves_out_other_labels_and_what_is_not_sure_enough() -> None:
    selector = make(Count, under=1, labels=["seal"], confidence=0.5)
    assert ask(selector, ("gull", 0.9), ("seal", 0.4))
    assert not ask(selector, ("seal", 0.5))


def test_count_wants_a_change_at_the_same_camera() -> None:
    selector = make(Count, changed=True)
    seal = ("seal", 0.9)
    assert not ask(selector, seal)
    assert not ask(selector, camera="yard")
    assert not ask(selector, seal)
    assert ask(selector, seal, seal)
    assert ask(selector, seal)


def test_interval_keeps_its_distance_for_each_camera() -> None:
    selector = make(Interval, every="10 s")
    wanted = [second for second in range(35) if ask(selector, at=second)]
    assert wanted == [0, 10, 20, 30]
    assert ask(selector, at=5, camera="yard")


def test_interval_does_not_want_a_late_frame() -> None:
    selector = make(Interval, every="10 s")
    ask(selector, at=100)
    assert not ask(selector, at=95)
    assert ask(selector, at=110)


def test_interval_goes_on_when_a_clock_was_set_back() -> None:
    selector = make(Interval, every="10 s")
    ask(selector, at=86_400)
    assert ask(selector, at=0)
    assert not ask(selector, at=9)


def test_label_wants_a_named_class() -> None:
    selector = make(Label, labels=["gull"], confidence=0.3)
    assert ask(selector, ("seal", 0.9), ("gull", 0.3))
    assert not ask(selector, ("seal", 0.9), ("gull", 0.2))


def test_label_wants_a_class_for_as_long_as_it_is_rare() -> None:
    selector = make(Label, rare=0.03, among=100)
    assert not any(ask(selector, ("seal", 0.9)) for _ in range(100))
    assert [ask(selector, ("gull", 0.9)) for _ in range(4)] == [True, True, True, False]
    for _ in range(100):
        ask(selector, ("seal", 0.9))
    assert ask(selector, ("gull", 0.9))


def test_nothing_is_rare_before_enough_was_seen() -> None:
    selector = make(Label, rare=0.5, among=10)
    assert not any(ask(selector, (f"label {n}", 0.9)) for n in range(10))
    assert ask(selector, ("label 10", 0.9))


def test_random_wants_its_share() -> None:
    selector = make(Random, share=0.2)
    assert 320 < sum(ask(selector, at=n) for n in range(2000)) < 480
    assert not any(ask(make(Random, share=0.0), at=n) for n in range(100))
    assert all(ask(make(Random, share=1.0), at=n) for n in range(100))


def test_random_picks_other_frames_with_another_seed_and_the_same_with_the_same() -> None:
    picks = [
        [ask(selector, at=n) for n in range(100)] for selector in (make(Random, share=0.5, seed=s) for s in (1, 1, 2))
    ]
    assert picks[0] == picks[1] != picks[2]


def test_random_does_not_depend_on_what_other_cameras_send() -> None:
    alone, among = make(Random, share=0.5), make(Random, share=0.5)
    for n in range(100):
        ask(among, at=n, camera="yard")
        assert ask(alone, at=n) == ask(among, at=n)


@pytest.mark.parametrize(
    ("driver", "table"),
    [
        (Count, {}),
        (Label, {}),
        (Interval, {}),
        (Interval, {"every": 0}),
        (Random, {"share": 1.1}),
        (Below, {"confidence": -1}),
        (Label, {"rare": 2}),
    ],
)
def test_options_that_make_no_sense_are_refused(driver: Any, table: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        make(driver, **table)
