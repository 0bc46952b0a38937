"""What a source gets in a test in place of the node: it takes notes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import anyio
from msgspec import Struct

from loopcore.types import (
    Annotation,
    Answer,
    Encoded,
    FrameInfo,
    Image,
    Keep,
    ModelInfo,
    Pixels,
    Prediction,
    image_id,
    sample_id,
)


class Handed(Struct, frozen=True, kw_only=True, eq=False):
    """A frame that a source has handed over.

    Attributes:
        id: The id that its sample has; the same picture, camera and capture time give the same.
        taken: Whether the service took it.
    """

    id: str
    image: Image
    camera: str | None
    captured: datetime | None
    source: str | None
    tags: tuple[str, ...]
    taken: bool


class RecordingService:
    """A `Service` that keeps every frame.

    Args:
        errors: Raised by the next calls that hand over a frame, one each, in order; after them all goes well.

    Attributes:
        handed: Every frame that was handed over, in order, those included that were answered with an error.
        closed: Once `close()` was called, calls wait until `open()`.
    """

    def __init__(self, errors: Iterable[Exception] = ()) -> None:
        self.handed: list[Handed] = []
        self._errors = deque(errors)
        self._changed = anyio.Event()
        self._gate = anyio.Event()
        self._gate.set()

    @property
    def taken(self) -> list[Handed]:
        """The frames that the service took, in order."""
        return [frame for frame in self.handed if frame.taken]

    def close(self) -> None:
        """From now on frames are handed over and not answered: the service is as slow as can be."""
        self._gate = anyio.Event()

    def open(self) -> None:
        """Answer again, waiting calls too."""
        self._gate.set()

    async def wait_for(self, count: int) -> None:
        """Wait until `count` frames were handed over."""
        while len(self.handed) < count:
            await self._changed.wait()

    async def predict(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        keep: Keep = Keep.SELECTED,
    ) -> Answer:
        width, height = _size(image)
        kept = await self._hand(image, camera, captured, tags, source)
        return Answer(
            prediction=Prediction(),
            width=width,
            height=height,
            sample_id=None if keep is Keep.NONE else kept,
            reasons=() if keep is Keep.NONE else ("suite",),
        )

    def select(self, info: FrameInfo, prediction: Prediction) -> tuple[str, ...]:
        """Every frame is wanted."""
        return ("suite",)

    async def keep(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        prediction: Prediction | None = None,
        annotations: Sequence[Annotation] | None = None,
        reasons: Sequence[str] = (),
        state: str | None = None,
        urgent: bool = False,
    ) -> str:
        return await self._hand(image, camera, captured, tags, source)

    def model(self) -> ModelInfo | None:
        return None

    async def set_model(self, choice: str) -> None:
        """Nothing serves here."""

    async def reload(self) -> None:
        """Nothing serves here."""

    async def hold_updates(self, hold: bool) -> None:
        """Nothing serves here."""

    async def set_outbox(self, sending: bool) -> None:
        """Nothing is sent from here."""

    async def status(self) -> dict[str, Any]:
        return {"handed": len(self.handed)}

    async def _hand(
        self, image: Image, camera: str | None, captured: datetime | None, tags: Sequence[str], source: str | None
    ) -> str:
        error = self._errors.popleft() if self._errors else None
        frame = Handed(
            id=sample_id(_digest(image), camera, captured),
            image=image,
            camera=camera,
            captured=captured,
            source=source,
            tags=tuple(tags),
            taken=error is None,
        )
        self.handed.append(frame)
        self._changed.set()
        self._changed = anyio.Event()
        await self._gate.wait()
        if error is not None:
            raise error
        return frame.id


def _digest(image: Image) -> str:
    match image:
        case Encoded(data=data):
            return image_id(data)
        case Pixels(array=array):
            return sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def _size(image: Image) -> tuple[int, int]:
    from loopcore.imaging import probe

    match image:
        case Encoded(data=data):
            header = probe(data)
            return header.width, header.height
        case Pixels(array=array):
            return array.shape[1], array.shape[0]
