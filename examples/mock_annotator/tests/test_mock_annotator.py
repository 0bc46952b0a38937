"""The annotator `mock` keeps the promises of an annotator, and takes the box for the outline."""

from __future__ import annotations

import numpy as np
import pytest
from loopcore_mock_annotator import MockAnnotator, MockOptions

from loopcore.abc import Proposal, Stroke, StrokeKind
from loopcore.testing import AnnotatorSuite
from loopcore.testing.suites.annotator import Strokes, drag

CORNERS = ((2.0, 3.0), (8.0, 3.0), (8.0, 9.0), (2.0, 9.0))
ENTER = Stroke(kind=StrokeKind.KEY, key="Enter")


class TestMockAnnotator(AnnotatorSuite):
    driver = MockAnnotator

    @pytest.fixture
    def strokes(self) -> Strokes:
        """It is done when the mouse is let go."""
        return drag((16, 16), (80, 80))


def test_box_is_the_outline() -> None:
    session = MockAnnotator(MockOptions()).open(np.zeros((20, 20, 3), np.uint8), "lamp")
    press, *moves, release = drag((8, 9), (2, 3))
    assert session.act(press) == Proposal()
    assert [session.act(move).done for move in moves] == [False, False]
    assert session.act(release) == Proposal(outline=CORNERS, done=True)


def test_box_may_have_to_be_confirmed() -> None:
    session = MockAnnotator(MockOptions(confirm=True)).open(np.zeros((20, 20, 3), np.uint8), "lamp")
    assert [session.act(stroke) for stroke in drag((2, 3), (8, 9))][-1] == Proposal(outline=CORNERS)
    assert session.act(ENTER) == Proposal(outline=CORNERS, done=True)
