"""The Socket.IO events of a detector (`learning-loop.md` 4.2): an event and its payload in, an acknowledgement out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from anyio import CapacityLimiter, create_task_group

from loopcore.errors import FrameError, LoopcoreError, NotReadyError
from loopcore.types import Image, Keep
from loopcore_learningloop import wire
from loopcore_learningloop.detector.controls import Controls
from loopcore_learningloop.detector.detector import Detector
from loopcore_learningloop.detector.pictures import image_of
from loopcore_learningloop.detector.refusal import Refusal
from loopcore_learningloop.detector.wishes import AUTOUPLOAD, Wish, wish_of
from loopcore_learningloop.tolerant import CAMERA, read_metadata

_log = logging.getLogger(__name__)

MAX_BATCH = 256
"""How many images one `batch_detect` may bring."""

_AT_ONCE = 8
_NO_IMAGE = "could not parse image from data"
_NO_IMAGES = "could not parse images from data"
_OK = {"status": "OK"}
_BESIDE = ("tags", "source", "state", "creation_date", "creation-date", *CAMERA)

Ack = dict[str, Any]
_Handle = Callable[[Any], Awaitable[Ack]]


class Events:
    """What is done on each event.

    Args:
        detector: What is done with images.
        controls: What is done otherwise.
    """

    def __init__(self, detector: Detector, controls: Controls) -> None:
        self._detector = detector
        self._controls = controls
        self._handles: dict[str, _Handle] = {
            "detect": self._detect,
            "batch_detect": self._batch_detect,
            "upload": self._upload,
            "info": self._info,
            "about": self._about,
            "get_model_version": self._get_model_version,
            "set_model_version_mode": self._set_model_version_mode,
            "get_outbox_mode": self._get_outbox_mode,
            "set_outbox_mode": self._set_outbox_mode,
            "soft_reload": self._soft_reload,
        }

    async def answer(self, event: str, *payload: Any) -> Ack:
        """The acknowledgement of an event; what goes wrong is in it."""
        handle = self._handles.get(event)
        if handle is None:
            return {"error": f"there is no event {event!r} (there are: {', '.join(self._handles)})"}
        try:
            return await handle(payload[0] if payload else None)
        except NotReadyError as exc:
            return {"error": f"detector not yet initialized: {exc}"}
        except LoopcoreError as exc:
            return {"error": str(exc)}
        except Exception as exc:  # noqa: BLE001 - the guard of the transport: a client without an answer would wait
            _log.exception("An event failed event=%s", event)
            return {"error": f"{type(exc).__name__}: {exc}"}

    async def _detect(self, data: Any) -> Ack:
        table = _table(data, _NO_IMAGE)
        image = _image(table.get("image"), _NO_IMAGE)
        return await self._look(image, _wish(table))

    async def _batch_detect(self, data: Any) -> Ack:
        table = _table(data, _NO_IMAGES)
        images = table.get("images")
        if not isinstance(images, list | tuple) or len(images) > MAX_BATCH:
            raise Refusal(f"{_NO_IMAGES}: expected a list of at most {MAX_BATCH}")
        wish = _wish(table)
        pictures = [_image(image, _NO_IMAGES) for image in images]
        found: list[Ack] = [{} for _ in pictures]
        failures: list[LoopcoreError] = []
        limit = CapacityLimiter(_AT_ONCE)  # the node refuses what waits beyond its own limit

        async def look(index: int, picture: Image) -> None:
            async with limit:
                try:
                    found[index] = await self._look(picture, wish)
                except LoopcoreError as exc:
                    failures.append(exc)
                    group.cancel_scope.cancel()

        async with create_task_group() as group:
            for index, picture in enumerate(pictures):
                group.start_soon(look, index, picture)
        if failures:
            raise failures[0]
        return {"items": found}

    async def _look(self, image: Image, wish: Wish) -> Ack:
        metadata: wire.ImageMetadata = await self._detector.detect(image, wish)
        ack: Ack = msgspec.to_builtins(metadata)
        return ack

    async def _upload(self, data: Any) -> Ack:
        table = _table(data, _NO_IMAGE)
        image = _image(table.get("image"), _NO_IMAGE)
        beside = {name: table[name] for name in _BESIDE if name in table}
        said = read_metadata(table.get("metadata"), table.get("detections"), beside)
        await self._detector.upload(image, said, urgent=bool(table.get("upload_priority")))
        return {**_OK, "notes": said.notes} if said.notes else _OK

    async def _info(self, _: Any) -> Ack:
        return await self._controls.info()

    async def _about(self, _: Any) -> Ack:
        return await self._controls.about()

    async def _get_model_version(self, _: Any) -> Ack:
        return await self._controls.model_version()

    async def _set_model_version_mode(self, data: Any) -> Ack:
        await self._controls.set_model_version(str(data))
        return _OK

    async def _get_outbox_mode(self, _: Any) -> Ack:
        return {"outbox_mode": await self._controls.outbox_mode()}

    async def _set_outbox_mode(self, data: Any) -> Ack:
        await self._controls.set_outbox_mode(str(data))
        return _OK

    async def _soft_reload(self, _: Any) -> Ack:
        await self._controls.reload()
        return _OK


def _table(data: Any, otherwise: str) -> Mapping[str, Any]:
    """The payload as an object; releases before 0.12 let it be the bytes of the image alone."""
    if isinstance(data, bytes):
        return {"image": data}
    if not isinstance(data, Mapping):
        raise Refusal(f"{otherwise}: expected an object, got a {type(data).__name__}")
    return data


def _image(image: Any, otherwise: str) -> Image:
    try:
        return image_of(image)
    except FrameError as exc:
        raise Refusal(f"{otherwise}: {exc}") from exc


def _wish(table: Mapping[str, Any]) -> Wish:
    autoupload = table.get("autoupload")
    keep = Keep.SELECTED if autoupload is None else AUTOUPLOAD.get(autoupload) if isinstance(autoupload, str) else None
    if keep is None:
        _log.debug("A client's autoupload is not known, and nothing is uploaded: %.100r", autoupload)
    return wish_of(table, Keep.NONE if keep is None else keep)
