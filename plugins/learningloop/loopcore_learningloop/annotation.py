"""People at the Loop get an annotator's proposals while they draw (`learning-loop.md` 3, 10)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CapacityLimiter, to_thread

from loopcore.abc import AnnotationDesk, Annotator, Stroke, StrokeKind
from loopcore.errors import BusyError, LoopcoreError
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.deployment import node_id
from loopcore_learningloop.hearing import Listener
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.sockets import Socket, accepted
from loopcore_learningloop.translation import whole_pixels
from loopcore_learningloop.visits import Object, Pictures, Subject, Visit, Visits

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

STATUS_S = 10.0
"""How long the Loop may take to hear a status (3.4)."""

ANNOTATION_S = 30.0
"""How long it may take to hear an annotation."""

THREADS = 4
"""So many strokes of all people are worked on at a time."""

AT_WORK = 8
"""So many strokes may hold a picture at a time, while it is fetched, worked on, or its outline is handed over."""

MOST_WAITING = 64
"""So many strokes of one person may wait."""

_MOUSE = {
    "left_mouse_down": StrokeKind.PRESS,
    "mouse_move": StrokeKind.MOVE,
    "left_mouse_up": StrokeKind.RELEASE,
}
_ENDING = frozenset({StrokeKind.KEY, StrokeKind.RELEASE})
_ESCAPE = "Escape"
_COLOR = re.compile(r"#[0-9A-Fa-f]{3,8}|[A-Za-z]{3,20}")
_PLAIN_COLOR = "#00ff00"


class Desk(AnnotationDesk):
    """The front ends of a Loop. Of each person one object is known, until it is done.

    The Loop gets its outline whenever the mouse is let go, under the same id, so that nothing is lost when the person
    goes away; giving an object up does not take back what the Loop has.

    Args:
        loop: The Loop; entered.
        options: The platform's.
    """

    def __init__(self, loop: Loop, options: PlatformOptions) -> None:
        self._loop = loop
        self._options = options
        self._muted = options.muted
        self._socket: Socket | None = None

    async def serve(self, annotator: Annotator, node: str, *, task_status: TaskStatus[None]) -> None:
        """See `AnnotationDesk`. On asyncio only."""
        service = _Service(self._loop, self._options, annotator, node, muted=self._muted)
        self._socket = service.socket
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.tell)
                await service.socket.run(task_status=task_status)
                tasks.cancel_scope.cancel()
        finally:
            self._socket = None

    def mute(self, muted: bool) -> None:
        """Leave the Loop and stay away, or come back."""
        self._muted = muted
        if self._socket is not None:
            self._socket.mute(muted)

    async def reset(self) -> None:
        """Come to the Loop like a new annotator (9.5)."""
        if self._socket is not None:
            self._socket.renew("the annotator was reset")


class _Service:
    """What is known while people are served."""

    def __init__(self, loop: Loop, options: PlatformOptions, annotator: Annotator, node: str, *, muted: bool) -> None:
        listeners = {
            "handle_user_input": Listener(tuple[wire.UserInput], self._handle),
            "user_logout": Listener(tuple[str], self._log_out),
        }
        place = wire.Context(options.organization, options.project)
        self.socket = Socket(loop, "annotation_node", place, listeners, muted=muted)
        self._threads = CapacityLimiter(THREADS)
        self._at_work = CapacityLimiter(AT_WORK)
        self._pictures = Pictures(loop, self._threads)
        self._visits = Visits()
        self._annotator = annotator
        self._status = wire.AnnotationNodeStatus(id=node_id(options, f"{node} annotator"), name=node)
        self._born = anyio.current_time()

    async def tell(self) -> None:
        await self.socket.tell("update_annotation_node", self._told, limit_s=STATUS_S, strict=True)

    def _told(self) -> wire.AnnotationNodeStatus:
        self._status.uptime = round(anyio.current_time() - self._born, 3)
        return self._status

    async def _log_out(self, frontend: str) -> wire.Ack:
        self._visits.leave(frontend)
        return wire.Ack(success=True)

    async def _handle(self, given: wire.UserInput) -> wire.Ack:
        data = given.data
        if data.key_up == _ESCAPE:
            self._visits.leave(given.frontend_id)
            return wire.Ack(success=True, payload="")
        visit = self._visits.enter(given.frontend_id)
        if visit.waiting == MOST_WAITING:
            raise BusyError("too many strokes at once")
        visit.waiting += 1
        try:
            async with visit.turn, self._at_work:
                return wire.Ack(success=True, payload="" if visit.over else await self._draw(visit, data))
        finally:
            visit.waiting -= 1

    async def _draw(self, visit: Visit, data: wire.UserInputData) -> str:
        """The SVG over the image after this act."""
        stroke = stroke_of(data)
        subject = Subject(data.context.organization, data.context.project, data.image_uuid, data.category.id)
        if visit.object is not None and visit.object.subject != subject:
            visit.object = None
        if stroke is None or (visit.object is None and stroke.kind is not StrokeKind.PRESS):
            return "" if visit.object is None else svg_of(visit.object, data.category.color)
        thing = visit.object
        if thing is None or not thing.proposal.done:
            thing = await self._act(visit, subject, stroke, data.category.name)
        if stroke.kind in _ENDING:
            await self._deliver(thing)
            visit.object = None if thing.proposal.done or visit.over else thing
        return svg_of(thing, data.category.color)

    async def _act(self, visit: Visit, subject: Subject, stroke: Stroke, label: str) -> Object:
        try:
            thing = visit.object or await self._begin(visit, subject, label)
            thing.proposal = await to_thread.run_sync(thing.session.act, stroke, limiter=self._threads)
            thing.place = stroke.x, stroke.y
        except LoopcoreError as exc:
            visit.object = None
            self._status.errors = {"handle_user_input": str(exc)}
            raise
        self._status.errors = {}
        return thing

    async def _begin(self, visit: Visit, subject: Subject, label: str) -> Object:
        pixels = await self._pictures.get(subject.organization, subject.project, subject.image)
        session = await to_thread.run_sync(self._annotator.open, pixels, label, limiter=self._threads)
        thing = visit.begin(subject, session, pixels)
        self._visits.trim()
        return thing

    async def _deliver(self, thing: Object) -> None:
        """Hand an outline over, if it is another one than the Loop has; of one object it keeps the newest.

        Where that fails the person is told, and the next stroke, or the last key again, does it.
        """
        outline, subject = thing.proposal.outline, thing.subject
        if outline in ((), thing.delivered):
            return
        told = wire.SegmentationAnnotation(
            id=thing.id, shape=whole_pixels(outline), image_id=subject.image, category_id=subject.category
        )
        event = "update_segmentation_annotation"
        ack = await self.socket.call(event, subject.organization, subject.project, told, limit_s=ANNOTATION_S)
        accepted(event, ack or wire.Ack(success=True))  # that it comes is enough (3.4)
        thing.delivered = outline


def stroke_of(data: wire.UserInputData) -> Stroke | None:
    """What a person did, if it is a stroke. A key counts when it is let go; other buttons of the mouse are none."""
    kind = _MOUSE.get(data.event_type)
    place: dict[str, Any] = {"x": data.coordinate.x, "y": data.coordinate.y, "shift": bool(data.is_shift_key_pressed)}
    if kind is not None:
        return Stroke(kind=kind, **place)
    if data.key_up:
        return Stroke(kind=StrokeKind.KEY, key=data.key_up, **place)
    return None


def svg_of(thing: Object, color: str | None) -> str:
    """What lies over the image: the outline, or a dot where the person is as long as there is none."""
    color = color if color and _COLOR.fullmatch(color) else _PLAIN_COLOR
    style = f'fill="{color}" stroke="{color}" vector-effect="non-scaling-stroke" pointer-events="none"'
    if not thing.proposal.outline:
        x, y = thing.place
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {style}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in thing.proposal.outline)
    return f'<polygon points="{points}" fill-opacity="0.25" stroke-width="2" {style}/>'
