"""The annotator `mock`: the box that a person drags is the outline."""

from __future__ import annotations

from math import isfinite

from loopcore import Options
from loopcore.abc import AnnotationSession, Annotator, Proposal, Stroke, StrokeKind
from loopcore.types import RGB


class MockOptions(Options, frozen=True, kw_only=True):
    """Options of the annotator `mock`.

    Attributes:
        confirm: Only Enter makes an object of the box; otherwise it is one when the mouse is let go.
    """

    confirm: bool = False


class MockAnnotator(Annotator):
    """Knows nothing of pictures, and so takes people at their word."""

    Options = MockOptions
    options: MockOptions

    def open(self, pixels: RGB, label: str) -> MockSession:  # noqa: ARG002 - all things are boxes
        height, width = pixels.shape[:2]
        return MockSession(width, height, confirm=self.options.confirm)


class MockSession(AnnotationSession):
    """One box."""

    def __init__(self, width: int, height: int, *, confirm: bool) -> None:
        self._size = width, height
        self._confirm = confirm
        self._corner: tuple[float, float] | None = None
        self._pressed = False
        self._outline: tuple[tuple[float, float], ...] = ()

    def act(self, stroke: Stroke) -> Proposal:
        if stroke.kind is StrokeKind.KEY:
            if stroke.key == "Escape":
                self._corner, self._pressed, self._outline = None, False, ()
            return Proposal(outline=self._outline, done=stroke.key == "Enter" and bool(self._outline))
        released = self._pressed and stroke.kind is StrokeKind.RELEASE
        if isfinite(stroke.x) and isfinite(stroke.y):
            self._drag(stroke)
        return Proposal(outline=self._outline, done=released and bool(self._outline) and not self._confirm)

    def _drag(self, stroke: Stroke) -> None:
        place = min(max(stroke.x, 0.0), self._size[0]), min(max(stroke.y, 0.0), self._size[1])
        if stroke.kind is StrokeKind.PRESS:
            self._corner, self._pressed = place, True
        if self._pressed and self._corner is not None:
            (left, right), (top, bottom) = (sorted(pair) for pair in zip(self._corner, place, strict=True))
            empty = left == right or top == bottom
            self._outline = () if empty else ((left, top), (right, top), (right, bottom), (left, bottom))
        self._pressed = self._pressed and stroke.kind is not StrokeKind.RELEASE
