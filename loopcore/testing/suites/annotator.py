"""What an annotator promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import ClassVar

import anyio
import numpy as np
import pytest
from anyio import to_thread

from loopcore.abc import AnnotationSession, Annotator, Driver, Proposal, Stroke, StrokeKind
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import RGB

Strokes = Sequence[Stroke]

_SIDE = 96
_NOWHERE = (float("nan"), float("inf"), -1e9, 1e9)


class AnnotatorSuite(DriverSuite):
    """An annotator answers strokes with outlines inside the picture, whatever it is given.

    ```python
    class TestMyAnnotator(AnnotatorSuite):
        driver = MyAnnotator
    ```
    """

    driver: ClassVar[type[Driver]]

    @pytest.fixture
    def picture(self) -> RGB:
        """A bright disc on a dark ground, 96 × 96; nobody may write to it. Override it where that is no object."""
        rows, columns = np.mgrid[:_SIDE, :_SIDE]
        pixels = np.random.default_rng(1).integers(30, 60, (_SIDE, _SIDE, 3)).astype(np.uint8)
        pixels[(rows - 48) ** 2 + (columns - 48) ** 2 < 24**2] += 150
        pixels.flags.writeable = False
        return pixels

    @pytest.fixture
    def strokes(self) -> Strokes:
        """What a person does to outline that object and to finish. Override it where something else is done."""
        return [*drag((16, 16), (80, 80)), Stroke(kind=StrokeKind.KEY, key="Enter")]

    async def test_strokes_lead_to_an_outline(
        self, make: Callable[[], Annotator], picture: RGB, strokes: Strokes
    ) -> None:
        last = (await act(make, picture, strokes))[-1]
        assert last.done
        assert len(last.outline) >= 3

    async def test_nothing_is_done_before_the_end(
        self, make: Callable[[], Annotator], picture: RGB, strokes: Strokes
    ) -> None:
        assert not any(proposal.done for proposal in (await act(make, picture, strokes))[:-1])

    async def test_same_strokes_give_the_same_outlines(
        self, make: Callable[[], Annotator], picture: RGB, strokes: Strokes
    ) -> None:
        assert await act(make, picture, strokes) == await act(make, picture, strokes)

    async def test_sessions_do_not_disturb_each_other(
        self, make: Callable[[], Annotator], picture: RGB, strokes: Strokes
    ) -> None:
        """Two people at one picture, stroke by stroke, the second one elsewhere and a little later."""
        alone = await act(make, picture, strokes)
        others = [Stroke(kind=StrokeKind.PRESS, x=5, y=5), *drag((2, 2), (90, 40)), *strokes]
        with anyio.fail_after(LIMIT_S):
            async with make() as annotator:
                first, second = [await to_thread.run_sync(annotator.open, picture, name) for name in ("disc", "moon")]
                together = []
                for mine, theirs in zip_longest(strokes, others):
                    if mine is not None:
                        together.append(await to_thread.run_sync(first.act, mine))
                    await to_thread.run_sync(second.act, theirs)
        assert together == alone

    async def test_sense_is_not_expected_of_strokes(
        self, make: Callable[[], Annotator], picture: RGB, strokes: Strokes
    ) -> None:
        """Keys nobody knows, releases without a press, presses twice, all of it outside the picture and nowhere."""
        wild = [
            *(Stroke(kind=StrokeKind.KEY, key=key) for key in ("", "Enter", "Escape", "é", "F13", "x" * 1000)),
            *(Stroke(kind=kind, x=x, y=y) for kind in StrokeKind for x in _NOWHERE for y in (*_NOWHERE, 10)),
            *(stroke for stroke in strokes for _ in range(2)),
            *reversed(strokes),
            *drag((-50, -50), (500, 500)),
            *drag((30, 30), (30, 30), shift=True),
            *drag((95, 95), (96, 96)),
        ]
        assert len(await act(make, picture, wild)) == len(wild)

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (40, 40)], ids=str)
    async def test_picture_may_be_tiny_or_of_one_colour(
        self, make: Callable[[], Annotator], strokes: Strokes, size: tuple[int, int]
    ) -> None:
        await act(make, np.full((*size, 3), 128, np.uint8), [*strokes, *drag((0, 0), size[::-1]), strokes[-1]])


def drag(start: tuple[float, float], end: tuple[float, float], *, shift: bool = False) -> list[Stroke]:
    """Press at the start, move, release at the end."""
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    kinds = (StrokeKind.PRESS, StrokeKind.MOVE, StrokeKind.MOVE, StrokeKind.RELEASE)
    places = (start, middle, end, end)
    return [Stroke(kind=kind, x=x, y=y, shift=shift) for kind, (x, y) in zip(kinds, places, strict=True)]


async def act(make: Callable[[], Annotator], picture: RGB, strokes: Strokes) -> list[Proposal]:
    """The proposals for these strokes, from a new instance; a session that is done is followed by another."""
    with anyio.fail_after(LIMIT_S):
        async with make() as annotator:
            return await to_thread.run_sync(_act, annotator, picture, strokes)


def _act(annotator: Annotator, picture: RGB, strokes: Strokes) -> list[Proposal]:
    height, width = picture.shape[:2]
    session: AnnotationSession | None = None
    proposals = []
    for stroke in strokes:
        session = session or annotator.open(picture, "disc")
        proposal = session.act(stroke)
        assert len(proposal.outline) == 0 or len(proposal.outline) >= 3
        assert all(0 <= x <= width and 0 <= y <= height for x, y in proposal.outline)
        assert proposal.outline or not proposal.done
        proposals.append(proposal)
        session = None if proposal.done else session
    return proposals
