"""The small selectors: `below`, `count`, `interval`, `label` and `random`."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Generic, TypeVar

from msgspec import Meta

from loopcore.abc import Selector
from loopcore.options import Duration, Options
from loopcore.types import Confidence, Detection, Frame, FrameInfo, Prediction

Share = Annotated[float, Meta(ge=0, le=1)]
T = TypeVar("T")
_MAX_CAMERAS = 512


class BelowOptions(Options, frozen=True):
    """What `below` can be told.

    Attributes:
        confidence: A detection with less than this is a reason.
        labels: Only detections of these labels; all if none is named.
    """

    confidence: Confidence = 0.5
    labels: tuple[str, ...] = ()


class Below(Selector):
    """Wants a frame with any detection under a confidence; the reason is `below`. The rule of the Nx tutorial."""

    Options = BelowOptions
    options: BelowOptions

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        found = _of(self.options.labels, prediction)
        return ("below",) if any(one.confidence < self.options.confidence for one in found) else ()


class CountOptions(Options, frozen=True):
    """What `count` can be told; at least one of `under`, `over` and `changed`.

    Attributes:
        under: Fewer detections than this are a reason; 1 wants frames with nothing on them.
        over: More detections than this are a reason.
        changed: Another number than on the camera's frame before is a reason.
        labels: Only detections of these labels are counted; all if none is named.
        confidence: Only detections with at least this are counted.
    """

    under: Annotated[int, Meta(ge=1)] | None = None
    over: Annotated[int, Meta(ge=0)] | None = None
    changed: bool = False
    labels: tuple[str, ...] = ()
    confidence: Confidence = 0.0

    def __post_init__(self) -> None:
        if self.under is None and self.over is None and not self.changed:
            raise ValueError("Expected at least one of under, over and changed")


class Count(Selector):
    """Wants a frame by the number of its detections; the reason is `count`."""

    Options = CountOptions
    options: CountOptions

    def __init__(self, options: CountOptions) -> None:
        super().__init__(options)
        self._before: _Cameras[int] = _Cameras()

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        options = self.options
        count = sum(one.confidence >= options.confidence for one in _of(options.labels, prediction))
        before = self._before.swap(info.camera, count) if options.changed else None
        wanted = (
            (options.under is not None and count < options.under)
            or (options.over is not None and count > options.over)
            or (before is not None and count != before)
        )
        return ("count",) if wanted else ()


class IntervalOptions(Options, frozen=True):
    """What `interval` can be told.

    Attributes:
        every: How far apart, in seconds of frame time, the frames of one camera are.
    """

    every: Duration

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError("Expected every to be more than 0")


class Interval(Selector):
    """Wants a frame of each camera every so often, the first included; the reason is `interval`.

    The distance counts in both directions: a frame that comes late is not wanted again, and a clock that was set back
    by more than `every` goes on from there.
    """

    Options = IntervalOptions
    options: IntervalOptions

    def __init__(self, options: IntervalOptions) -> None:
        super().__init__(options)
        self._every = timedelta(seconds=options.every)
        self._last: _Cameras[datetime] = _Cameras()

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        last = self._last.get(info.camera)
        if last is not None and abs(info.time - last) < self._every:
            return ()
        self._last.swap(info.camera, info.time)
        return ("interval",)


class LabelOptions(Options, frozen=True):
    """What `label` can be told; `labels`, `rare`, or both.

    Attributes:
        labels: Detections of these labels are a reason.
        rare: So is a label that makes up less than this share of the last detections, of all cameras together.
        among: How many detections those are; nothing is rare before so many were seen.
        confidence: Only detections with at least this take part.
    """

    labels: tuple[str, ...] = ()
    rare: Share | None = None
    among: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    confidence: Confidence = 0.0

    def __post_init__(self) -> None:
        if not self.labels and self.rare is None:
            raise ValueError("Expected labels or rare")


class Label(Selector):
    """Wants a frame that shows a named or a rare class; the reason is `label`."""

    Options = LabelOptions
    options: LabelOptions

    def __init__(self, options: LabelOptions) -> None:
        super().__init__(options)
        self._named = frozenset(options.labels)
        self._last: deque[str] = deque()
        self._counts: Counter[str] = Counter()

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        labels = [one.label for one in prediction.detections if one.confidence >= self.options.confidence]
        wanted = not self._named.isdisjoint(labels)
        if self.options.rare is not None:
            wanted |= self._any_rare(labels, self.options.rare)
            self._remember(labels)
        return ("label",) if wanted else ()

    def _any_rare(self, labels: Sequence[str], share: float) -> bool:
        among = self.options.among
        return len(self._last) == among and any(self._counts[label] < share * among for label in labels)

    def _remember(self, labels: Sequence[str]) -> None:
        self._last.extend(labels)
        self._counts.update(labels)
        while len(self._last) > self.options.among:
            oldest = self._last.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]


class RandomOptions(Options, frozen=True):
    """What `random` can be told.

    Attributes:
        share: The share of all frames that is wanted.
        seed: Another seed picks other frames.
    """

    share: Share
    seed: int = 0


class Random(Selector):
    """Wants a share of all frames, picked by chance; the reason is `random`.

    Chance is a hash of the seed, the camera and the number of the frame at that camera, from the start on: the same
    frames in the same order are picked again, whatever other cameras send meanwhile.
    """

    Options = RandomOptions
    options: RandomOptions

    def __init__(self, options: RandomOptions) -> None:
        super().__init__(options)
        self._numbers: _Cameras[int] = _Cameras()

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:  # noqa: ARG002
        number = self._numbers.get(info.camera) or 0
        self._numbers.swap(info.camera, number + 1)
        identity = repr((self.options.seed, info.camera, number)).encode("utf-8", "backslashreplace")
        draw = int.from_bytes(blake2b(identity, digest_size=8).digest(), "big")
        return ("random",) if draw < self.options.share * 2**64 else ()


def _of(labels: Collection[str], prediction: Prediction) -> Iterator[Detection]:
    return (one for one in prediction.detections if not labels or one.label in labels)


class _Cameras(Generic[T]):
    """A value for each camera, for the last 512 cameras that set one."""

    def __init__(self) -> None:
        self._values: OrderedDict[str | None, T] = OrderedDict()

    def get(self, camera: str | None) -> T | None:
        return self._values.get(camera)

    def swap(self, camera: str | None, value: T) -> T | None:
        """Set a camera's value and return the one before."""
        before = self._values.pop(camera, None)
        self._values[camera] = value
        if len(self._values) > _MAX_CAMERAS:
            self._values.popitem(last=False)
        return before
