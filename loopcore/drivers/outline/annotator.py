"""The annotator `outline`: a box becomes an outline, and strokes mend it."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from loopcore.abc import AnnotationSession, Annotator, Proposal, Stroke, StrokeKind
from loopcore.drivers.outline.cutout import Cutout, Outline
from loopcore.options import Options
from loopcore.types import RGB

_LEAST_BOX = 3  # pixels: less is a click, not a box


class OutlineOptions(Options, frozen=True):
    """What `outline` can be told.

    Attributes:
        refine: Strokes mend the outline until Enter; otherwise the box alone makes it, and that is that.
        detail: The part of the picture around the box is looked at in so many pixels across; the time grows with their
            square.
    """

    refine: bool = True
    detail: Annotated[int, Meta(ge=32, le=1024)] = 192


class OutlineAnnotator(Annotator):
    """Drag a box around an object, and get its outline.

    Then a stroke takes away what it is drawn over, and with Shift it adds that; colours and edges nearby follow. Enter
    ends, Escape starts over.
    """

    Options = OutlineOptions
    options: OutlineOptions

    def open(self, pixels: RGB, label: str) -> OutlineSession:  # noqa: ARG002 - every object is treated alike
        return OutlineSession(pixels, self.options)


class OutlineSession(AnnotationSession):
    """One object of one person: first a box, then strokes."""

    def __init__(self, pixels: RGB, options: OutlineOptions) -> None:
        self._pixels = pixels
        self._options = options
        self._start_over()

    def act(self, stroke: Stroke) -> Proposal:
        if stroke.kind is StrokeKind.KEY:
            return self._press_key(stroke.key)
        if math.isfinite(stroke.x) and math.isfinite(stroke.y):
            height, width = self._pixels.shape[:2]
            self._draw(stroke.kind, (min(max(stroke.x, 0.0), width), min(max(stroke.y, 0.0), height)), stroke.shift)
        done = not self._options.refine and self._cutout is not None
        return Proposal(outline=self._outline, done=done)

    def _start_over(self) -> None:
        self._pen: tuple[float, float] | None = None
        self._corner: tuple[float, float] | None = None
        self._cutout: Cutout | None = None
        self._outline: Outline = ()

    def _press_key(self, key: str) -> Proposal:
        if key == "Escape":
            self._start_over()
        return Proposal(outline=self._outline, done=key == "Enter" and self._cutout is not None)

    def _draw(self, kind: StrokeKind, place: tuple[float, float], shift: bool) -> None:
        if kind is StrokeKind.PRESS:
            self._pen = place
        if self._pen is None:
            return
        if self._cutout is None:
            self._draw_box(kind, place)
        else:
            self._cutout.mark(self._pen, place, belongs=shift)
            if kind is StrokeKind.RELEASE:
                self._outline = self._cutout.outline()
        self._pen = None if kind is StrokeKind.RELEASE else place

    def _draw_box(self, kind: StrokeKind, place: tuple[float, float]) -> None:
        if kind is StrokeKind.PRESS or self._corner is None:
            self._corner = place
        (x1, x2), (y1, y2) = (sorted(pair) for pair in zip(self._corner, place, strict=True))
        is_box = min(x2 - x1, y2 - y1) >= _LEAST_BOX
        self._outline = ((x1, y1), (x2, y1), (x2, y2), (x1, y2)) if is_box else ()
        if is_box and kind is StrokeKind.RELEASE:
            self._cutout = Cutout(self._pixels, (x1, y1, x2, y2), self._options.detail)
            self._outline = self._cutout.outline()
