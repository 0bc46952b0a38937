"""The REST routes of a detector (`learning-loop.md` 4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Receive, Scope, Send

from loopcore.errors import FrameError, LoopcoreError
from loopcore.forms import Field
from loopcore.hookspecs import until_gone
from loopcore.types import Encoded
from loopcore_learningloop.detector.controls import Controls
from loopcore_learningloop.detector.detector import Detector
from loopcore_learningloop.detector.openapi import describe, page
from loopcore_learningloop.detector.refusal import Refusal, retry_after, status_of
from loopcore_learningloop.detector.requests import Answer, Gone, Request, answer_json, answer_text, invalid
from loopcore_learningloop.detector.wishes import AUTOUPLOAD, wish_of
from loopcore_learningloop.tolerant import CAMERA, CREATED, read_metadata

_Handle = Callable[[Request], Awaitable[Answer]]
_OK = answer_json("OK")
_YES, _NO = ("1", "true", "yes", "on", "t", "y"), ("0", "false", "no", "off", "f", "n")
_NAMES = {
    name.encode(): name for name in ("autoupload", "tags", "source", "state", "upload_priority", *CAMERA, *CREATED)
}
_MEDIA = "application/octet-stream"


class Rest:
    """The ASGI application behind all routes.

    Args:
        detector: What is done with images.
        controls: What is done otherwise.
        backdoor: Offer `/reset`, too (9.5).
    """

    def __init__(self, detector: Detector, controls: Controls, *, backdoor: bool = False) -> None:
        self._detector = detector
        self._controls = controls
        self._routes: dict[str, dict[str, _Handle]] = {
            "/detect": {"POST": self._detect},
            "/upload": {"POST": self._upload},
            "/about": {"GET": self._about},
            "/model_version": {"GET": self._model_version, "PUT": self._set_model_version},
            "/operation_mode": {"GET": self._operation_mode, "PUT": self._set_operation_mode},
            "/outbox_mode": {"GET": self._outbox_mode, "PUT": self._set_outbox_mode},
            "/debug_logging": {"PUT": self._debug_logging},
            "/socketio": {"PUT": self._socketio},
            "/docs": {"GET": self._docs},
            "/openapi.json": {"GET": self._openapi},
        }
        if backdoor:
            self._routes["/reset"] = {"POST": self._reset}

    @property
    def paths(self) -> Sequence[str]:
        """Where it is to be mounted."""
        return tuple(self._routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        methods = self._routes.get(scope["path"].rstrip("/"))
        handle = methods.get("GET" if scope["method"] == "HEAD" else scope["method"]) if methods else None
        if handle is not None:
            answer = await _guarded(handle, Request(scope, receive))
        elif methods is not None:
            answer = answer_json({"detail": "Method Not Allowed"}, 405, allow=", ".join(methods))
        else:
            answer = answer_json({"detail": "Not Found"}, 404)
        if answer is not None:
            await answer.send(send)

    # Images

    async def _detect(self, request: Request) -> Answer:
        form = await request.form()
        said = request.said(_NAMES)
        autoupload = said.get("autoupload") or "filtered"
        if autoupload not in AUTOUPLOAD:
            message = "Input should be 'filtered', 'all' or 'disabled'"
            return invalid("header", "autoupload", message, "literal_error", autoupload)
        image = next((part for part in form if part.name == "file"), None)
        if image is None:
            return invalid("body", "file", "Field required", "missing")
        wish = wish_of(said, AUTOUPLOAD[autoupload])
        with until_gone(request.scope):
            metadata = await self._detector.detect(_encoded(image), wish)
        return answer_json(metadata)

    async def _upload(self, request: Request) -> Answer:
        form = await request.form()
        images = [part for part in form if part.name == "files"]
        if not images:
            return invalid("body", "files", "Field required", "missing")
        aside = request.said(_NAMES)
        priority = (aside.get("upload_priority") or "false").lower()
        if priority not in (*_YES, *_NO):
            message = "Input should be a valid boolean, unable to interpret input"
            return invalid("query", "upload_priority", message, "bool_parsing", priority)
        said = read_metadata(*(part.text for part in form if part.name in ("metadata", "detections")), aside)
        refused: list[tuple[str, LoopcoreError]] = []
        for image in images:
            try:
                await self._detector.upload(_encoded(image), said, urgent=priority in _YES)
            except LoopcoreError as exc:
                refused.append((image.filename or "", exc))
        if refused:
            return _partly(len(images), refused)
        return answer_json([200, "OK"], x_notes="; ".join(said.notes) or None)

    # The model and the modes

    async def _about(self, _: Request) -> Answer:
        return answer_json(await self._controls.about())

    async def _model_version(self, _: Request) -> Answer:
        return answer_json(await self._controls.model_version())

    async def _set_model_version(self, request: Request) -> Answer:
        await self._controls.set_model_version(await request.word())
        return _OK

    async def _operation_mode(self, _: Request) -> Answer:
        return answer_text(await self._controls.operation_mode())

    async def _set_operation_mode(self, request: Request) -> Answer:
        await self._controls.set_operation_mode(await request.word())
        return _OK

    async def _outbox_mode(self, _: Request) -> Answer:
        return answer_text(await self._controls.outbox_mode())

    async def _set_outbox_mode(self, request: Request) -> Answer:
        try:
            await self._controls.set_outbox_mode(await request.word())
        except Refusal as exc:
            raise Refusal(f"Could not set outbox mode: {exc}", status=exc.status) from exc
        return _OK

    # For tests and repairs

    async def _debug_logging(self, request: Request) -> Answer:
        return await _switch(request, self._controls.set_debug_logging)

    async def _socketio(self, request: Request) -> Answer:
        return await _switch(request, self._controls.set_connected)

    async def _reset(self, _: Request) -> Answer:
        return answer_json(await self._controls.reset())

    async def _docs(self, _: Request) -> Answer:
        return answer_text(
            page(self.paths),
            "text/html; charset=utf-8",
            content_security_policy="default-src 'none'; style-src 'unsafe-inline'",
        )

    async def _openapi(self, _: Request) -> Answer:
        return answer_json(describe(self.paths))


async def _guarded(handle: _Handle, request: Request) -> Answer | None:
    try:
        return await handle(request)
    except Gone:
        return None
    except LoopcoreError as exc:
        return _failed(exc, str(exc))


def _failed(error: LoopcoreError, detail: str) -> Answer:
    content = {"detail": detail, "error": type(error).__name__}
    return answer_json(content, status_of(error), retry_after=retry_after(error))


def _partly(count: int, refused: Sequence[tuple[str, LoopcoreError]]) -> Answer:
    """Of several images some are kept: what is wrong with this node before what is wrong with a picture."""
    name, worst = min(refused, key=lambda one: isinstance(one[1], FrameError))
    if count == 1:
        return _failed(worst, str(worst))
    return _failed(worst, f"{count - len(refused)} of {count} images are kept; {name!r} is not: {worst}")


async def _switch(request: Request, switch: Callable[[bool], None]) -> Answer:
    word = await request.word()
    if word not in ("on", "off"):
        raise Refusal("Invalid state")
    switch(word == "on")
    return answer_json(word)


def _encoded(part: Field) -> Encoded:
    return Encoded(part.data, part.media or _MEDIA)
