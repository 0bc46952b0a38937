"""`POST …/images`: what a detector's outbox sends (7.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import simplejpeg
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from loop.entries import Upload
from loop.shapes import ImageMetadata, wrong_with
from loop.store import Project, digest

if TYPE_CHECKING:
    from loop.server import LoopServer


async def upload(loop: LoopServer, project: Project, request: Request) -> Response:
    async with request.form() as form:
        parts = [
            (part.filename or "", await part.read()) for part in form.getlist("files") if isinstance(part, UploadFile)
        ]
        others = [key for key, _ in form.multi_items() if key != "files"]
    if others:
        loop.complaints.add(f"upload: parts of other names than `files`: {others}")
    entries: list[Upload] = []
    for stem, jpeg, metadata in _pairs(parts):
        wrong = _wrong_with(jpeg, metadata)
        entry = Upload(f"{project.organization}/{project.id}", stem, jpeg, {} if wrong else json.loads(metadata))
        if wrong or loop.refuses(entry):
            loop.refused.add(entry)
            return JSONResponse({"detail": f"{stem}: {wrong or 'it is not wanted'}"}, 422)
        entries.append(entry)
    if not entries or 2 * len(entries) != len(parts):
        return JSONResponse({"detail": f"{len(parts)} parts are not pairs of a JSON and an image"}, 422)
    for entry in entries:
        _store(loop, project, entry)
    return JSONResponse({})


def _pairs(parts: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes, bytes]]:
    """Stem, image and JSON: by stem where stems are unique, else the i-th JSON with the i-th image."""
    texts = [(PurePosixPath(name).stem, content) for name, content in parts if name.endswith(".json")]
    images = [(PurePosixPath(name).stem, content) for name, content in parts if not name.endswith(".json")]
    by_stem = dict(images)
    if len(by_stem) == len(images) and len(dict(texts)) == len(texts):
        return [(stem, by_stem[stem], text) for stem, text in texts if stem in by_stem]
    return [(stem, image, text) for (stem, image), (_, text) in zip(images, texts, strict=False)]


def _wrong_with(jpeg: bytes, metadata: bytes) -> str | None:
    if not simplejpeg.is_jpeg(jpeg):
        return "it is no JPEG"
    try:
        simplejpeg.decode_jpeg(jpeg)
        return wrong_with(json.loads(metadata), ImageMetadata)
    except ValueError as exc:
        return str(exc)


def _store(loop: LoopServer, project: Project, entry: Upload) -> None:
    """Once: what comes again, after an answer that was lost, is known by its stem and content."""
    content = digest(entry.jpeg + json.dumps(entry.metadata, sort_keys=True).encode())
    if (entry.stem, content) in project.by_hash:
        loop.duplicates.add(entry)
        return
    detections: dict[str, Any] = {
        key: entry.metadata.get(key) or [] for key in ("box_detections", "point_detections", "segmentation_detections")
    }
    tags = [{"id": name, "name": name} for name in entry.metadata.get("tags", ())]
    image = project.add_image(entry.jpeg, state=entry.metadata.get("state") or "inbox", tags=tags, **detections)
    project.by_hash[entry.stem, content] = image.id
    loop.uploads.add(replace(entry, image_id=image.id))
