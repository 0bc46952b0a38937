"""Frames that could not be stored are remembered, within bounds."""

from __future__ import annotations

from msgspec.structs import replace

from loopcore.collect.owed import Owed
from loopcore.testing import make_sample


def test_what_is_owed_is_known_until_it_is_settled() -> None:
    owed = Owed()
    sample = make_sample(1).info
    assert not owed
    owed.add(sample)
    assert owed.reasons(sample.id) == sample.reasons
    owed.settle(sample.id)
    assert owed.reasons(sample.id) is None
    assert not owed


def test_nobody_waits_for_ever_for_a_frame_to_come_back() -> None:
    now = [0.0]
    owed = Owed(clock=lambda: now[0])
    first, second = make_sample(1).info, make_sample(2).info
    owed.add(first)
    now[0] = 400
    owed.add(second)
    owed.add(first)
    now[0] = 700
    owed.forget_old()
    assert owed.reasons(first.id) is not None
    assert owed.reasons(second.id) is not None
    now[0] = 1001
    owed.forget_old()
    assert not owed


def test_only_the_last_thousand_are_remembered() -> None:
    owed = Owed()
    info = make_sample(1).info
    for number in range(1001):
        owed.add(replace(info, id=f"{number:064}"))
    assert owed.reasons(f"{0:064}") is None
    assert owed.reasons(f"{1:064}") == info.reasons
