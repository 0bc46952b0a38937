"""Who is annotating what: people at the Loop's front ends, their unfinished objects, and the pictures under them."""

from __future__ import annotations

import re
from collections import OrderedDict
from uuid import uuid4

import anyio
from anyio import CapacityLimiter, Lock, to_thread
from msgspec import Struct

from loopcore.abc import AnnotationSession, Proposal
from loopcore.errors import FrameError
from loopcore.imaging import decode, probe
from loopcore.types import RGB
from loopcore_learningloop.client import Loop
from loopcore_learningloop.projects import Project

MOST_PEOPLE = 64
"""Whoever has done nothing for longest gives way."""

FORGET_S = 3600.0
"""An object that nobody has touched for so long is given up."""

MOST_BYTES = 1_000_000_000
"""Of pixels, for all people together."""

MOST_KEPT = 200_000_000
"""Of pixels, for whoever comes next."""

_MOST_FILE = 100_000_000
_MOST_PICTURES = 64
_MOST_PIXELS = 60_000_000
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


class Subject(Struct, frozen=True):
    """What a person outlines: a category, on an image of a project."""

    organization: str
    project: str
    image: str
    category: str


class Object(Struct, kw_only=True, eq=False):
    """An object that a person is outlining.

    Attributes:
        id: Under which the Loop knows the annotation.
        proposal: The newest.
        place: Where the person was last.
        delivered: The outline that the Loop has.
    """

    subject: Subject
    session: AnnotationSession
    pixels: RGB
    id: str
    proposal: Proposal = Proposal()
    place: tuple[float, float] = (0.0, 0.0)
    delivered: tuple[tuple[float, float], ...] = ()


class Visit:
    """One person at one front end.

    Attributes:
        turn: Strokes are drawn one at a time, in order.
        waiting: How many strokes wait for their turn.
        object: What is being outlined, if anything is.
        touched: When something was last done.
        over: The person has gone, or gave way: strokes that still wait count for nothing.
    """

    def __init__(self) -> None:
        self.turn = Lock()
        self.waiting = 0
        self.object: Object | None = None
        self.touched = anyio.current_time()
        self.over = False

    def end(self) -> None:
        """Give the object up, for good."""
        self.over = True
        self.object = None

    def begin(self, subject: Subject, session: AnnotationSession, pixels: RGB) -> Object:
        """Another object; the one before is given up."""
        thing = Object(subject=subject, session=session, pixels=pixels, id=str(uuid4()))
        if not self.over:
            self.object = thing
        return thing


class Visits:
    """All people, bounded in number, in age, and in what their pictures take."""

    def __init__(self) -> None:
        self._visits: OrderedDict[str, Visit] = OrderedDict()

    def enter(self, frontend: str) -> Visit:
        """A person does something."""
        now = anyio.current_time()
        while self._visits and next(iter(self._visits.values())).touched < now - FORGET_S:
            self._end_oldest()
        visit = self._visits.setdefault(frontend, Visit())
        visit.touched = now
        self._visits.move_to_end(frontend)
        self.trim()
        return visit

    def trim(self) -> None:
        """Whoever has done nothing for longest gives way until the others are within bounds."""
        while len(self._visits) > 1 and (len(self._visits) > MOST_PEOPLE or self._bytes() > MOST_BYTES):
            self._end_oldest()

    def leave(self, frontend: str) -> None:
        """A person has gone, or starts over."""
        if visit := self._visits.pop(frontend, None):
            visit.end()

    def _end_oldest(self) -> None:
        self._visits.popitem(last=False)[1].end()

    def __len__(self) -> int:
        return len(self._visits)

    def _bytes(self) -> int:
        arrays = {
            id(visit.object.pixels): visit.object.pixels.nbytes for visit in self._visits.values() if visit.object
        }
        return sum(arrays.values())


class Pictures:
    """The Loop's pictures as arrays; the last few are kept, and each is fetched once."""

    def __init__(self, loop: Loop, threads: CapacityLimiter) -> None:
        self._loop = loop
        self._threads = threads
        self._kept: OrderedDict[tuple[str, str, str], _Picture] = OrderedDict()

    async def get(self, organization: str, project: str, image: str) -> RGB:
        """The pixels of an image, upright; nobody writes to them.

        Raises:
            FrameError: There is no picture under this id, or it is too large.
            RemoteError: It could not be had.
        """
        if not _ID.fullmatch(image):
            raise FrameError(f"{image[:80]!r} is no image of the Loop")
        key = organization, project, image
        picture = self._kept.setdefault(key, _Picture())
        self._kept.move_to_end(key)
        try:
            async with picture.turn:
                if picture.pixels is None:
                    path = Project(self._loop, organization, project).path("images", image, "main")
                    answer = await self._loop.call("GET", path, limit=_MOST_FILE)
                    picture.pixels = await to_thread.run_sync(_decoded, answer.content, limiter=self._threads)
                return picture.pixels
        finally:
            self._trim()

    def _trim(self) -> None:
        """Forget what did not come, and the oldest until the others are within bounds."""
        for key in [key for key, one in self._kept.items() if one.pixels is None and not one.turn.locked()]:
            del self._kept[key]
        while len(self._kept) > _MOST_PICTURES or self._bytes() > MOST_KEPT:
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum(one.pixels.nbytes for one in self._kept.values() if one.pixels is not None)


class _Picture:
    def __init__(self) -> None:
        self.turn = Lock()
        self.pixels: RGB | None = None


def _decoded(data: bytes) -> RGB:
    pixels = decode(data, header=probe(data, max_pixels=_MOST_PIXELS))
    pixels.flags.writeable = False
    return pixels
