"""The Socket.IO side (section 3): what nodes emit is noted and acknowledged, and what the Loop emits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import socketio

from loop import faults
from loop.books import Book
from loop.entries import Connection, Report
from loop.shapes import (
    AnnotationNodeStatus,
    OldDetectorStatus,
    SegmentationAnnotation,
    TrainerStatus,
    TrainingOut,
    wrong_with,
)
from loop.store import Training

if TYPE_CHECKING:
    from loop.server import LoopServer

TRAINER, ANNOTATOR, DETECTOR = "trainer", "annotation_node", "detector"
PING_S = 25.0
CALL_S = 10
"""How long a node may take to acknowledge."""

LISTENERS: dict[str, tuple[type[Any], str]] = {
    "update_trainer": (TrainerStatus, "trainers"),
    "update_training": (TrainingOut, "trainings"),
    "update_annotation_node": (AnnotationNodeStatus, "annotators"),
    "update_segmentation_annotation": (SegmentationAnnotation, "annotations"),
    "update_detector": (OldDetectorStatus, "detectors"),
}
"""Event → shape of its last argument, and the book it is noted in."""


class Sockets:
    """All nodes' sockets."""

    def __init__(self, loop: LoopServer, ping_s: float) -> None:
        self._loop = loop
        self._ping_s = ping_s
        self._open: dict[str, Connection] = {}
        self.given: dict[tuple[str, str], int] = {}
        """(project, id of the trainer) → number of the training that it was given; no status carries it (3.5)."""

    def enter(self) -> socketio.AsyncServer:
        """A new server for the running event loop."""
        self._open.clear()
        self._waiting: dict[str, set[asyncio.Future[Any]]] = {}
        self._server = socketio.AsyncServer(
            async_mode="asgi", max_http_buffer_size=64 << 20, ping_interval=(self._ping_s, PING_S - self._ping_s)
        )
        self._server.on("connect", self._connect)
        self._server.on("disconnect", self._disconnect)
        for event in LISTENERS:
            self._server.on(event, self._listener(event))
        self._server.on("*", self._unknown)
        return self._server

    @property
    def open(self) -> list[Connection]:
        return list(self._open.values())

    async def _connect(self, sid: str, environ: dict[str, Any], _auth: Any = None) -> None:
        cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        account = self._loop.sessions.get(cookies["session"].value) if "session" in cookies else None
        kind = environ.get("HTTP_NODETYPE", "")
        organization, project = environ.get("HTTP_ORGANIZATION", ""), environ.get("HTTP_PROJECT", "")
        if account is None and kind != DETECTOR:  # a 0.11.1 detector comes without a cookie (2.1)
            raise socketio.exceptions.ConnectionRefusedError("log in first")
        connection = Connection(sid, kind, organization, project, account)
        self._open[sid] = connection
        self._loop.connections.add(connection)

    async def _disconnect(self, sid: str, _reason: str = "") -> None:
        connection = self._open.pop(sid, None)
        for answer in self._waiting.pop(sid, ()):
            if not answer.done():
                answer.set_exception(ConnectionError("the node has gone before it acknowledged"))
        if connection is not None:
            self._loop.disconnections.add(connection)

    async def _unknown(self, event: str, sid: str, *_args: Any) -> None:
        self._loop.complaints.add(f"no node emits this: {event}")

    def _listener(self, event: str) -> Callable[..., Awaitable[Any]]:
        shape, name = LISTENERS[event]

        async def listen(sid: str, *args: Any) -> Any:
            call = faults.Call(name=event, fault=self._loop.faults.take(faults.Call(name=event)))
            self._loop.arrivals.add(call)
            try:
                return await self._treat(
                    call, sid, lambda: self._receive(event, sid, args, shape, getattr(self._loop, name))
                )
            finally:
                self._loop.calls.add(call)

        return listen

    async def _treat(self, call: faults.Call, sid: str, act: Callable[[], Any]) -> Any:
        match call.fault:
            case None:
                call.status = 200
                return act()
            case faults.Answer(status):
                call.status = status
                return {"success": False, "error_msg": f"told to answer {status}", "payload": None}
            case faults.Nonsense(body):
                call.status = 200
                return [body.hex(), {"success": "perhaps"}]
            case faults.Stall():
                await self._loop.faults.lifted()
            case faults.LoseAnswer():
                act()
        await self._server.disconnect(sid)
        return None

    def _receive(self, event: str, sid: str, args: tuple[Any, ...], shape: type[Any], book: Book[Report]) -> Any:
        project, body = "/".join(map(str, args[:-1])), args[-1] if args else {}
        wrong = wrong_with(body, shape) or self._wrong_place(event, project)
        if wrong:
            self._loop.complaints.add(f"{event}: {wrong}")
            return {"success": False, "error_msg": wrong, "payload": None}
        book.add(Report(event, body, project, sid))
        return {
            "success": True,
            "error_msg": None,
            "payload": self._target(project) if event == "update_detector" else None,
        }

    def _wrong_place(self, event: str, project: str) -> str | None:
        if event in ("update_trainer", "update_annotation_node"):
            return f"one argument, not `{project}` and one" if project else None
        known = project in {f"{organization}/{id}" for organization, id in self._loop.store.projects}
        return None if known else f"there is no project {project}"

    def _target(self, path: str) -> dict[str, Any] | None:
        project = self._loop.store[path]
        if project.target is None:
            return None
        version = project.models[project.target].version
        return {"target_model_id": project.target, "target_model_version": version}

    async def call(self, sid: str, event: str, *args: Any) -> Any:
        """Emit an event to one node, and return how it acknowledged, from any event loop.

        Raises:
            TimeoutError: It did not, within `CALL_S`.
            ConnectionError: It has gone before it did.
        """
        return await self._loop.within(self._call(sid, event, args))

    async def _call(self, sid: str, event: str, args: tuple[Any, ...]) -> Any:
        if sid not in self._open:
            raise ConnectionError("the node has gone")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def came(*values: Any) -> None:
            if not answer.done():
                answer.set_result(values[0] if values else None)

        waiting = self._waiting.setdefault(sid, set())
        waiting.add(answer)
        try:
            await self._server.emit(event, args or None, to=sid, callback=came)
            async with asyncio.timeout(CALL_S):
                return await answer
        finally:
            waiting.discard(answer)

    async def drop(self) -> None:
        """End all connections."""
        for connection in self.open:
            await self._loop.within(self._server.disconnect(connection.sid))

    async def node(self, kind: str) -> str:
        """The socket of the node of this kind that connected last and is still there."""
        await self._loop.connections.until(lambda connection: connection.kind == kind and connection.sid in self._open)
        return [connection.sid for connection in self.open if connection.kind == kind][-1]

    async def begin_training(self, path: str, number: int, *, trainer: str | None = None, **config: Any) -> Any:
        """Give a training to a trainer, in the words of all releases (3.3).

        Args:
            path: `organization/project`.
            number: Of the training; from now on it takes models.
            trainer: The id in the trainer's status; default: the trainer that reported last.
            config: What is told otherwise than by default; a key whose value is `...` is left out.
        """
        project = self._loop.store[path]
        status = await self._loop.trainers.until(
            lambda report: report.sid in self._open and trainer in (None, report.body["id"])
        )
        body: dict[str, Any] = {
            "categories": project.categories,
            "hyperparameters": {"resolution": 800, "flip_rl": False, "flip_ud": False},
            "training_number": number,
            "model_variant": "",
            "base_model_uuid": None,
            "id": str(uuid4()),
            "resolution": 800,
            "flip_rl": False,
            "flip_ud": False,
        } | config
        body = {key: value for key, value in body.items() if value is not ...}
        sid = next(
            report.sid for report in reversed(list(self._loop.trainers)) if report.body["id"] == status.body["id"]
        )
        project.trainings.setdefault(number, Training(number, body))
        self.given[path, status.body["id"]] = number
        return await self.call(sid, "begin_training", project.organization, project.id, body)

    async def stop_training(self) -> Any:
        return await self.call(await self.node(TRAINER), "stop_training")

    async def abort_training(self) -> Any:
        return await self.call(await self.node(TRAINER), "abort_training")

    async def handle_user_input(self, user_input: dict[str, Any]) -> Any:
        return await self.call(await self.node(ANNOTATOR), "handle_user_input", user_input)

    async def user_logout(self, frontend_id: str) -> Any:
        return await self.call(await self.node(ANNOTATOR), "user_logout", frontend_id)
