"""The core's own paths, and the dispatch to those that plugins mount."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from loopcore.abc import Service
from loopcore.config import ServerTable
from loopcore.errors import (
    BusyError,
    FrameError,
    LoopcoreError,
    NotReadyError,
    StorageError,
)
from loopcore.forms import read_form
from loopcore.hookspecs import Mount, until_gone
from loopcore.server.bodies import Bodies
from loopcore.server.guard import Guard
from loopcore.server.metrics import prometheus
from loopcore.types import Encoded, Keep

CLIENT_GONE = 499
"""Nobody reads this answer; the number is for the log."""

_json = msgspec.json.Encoder()


class _Wish(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of `POST /predict`, in the query or as fields of the form."""

    camera: str | None = None
    captured: datetime | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    keep: Keep = Keep.SELECTED


def application(
    service: Service, table: ServerTable, mounts: Sequence[Mount] = (), *, is_ready: Callable[[], bool]
) -> ASGIApp:
    """The node's ASGI application: the core's paths, and the mounts as `Hooks.mounts` has checked them.

    Args:
        service: The node.
        table: `[server]`.
        mounts: What plugins serve.
        is_ready: Asked for each `/ready`, which load balancers send often and with little patience: quick.
    """
    api = _Api(service, is_ready)
    core = Starlette(
        routes=[
            Route("/predict", api.predict, methods=["POST"]),
            Route("/health", api.health),
            Route("/ready", api.ready),
            Route("/status", api.status),
            Route("/metrics", api.metrics),
        ],
        exception_handlers={LoopcoreError: _failed, HTTPException: _refused},
    )
    return Guard(Bodies(_Dispatch(core, mounts), table.max_body), table)


class _Dispatch:
    """Sends a request to the mount with the longest fitting path, else to the core. Mounts see the whole path."""

    def __init__(self, core: ASGIApp, mounts: Sequence[Mount]) -> None:
        self._core = core
        self._exact = {mount.path: mount.app for mount in mounts}
        self._places = sorted(self._exact.items(), key=lambda place: len(place[0]), reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        app = self._exact.get(path)
        if app is None:
            app = next((app for place, app in self._places if path.startswith(place + "/")), self._core)
        await app(scope, receive, send)


class _Api:
    def __init__(self, service: Service, is_ready: Callable[[], bool]) -> None:
        self._service = service
        self._is_ready = is_ready

    async def predict(self, request: Request) -> Response:
        """An image as the raw body, or as the part `image` of a form; parameters as query or as fields."""
        try:
            image, wish = await _read(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        with until_gone(request.scope):
            answer = await self._service.predict(
                image,
                camera=wish.camera,
                captured=wish.captured,
                tags=wish.tags,
                source=wish.source,
                keep=wish.keep,
            )
        return Response(_json.encode(answer), media_type="application/json")

    async def health(self, _: Request) -> Response:
        """The process lives and its event loop turns."""
        return _answer({"health": "ok"})

    async def ready(self, _: Request) -> Response:
        """A model serves, or this node needs none."""
        if self._is_ready():
            return _answer({"ready": True})
        return _answer({"ready": False}, 503, {"Retry-After": "1"})

    async def status(self, _: Request) -> Response:
        return _answer(await self._service.status())

    async def metrics(self, _: Request) -> Response:
        text = prometheus(await self._service.status())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _read(request: Request) -> tuple[Encoded, _Wish]:
    kind = request.headers.get("content-type", "")
    media = kind.partition(";")[0].strip().lower()
    data = await request.body()
    if media != "multipart/form-data":
        if not data:
            raise FrameError("the body is empty; send the bytes of a JPEG or PNG", status=400)
        return Encoded(data, media or "application/octet-stream"), _wish(request.query_params.multi_items())
    form = read_form(data, kind, max_parts=64)
    image = next((part for part in form if part.name == "image" and part.filename is not None), None)
    if image is None:
        raise FrameError("the form has no file part named 'image'", status=400)
    fields = [(part.name, part.text) for part in form if part.filename is None]
    encoded = Encoded(image.data, image.media or "application/octet-stream")
    return encoded, _wish([*request.query_params.multi_items(), *fields])


def _wish(items: Sequence[tuple[str, str]]) -> _Wish:
    table: dict[str, Any] = {name: value for name, value in items if name != "tags"}
    tags = tuple(tag.strip() for name, value in items if name == "tags" for tag in value.split(",") if tag.strip())
    try:
        return msgspec.convert({**table, "tags": tags}, _Wish, strict=False)
    except msgspec.ValidationError as exc:
        raise FrameError(f"a parameter is wrong: {exc}", status=400) from exc


def _answer(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_json.encode(content), status, headers, "application/json")


async def _failed(_: Request, exc: Exception) -> Response:
    headers = {}
    if isinstance(exc, NotReadyError | BusyError):
        headers["Retry-After"] = str(max(1, round(exc.retry_after_s)))
    return _answer({"error": type(exc).__name__, "message": str(exc)}, _status(exc), headers)


def _status(exc: Exception) -> int:
    match exc:
        case FrameError():
            return exc.status
        case NotReadyError():
            return 503
        case BusyError():
            return 429
        case StorageError():
            return 507
    return 500


async def _refused(_: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    detail = exc.detail if isinstance(exc, HTTPException) else ""
    headers = dict(exc.headers or {}) if isinstance(exc, HTTPException) else {}
    return _answer({"error": "Refused", "message": detail}, status, headers)
