"""What a selector promises."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import ClassVar

import anyio
import pytest
from msgspec import structs

from loopcore.abc import Driver, Selector
from loopcore.testing.pictures import START, make_picture
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import Box, Classification, Detection, Frame, FrameInfo, Point, Prediction, Segmentation

Stream = Sequence[tuple[FrameInfo, Prediction]]

_FRAMES = 400


class SelectorSuite(DriverSuite):
    """A selector decides by what it is given, the same way each time, and does not grow.

    ```python
    class TestNightSelector(SelectorSuite):
        driver = NightSelector
    ```

    Attributes:
        remembers: So many frames fill its memory: after them it may not grow.
    """

    driver: ClassVar[type[Driver]]
    remembers: ClassVar[int] = 1_500

    @pytest.fixture
    def stream(self) -> Stream:
        """Some minutes of three cameras, one frame of twenty late. Override it to show what this selector looks for."""
        return list(islice(make_stream(seed=1), _FRAMES))

    async def test_same_frames_give_the_same_reasons(self, make: Callable[[], Selector], stream: Stream) -> None:
        assert await consider_all(make, stream) == await consider_all(make, stream)

    async def test_reasons_are_words(self, make: Callable[[], Selector], stream: Stream) -> None:
        for reasons in await consider_all(make, stream):
            assert not isinstance(reasons, str)
            assert all(isinstance(reason, str) for reason in reasons)
            assert all(reason and reason == reason.strip() for reason in reasons)
            assert len(set(reasons)) == len(reasons)

    async def test_only_the_time_of_the_frames_counts(self, make: Callable[[], Selector], stream: Stream) -> None:
        """The same frames long ago and far ahead, by whole weeks, are judged alike."""
        past, future = (
            [
                (structs.replace(info, time=info.time + weeks, captured=info.captured and info.captured + weeks), found)
                for info, found in stream
            ]
            for weeks in (timedelta(weeks=-1000), timedelta(weeks=1000))
        )
        assert await consider_all(make, past) == await consider_all(make, future)

    async def test_frames_may_come_late_and_twice(self, make: Callable[[], Selector], stream: Stream) -> None:
        await consider_all(make, [*stream[::-1], *stream[:50], *stream[:50]])

    async def test_little_may_be_known_of_a_frame(self, make: Callable[[], Selector]) -> None:
        bare = FrameInfo(width=1, height=1, time=START)
        await consider_all(make, [(bare, Prediction()), (bare, Prediction())])

    @pytest.mark.parametrize("new", [False, True], ids=["known names", "ever new names"])
    async def test_memory_has_a_bound(self, make: Callable[[], Selector], new: bool) -> None:
        frames = make_stream(seed=2, step_s=30, new_names=new)
        async with make() as selector:
            _feed(selector, islice(frames, self.remembers))
            before = _footprint(selector)
            _feed(selector, islice(frames, self.remembers))
            assert _footprint(selector) < 1.3 * before + 20_000


def make_stream(seed: int, *, step_s: float = 0.5, new_names: bool = False) -> Iterator[tuple[FrameInfo, Prediction]]:
    """Frames without end, with zero to four detections each; one of twenty is ten seconds late.

    Args:
        seed: Which stream.
        step_s: From one frame to the next, in seconds.
        new_names: A new camera and a new label for each frame, in place of three and two.
    """
    random = Random(seed)
    number = 0
    while True:
        late = timedelta(seconds=10) if random.random() < 0.05 else timedelta(0)
        time = START + timedelta(seconds=number * step_s) - late
        camera = f"camera {number}" if new_names else random.choice(("gate", "yard", None))
        label = f"label {number}" if new_names else random.choice(("penguin", "seal"))
        found = tuple(_detection(random, label) for _ in range(random.randrange(5)))
        info = FrameInfo(width=640, height=480, time=time, camera=camera, captured=time, source=f"stream/{number}")
        yield info, Prediction(detections=found, model="made", model_version="1")
        number += 1


def _detection(random: Random, label: str) -> Detection:
    x, y, width, height = (random.uniform(5, 300) for _ in range(4))
    confidence = random.random()
    match random.randrange(10):
        case 0:
            return Point(label=label, confidence=confidence, x=x, y=y)
        case 1:
            return Segmentation(label=label, confidence=confidence, points=((x, y), (x + 9, y), (x, y + 9)))
        case 2:
            return Classification(label=label, confidence=confidence)
        case _:
            return Box(label=label, confidence=confidence, x=x, y=y, width=width, height=height)


async def consider_all(make: Callable[[], Selector], stream: Stream) -> list[Sequence[str]]:
    """The reasons for each frame of a stream, from a new instance."""
    with anyio.fail_after(LIMIT_S):
        async with make() as selector:
            return [selector.consider(info, found, _frame(selector, info)) for info, found in stream]


def _feed(selector: Selector, frames: Iterator[tuple[FrameInfo, Prediction]] | Stream) -> None:
    for info, found in frames:
        selector.consider(info, found, _frame(selector, info))


def _frame(selector: Selector, info: FrameInfo) -> Frame | None:
    return Frame(info=info, pixels=make_picture(1)) if selector.needs_image else None


def _footprint(selector: Selector) -> int:
    """The bytes of everything that the selector holds, as far as Python knows."""
    seen: dict[int, object] = {}
    waiting: list[object] = [vars(selector)]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, (type, ModuleType, FunctionType, BuiltinFunctionType)):
            seen[id(thing)] = thing
            waiting.extend(gc.get_referents(thing))
    return sum(sys.getsizeof(thing) for thing in seen.values())
