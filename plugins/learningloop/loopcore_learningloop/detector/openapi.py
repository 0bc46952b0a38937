"""What the routes are, for people and for generators of clients: OpenAPI 3.1, and a page without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.metadata import version
from typing import Any

import msgspec
from msgspec import Struct

from loopcore_learningloop import wire

_REF = "#/components/schemas/{name}"


class _Operation(Struct, frozen=True, kw_only=True):
    path: str
    method: str
    what: str
    headers: tuple[str, ...] = ()
    fields: Mapping[str, str] = {}
    word: tuple[str, ...] = ()
    answer: str = "text"


_IMAGE = ("camera_id", "tags", "source", "creation_date")
_OPERATIONS = (
    _Operation(
        path="/detect", method="post", what="Look for objects in an image.",
        headers=(*_IMAGE, "autoupload"), fields={"file": "one"}, answer="ImageMetadata",
    ),
    _Operation(
        path="/upload", method="post", what="Send images to the Loop, with what is known of them.",
        headers=(*_IMAGE, "upload_priority"), fields={"files": "many", "detections": "ImageMetadata"}, answer="any",
    ),
    _Operation(path="/about", method="get", what="The detector and its model.", answer="any"),
    _Operation(path="/model_version", method="get", what="The versions of the model.", answer="any"),
    _Operation(
        path="/model_version", method="put", what="Choose the model: as the Loop says, none but this, or a version.",
        word=("follow_loop", "pause", "VERSION"),
    ),
    _Operation(path="/operation_mode", method="get", what="Whether the Loop may change the model."),
    _Operation(
        path="/operation_mode", method="put", what="Let the Loop change the model in 'idle' only.",
        word=("startup", "idle", "detecting"),
    ),
    _Operation(path="/outbox_mode", method="get", what="Whether kept images are sent."),
    _Operation(
        path="/outbox_mode", method="put", what="Send kept images, or keep them only.",
        word=("continuous_upload", "stopped"),
    ),
    _Operation(path="/debug_logging", method="put", what="Log every step.", word=("on", "off")),
    _Operation(path="/socketio", method="put", what="Exchange models and status with the Loop.", word=("on", "off")),
    _Operation(path="/reset", method="post", what="As after the start; what was accepted is not lost.", answer="any"),
)  # fmt: skip


@cache
def describe(paths: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document for these paths."""
    (_, schemas) = msgspec.json.schema_components([wire.ImageMetadata], ref_template=_REF)
    table: dict[str, dict[str, Any]] = {}
    for one in _OPERATIONS:
        if one.path in paths:
            table.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "loopcore: a detector of the Learning Loop", "version": version("loopcore-learningloop")},
        "paths": table,
        "components": {"schemas": schemas},
    }


def page(paths: Sequence[str]) -> str:
    """The same for people."""
    rows = "".join(
        f"<tr><td>{one.method.upper()}</td><td><code>{escape(one.path)}</code></td><td>{escape(one.what)}</td>"
        f"<td>{escape(_takes(one))}</td></tr>"
        for one in _OPERATIONS
        if one.path in paths
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Detector</title>'
        "<style>body{font-family:sans-serif;margin:2em}td,th{text-align:left;padding:.3em 1em .3em 0}</style></head>"
        "<body><h1>Detector</h1><table><tr><th>Method</th><th>Path</th><th>What</th><th>Takes</th></tr>"
        f'{rows}</table><p><a href="openapi.json">openapi.json</a></p></body></html>'
    )


def _takes(one: _Operation) -> str:
    parts = []
    if one.fields:
        parts.append(f"form: {', '.join(one.fields)}")
    if one.headers:
        parts.append(f"headers or query: {', '.join(one.headers)}")
    if one.word:
        parts.append(f"body: {' | '.join(one.word)}")
    return "; ".join(parts)


def _operation(one: _Operation) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": one.what, "responses": {"200": _success(one.answer)}}
    if one.headers:
        operation["parameters"] = [{"name": name, "in": "header", "schema": {"type": "string"}} for name in one.headers]
    if one.fields:
        form = {"type": "object", "properties": {name: _field(kind) for name, kind in one.fields.items()}}
        operation["requestBody"] = {"content": {"multipart/form-data": {"schema": form}}}
    if one.word:
        word = {"type": "string", "examples": list(one.word)}
        operation["requestBody"] = {"content": {"text/plain": {"schema": word}}}
    return operation


def _success(answer: str) -> dict[str, Any]:
    match answer:
        case "text":
            content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
        case "any":
            content = {"application/json": {"schema": {}}}
        case _:
            content = {"application/json": {"schema": {"$ref": _REF.format(name=answer)}}}
    return {"description": "Done.", "content": content}


def _field(kind: str) -> dict[str, Any]:
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    match kind:
        case "one":
            return file
        case "many":
            return {"type": "array", "items": file}
    return {"$ref": _REF.format(name=kind)}
