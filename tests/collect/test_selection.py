"""What the selection promises: order, quotas, and that one broken selector is left out alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from loopcore.abc import Selector
from loopcore.collect.selection import Selection
from loopcore.options import Options
from loopcore.testing.pictures import make_frame
from loopcore.types import Frame, FrameInfo, Prediction

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


class Terms(Struct, frozen=True, kw_only=True):
    name: str = "told"
    driver: str = "told"
    per_hour: int | None = None
    per_hour_per_camera: int | None = None


class Told(Selector):
    """Does what the test says."""

    def __init__(self, answer: Callable[[FrameInfo, Frame | None], Any], *, needs_image: bool = False) -> None:
        super().__init__(Options())
        self.answer = answer
        self.needs_image = needs_image  # type: ignore[misc]

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        answer: Sequence[str] = self.answer(info, frame)
        return answer


def says(*reasons: str) -> Told:
    return Told(lambda info, frame: reasons)


def info(second: float = 0, camera: str | None = "gate") -> FrameInfo:
    return FrameInfo(width=64, height=48, time=NOON + timedelta(seconds=second), camera=camera)


def ask(selection: Selection, second: float = 0, camera: str | None = "gate") -> tuple[str, ...]:
    return selection.consider(info(second, camera), Prediction(), None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_reasons_come_in_the_order_of_the_toml_and_once() -> None:
    selection = Selection([(Terms(), says("b", "a")), (Terms(), says("a", "c")), (Terms(), says())])
    assert ask(selection) == ("b", "a", "c")


def test_nothing_is_wanted_without_selectors() -> None:
    selection = Selection([])
    assert ask(selection) == ()
    assert selection.status() == {"considered": 1, "wanted": 0, "selectors": []}


def test_drivers_own_name_becomes_the_name_of_the_table() -> None:
    terms = Terms(driver="label", name="rare-birds")
    assert ask(Selection([(terms, says("label", "other"))])) == ("rare-birds", "other")


def test_only_selectors_that_need_the_image_get_it() -> None:
    seen: list[Frame | None] = []
    needs = Told(lambda info, frame: seen.append(frame) or ["seen"], needs_image=True)
    plain = Told(lambda info, frame: seen.append(frame) or ["plain"])
    selection = Selection([(Terms(), needs), (Terms(), plain)])
    frame = make_frame(1)
    assert selection.needs_image
    assert selection.consider(frame.info, Prediction(), frame) == ("seen", "plain")
    assert seen == [frame, None]
    assert selection.consider(frame.info, Prediction(), None) == ("plain",)
    assert seen == [frame, None, None]
    assert not Selection([(Terms(), plain)]).needs_image


def test_selector_that_raises_is_left_out_logged_and_counted_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[float] = []

    def fail(info: FrameInfo, frame: Frame | None) -> Sequence[str]:
        calls.append(clock.now)
        raise RuntimeError("broken inside")

    clock = Clock()
    selection = Selection([(Terms(name="bad", driver="foreign"), Told(fail)), (Terms(), says("good"))], clock=clock)
    assert [ask(selection) for _ in range(3)] == [("good",)] * 3
    assert len(calls) == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "name=bad driver=foreign" in record.getMessage()
    assert record.exc_info is not None
    bad = selection.status()["selectors"][0]
    assert (bad["errors"], bad["paused"], bad["last_error"]) == (1, True, "RuntimeError: broken inside")

    clock.now = 60
    assert ask(selection) == ("good",)
    assert calls == [0, 60]


def test_selector_that_has_recovered_takes_part_again() -> None:
    answers = iter([SystemExit(1), ["back"]])

    def answer(info: FrameInfo, frame: Frame | None) -> Sequence[str]:
        match next(answers):
            case (Exception() | SystemExit()) as exc:
                raise exc
            case reasons:
                return reasons

    clock = Clock()
    selection = Selection([(Terms(), Told(answer))], clock=clock)
    ask(selection)
    clock.now = 60
    assert ask(selection) == ("back",)
    assert selection.status()["selectors"][0]["paused"] is False


@pytest.mark.parametrize("nonsense", ["word", None, 3, [1], [""], {"a": 1}])
def test_answer_that_is_no_sequence_of_words_breaks_the_contract(nonsense: Any) -> None:
    selection = Selection([(Terms(), Told(lambda info, frame: nonsense))])
    assert ask(selection) == ()
    assert "sequence of words" in selection.status()["selectors"][0]["last_error"]


def test_quota_holds_in_all_and_is_counted() -> None:
    selection = Selection([(Terms(per_hour=2), says("told")), (Terms(name="free"), says("free"))])
    assert [ask(selection, n, f"camera {n}") for n in range(3)] == [("told", "free")] * 2 + [("free",)]
    assert ask(selection, 3601) == ("told", "free")
    told = selection.status()["selectors"][0]
    assert (told["wanted"], told["over_quota"]) == (3, 1)
    assert selection.status()["wanted"] == 4


def test_quota_holds_for_each_camera() -> None:
    selection = Selection([(Terms(per_hour_per_camera=1), says("told"))])
    assert [bool(ask(selection, n, camera)) for n, camera in enumerate(["a", "b", "a", None, None])] == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_frame_that_one_quota_refuses_takes_nothing_out_of_the_other() -> None:
    selection = Selection([(Terms(per_hour=2, per_hour_per_camera=1), says("told"))])
    assert [bool(ask(selection, n, camera)) for n, camera in enumerate("aaab")] == [True, False, False, True]


def test_one_an_hour_is_one_every_hour() -> None:
    selection = Selection([(Terms(per_hour=1), says("told"))])
    assert [bool(ask(selection, hour * 3600 + 59.5)) for hour in range(5)] == [True] * 5


def test_clock_that_was_set_back_does_not_block() -> None:
    selection = Selection([(Terms(per_hour=1), says("told"))])
    assert ask(selection, 86_400)
    assert ask(selection, 0)
    assert not ask(selection, 1)


@given(
    quota=st.integers(1, 5),
    steps=st.lists(st.one_of(st.floats(-200, 900), st.sampled_from([0.0, 60.0, 3600.0])), max_size=80),
)
def test_no_hour_holds_more_than_the_quota(quota: int, steps: list[float]) -> None:
    selection = Selection([(Terms(per_hour=quota), says("told"))])
    now, kept = 0.0, []
    for step in steps:
        now += step
        if ask(selection, now):
            kept.append((NOON + timedelta(seconds=now)).timestamp())
    for start in kept:
        assert sum(start <= moment < start + 3600 for moment in kept) <= quota


def test_memory_of_quotas_has_a_bound() -> None:
    selection = Selection([(Terms(per_hour_per_camera=1000, per_hour=10**9), says("told"))])
    for n in range(2000):
        ask(selection, n * 600, f"camera {n}")
    quota = selection._seats[0]._quota
    assert len(quota._cameras) == 512
    assert len(quota._total._slots) == 240


def test_calls_from_several_threads_wait_for_each_other() -> None:
    inside, overlaps = [0], []
    leave = Event()

    def answer(info: FrameInfo, frame: Frame | None) -> Sequence[str]:
        inside[0] += 1
        overlaps.append(inside[0])
        leave.wait(0.01)
        inside[0] -= 1
        return ["told"]

    selection = Selection([(Terms(), Told(answer))])
    together = Barrier(4)

    def call() -> None:
        together.wait(10)
        ask(selection)

    threads = [Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert overlaps == [1, 1, 1, 1]
