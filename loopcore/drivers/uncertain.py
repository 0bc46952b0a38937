"""The selector `uncertain`: what the model is unsure of, once for each thing in each place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Annotated, TypeAlias

from msgspec import Meta

from loopcore.abc import Selector
from loopcore.options import Duration, Options
from loopcore.types import Box, Classification, Confidence, Frame, FrameInfo, Point, Prediction, Segmentation

_MAX_CAMERAS = 512
_RECENT = 16
_FARTHEST = 1e6  # pixels; what lies beyond, or has no area, is like nothing else
_SMALLEST = 1e-3  # pixels; smaller boxes share a layer
_SLACK = 1e-6  # covers rounding, so that a search is too wide rather than too narrow


class UncertainOptions(Options, frozen=True):
    """What `uncertain` can be told.

    Attributes:
        min: The least confidence that counts as uncertain.
        max: The greatest.
        forget: A thing that was not seen for longer is new again.
        iou: Boxes of one label that overlap at least so much are the same thing.
        point_distance: Points of one label nearer than this, in pixels, are the same thing.
        max_detections: A frame with at least so many detections is wanted for that alone.
        max_remembered: The memory's bound, over all cameras; the camera with the most forgets its oldest first.
    """

    min: Confidence = 0.3
    max: Confidence = 0.6
    forget: Duration = Duration(3600)
    iou: Annotated[float, Meta(ge=0.1, le=1)] = 0.5
    point_distance: Annotated[float, Meta(gt=0)] = 10.0
    max_detections: Annotated[int, Meta(ge=1)] = 80
    max_remembered: Annotated[int, Meta(ge=1)] = 50_000

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"Expected min ≤ max, got {self.min} and {self.max}")


class Uncertain(Selector):
    """Wants a frame that shows something uncertain which its camera has not shown of late.

    The reasons:

    - `uncertain`: a box or point with a confidence from `min` to `max`, and no similar one, itself uncertain, was seen
      by this camera within `forget`; or a classification with such a confidence.
    - `segmentation_detection`: a segmentation.
    - `unexpected_observations_count`: `max_detections` or more.

    Only what was uncertain is remembered: something the model was sure of hides nothing. Every similar sighting, sure
    or not, renews the memory of a thing, so that it is wanted once for as long as it stays.

    Time is the frames' own. A memory counts for frames up to `forget` away from it, earlier or later, and is dropped
    when the camera's last 16 frames are all further away: frames out of order change nothing, a few frames with a wrong
    clock do not empty the memory, and a clock set back does not freeze it.
    """

    Options = UncertainOptions
    options: UncertainOptions

    def __init__(self, options: UncertainOptions) -> None:
        super().__init__(options)
        self._cameras: OrderedDict[str | None, _Memory] = OrderedDict()
        self._remembered = 0

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        options = self.options
        memory = self._memory(info.camera)
        before = len(memory)
        now = info.time.timestamp()
        memory.advance(now)
        uncertain = segmented = False
        for found in prediction.detections:
            unsure = options.min <= found.confidence <= options.max
            match found:
                case Box() | Point():
                    known = memory.recall(found, now, learn=unsure)
                    uncertain |= unsure and not known
                case Segmentation():
                    segmented = True
                case Classification():
                    uncertain |= unsure
        self._remembered += len(memory) - before
        self._shrink()
        crowded = len(prediction.detections) >= options.max_detections
        reasons = {
            "uncertain": uncertain,
            "segmentation_detection": segmented,
            "unexpected_observations_count": crowded,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def _memory(self, camera: str | None) -> _Memory:
        memory = self._cameras.get(camera)
        if memory is None:
            memory = self._cameras[camera] = _Memory(self.options)
            if len(self._cameras) > _MAX_CAMERAS:
                self._remembered -= len(self._cameras.popitem(last=False)[1])
        self._cameras.move_to_end(camera)
        return memory

    def _shrink(self) -> None:
        while self._remembered > self.options.max_remembered:
            max(self._cameras.values(), key=len).forget_oldest()
            self._remembered -= 1


class _Sighting:
    """A thing that was uncertain: where it was first seen, and when it was last. A point has no extent."""

    __slots__ = ("entry", "height", "map", "row", "seen", "width", "y")
    map: _Map
    row: tuple[int, int]

    def __init__(self, left: float, top: float, width: float, height: float, seen: float) -> None:
        self.width = width
        self.height = height
        self.y = top + height / 2
        self.seen = seen
        self.entry: _Entry = (left, top, left + width, top + height, width * height, self)


_Entry: TypeAlias = tuple[float, float, float, float, float, _Sighting]  # left, top, right, bottom, area
_left = itemgetter(0)


class _Memory:
    """What one camera has shown, by place, and in the order in which it was last seen."""

    def __init__(self, options: UncertainOptions) -> None:
        self._options = options
        self._maps: dict[tuple[type, str], _Map] = {}
        self._order: OrderedDict[_Sighting, None] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def __len__(self) -> int:
        return len(self._order)

    def advance(self, now: float) -> None:
        """Drop what is out of reach of this frame and of the last few before it."""
        self._recent.append(now)
        while self._order:
            oldest = next(iter(self._order)).seen
            if any(abs(recent - oldest) <= self._options.forget for recent in self._recent):
                return
            self.forget_oldest()

    def recall(self, found: Box | Point, now: float, *, learn: bool) -> bool:
        """Whether a similar thing is remembered; its memory is renewed. With `learn`, a new one is remembered."""
        sighting = _sighting(found, now)
        if sighting is None:
            return False
        key = (type(found), found.label)
        known = False
        if key in self._maps:
            for other in self._maps[key].similar(sighting):
                if abs(now - other.seen) <= self._options.forget:
                    known = True
                    other.seen = max(other.seen, now)
                    self._order.move_to_end(other)
        if learn and not known:
            if key not in self._maps:
                self._maps[key] = (_Boxes if isinstance(found, Box) else _Points)(key, self._options)
            self._maps[key].put(sighting)
            self._order[sighting] = None
        return known

    def forget_oldest(self) -> None:
        oldest, _ = self._order.popitem(last=False)
        oldest.map.drop(oldest)
        if oldest.map.empty:
            del self._maps[oldest.map.key]


def _sighting(found: Box | Point, now: float) -> _Sighting | None:
    width, height = (found.width, found.height) if isinstance(found, Box) else (0.0, 0.0)
    if isinstance(found, Box) and not (0 < width < _FARTHEST and 0 < height < _FARTHEST):
        return None
    if not (-_FARTHEST < found.x < _FARTHEST and -_FARTHEST < found.y < _FARTHEST):
        return None
    return _Sighting(found.x, found.y, width, height, now)


class _Map(ABC):
    """The sightings of one kind and label in rows by place and height, each in order of the left edge."""

    def __init__(self, key: tuple[type, str], options: UncertainOptions) -> None:
        self.key = key
        self._options = options
        self._rows: dict[tuple[int, int], list[_Entry]] = {}

    @property
    def empty(self) -> bool:
        return not self._rows

    @abstractmethod
    def similar(self, sighting: _Sighting) -> list[_Sighting]:
        """Those that are taken for the same thing."""

    @abstractmethod
    def put(self, sighting: _Sighting) -> None:
        """Remember it."""

    def drop(self, sighting: _Sighting) -> None:
        row = self._rows[sighting.row]
        index = bisect_left(row, sighting.entry[0], key=_left)
        while row[index][-1] is not sighting:
            index += 1
        del row[index]
        if not row:
            del self._rows[sighting.row]

    def _put(self, sighting: _Sighting, layer: int, step: float) -> None:
        sighting.map = self
        sighting.row = layer, math.floor(sighting.y / step)
        insort(self._rows.setdefault(sighting.row, []), sighting.entry, key=_left)

    def _between(self, row: tuple[int, int], least: float, greatest: float) -> list[_Entry]:
        """What lies in a row with its left edge from `least` to `greatest`."""
        entries = self._rows.get(row)
        if entries is None:
            return []
        return entries[bisect_left(entries, least, key=_left) : bisect_right(entries, greatest, key=_left)]


class _Points(_Map):
    def similar(self, sighting: _Sighting) -> list[_Sighting]:
        x, y, *_ = sighting.entry
        distance = self._options.point_distance
        return [
            other
            for row in _rows(y, distance, distance)
            for other_x, other_y, *_, other in self._between((0, row), x - distance, x + distance)
            if math.hypot(other_x - x, other_y - y) < distance
        ]

    def put(self, sighting: _Sighting) -> None:
        self._put(sighting, 0, self._options.point_distance)


class _Boxes(_Map):
    """An IoU of at least p bounds how unlike two boxes can be.

    What is common to both is at least p of the greater width and of the greater height; so widths and heights differ by
    a factor of 1/p at most, and centres by 1 - p of the greater extent. A layer holds boxes of one order of height.
    """

    def __init__(self, key: tuple[type, str], options: UncertainOptions) -> None:
        super().__init__(key, options)
        self._base = max(2.0, 1 / options.iou)
        self._scale = 1 / math.log(self._base)

    def similar(self, sighting: _Sighting) -> list[_Sighting]:
        iou = self._options.iou
        left, top, right, bottom, area, _ = sighting.entry
        wide = iou * sighting.width * (1 - _SLACK)
        high = iou * sighting.height * (1 - _SLACK)
        least_right, least_bottom, greatest_top = left + wide, top + high, bottom - high
        near = [  # nearly all the time is spent here
            entry
            for entry in self._around(sighting, left - (1 / iou - 1) * sighting.width - _SLACK, right - wide)
            if entry[3] >= least_bottom and entry[1] <= greatest_top and entry[2] >= least_right
        ]
        found = []
        for other_left, other_top, other_right, other_bottom, other_area, other in near:
            width = min(right, other_right) - max(left, other_left)
            height = min(bottom, other_bottom) - max(top, other_top)
            common = width * height
            if common / (area + other_area - common) >= iou:
                found.append(other)
        return found

    def put(self, sighting: _Sighting) -> None:
        layer = self._layer(sighting.height)
        self._put(sighting, layer, self._step(layer))

    def _around(self, sighting: _Sighting, least: float, greatest: float) -> list[_Entry]:
        iou, size = self._options.iou, sighting.height
        lowest, highest = size * iou * (1 - _SLACK), size / iou * (1 + _SLACK)
        entries: list[_Entry] = []
        for layer in range(self._layer(lowest), self._layer(highest) + 1):
            step = self._step(layer)
            reach = (1 - iou) * max(size, min(highest, step))
            for row in _rows(sighting.y, reach, step):
                entries += self._between((layer, row), least, greatest)
        return entries

    def _layer(self, size: float) -> int:
        return math.floor(math.log(max(size, _SMALLEST)) * self._scale)

    def _step(self, layer: int) -> float:
        return self._base ** (layer + 1)


def _rows(place: float, reach: float, step: float) -> range:
    reach += _SLACK + abs(place) * 1e-12
    return range(math.floor((place - reach) / step), math.floor((place + reach) / step) + 1)
