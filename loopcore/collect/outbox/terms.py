"""What goes in and out of an outbox, besides samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from loopcore.collect.outbox.segments import Place
from loopcore.types import SampleInfo


class Bounds(Protocol):
    """The table `[outbox]` of the TOML.

    Attributes:
        max_bytes: What the segments may take on disk; the index and `rejected/` come on top. While space is being
            regained it may be exceeded by part of one segment.
        max_count: How many samples may wait.
        max_age: How many seconds a sample may wait.
        when_full: What happens when `max_bytes` or `max_count` is reached, or the disk's floor: `reject`,
            `drop_oldest` or `drop_least_valuable`.
        min_free: Bytes of the disk that stay free.
        rejected_max_bytes: What `rejected/` may take; above it the oldest in it goes.
    """

    @property
    def max_bytes(self) -> int: ...
    @property
    def max_count(self) -> int | None: ...
    @property
    def max_age(self) -> float | None: ...
    @property
    def when_full(self) -> str: ...
    @property
    def min_free(self) -> int: ...
    @property
    def rejected_max_bytes(self) -> int: ...


def _everything(_: SampleInfo) -> bool:
    return True


class Taker(Struct, frozen=True, kw_only=True):
    """A sink as the outbox sees it.

    Attributes:
        name: The identity of its place in the queue.
        wants: Whether a sample is for it. Quick, pure; called in any thread.
        max_backlog: How many samples may wait for it; above that the oldest gives up its place at this sink.
        start: What it gets when it is new: what comes from `now` on, or all that is kept (`oldest`).
    """

    name: str
    wants: Callable[[SampleInfo], bool] = _everything
    max_backlog: int | None = None
    start: str = "now"


class Lease(Struct, frozen=True, kw_only=True):
    """A sample that one sender has in hand for a sink.

    Attributes:
        id: The sample's id.
        seq: Its place in the queue.
        revision: Which content: it grows when the sample is accepted again with something new.
        image_bytes: Size of the image.
        urgent: As in the sample.
        deferrals: How often this sink has deferred it.
        place: Where it lay when it was leased.
    """

    id: str
    seq: int
    revision: int
    image_bytes: int
    urgent: bool
    deferrals: int
    place: Place


class Listed(Struct, frozen=True, kw_only=True):
    """One line of `loopcore outbox list`.

    Attributes:
        seq: Its place in the queue.
        id: The sample's id.
        revision: Which content.
        place: Where it lay when it was listed.
        image_bytes: Size of the image.
        urgent: As in the sample.
        age_s: How long it has waited, in seconds.
        sinks: Those that still wait for it.
    """

    seq: int
    id: str
    revision: int
    place: Place
    image_bytes: int
    urgent: bool
    age_s: float
    sinks: tuple[str, ...]


def value(info: SampleInfo) -> float:
    """What a sample is worth when room is short; more is better.

    4 if it is urgent, 2 if a human annotated it, 1 for each reason up to 4, and up to 1 for the detection nearest to
    confidence 0.5.
    """
    detections = info.prediction.detections if info.prediction else ()
    doubt = max((1 - 2 * abs(found.confidence - 0.5) for found in detections), default=0.0)
    return 4.0 * info.urgent + 2.0 * (info.annotations is not None) + min(len(info.reasons), 4) + doubt
