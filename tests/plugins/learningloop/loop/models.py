"""Models: their list, their zips, and what trainers, converters and people upload (2.2, 8)."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from loop.entries import ModelUpload
from loop.store import Files, Project, StoredModel, digest, zipped

if TYPE_CHECKING:
    from loop.server import LoopServer


async def listing(loop: LoopServer, project: Project, request: Request) -> Response:
    wanted = request.query_params.get("format")
    models = [model for model in project.models.values() if wanted is None or wanted in model.formats]
    return JSONResponse({"models": [model.listed | {"host": loop.host} for model in models]})


async def target(loop: LoopServer, project: Project, request: Request) -> Response:
    if project.target is None:
        return _problem(404, "no model is deployed")
    return JSONResponse({"model_uuid": project.target, "version": project.models[project.target].version})


async def download(loop: LoopServer, project: Project, request: Request) -> Response:
    model = project.models.get(request.path_params["model"])
    format = request.path_params["format"]
    if model is None or format not in model.formats:
        return _problem(404, "there is no such model in this format")
    name = f"{project.organization}_{project.id}_{model.version}_{format}"
    content = zipped(model.formats[format])
    headers = {
        "content-disposition": f'attachment; filename="{name}.zip"',
        "etag": f'"{digest(content)}"',
        "accept-ranges": "bytes",
    }
    begin = _range(request, headers["etag"], len(content))
    if begin is None:
        return Response(content, headers=headers, media_type="application/zip")
    headers["content-range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
    return Response(content[begin:], 206, headers, media_type="application/zip")


async def publish_training(loop: LoopServer, project: Project, request: Request) -> Response:
    """A trainer's model, a format each time; only a training that was begun takes one."""
    training = project.trainings.get(_number(request.path_params["number"]))
    if training is None:
        return _problem(404, "there is no such training")
    format = request.path_params["format"]
    files, problem = await _files(request)
    if problem or "model.json" not in files:
        return _problem(422, problem or "exactly one model.json belongs to a model")
    model = training.model
    if model is not None and format in model.formats:
        if _same(model.formats[format], files):
            return JSONResponse({"detail": {"id": model.id}}, 409)
        model = None
    if model is None:
        training.model = model = project.add_model(project.next_version())
        model.training = training.number
    project.receive(model, format, files)
    _note(loop, project, model, format, files, training.number)
    return JSONResponse(model.listed)


async def publish_model(loop: LoopServer, project: Project, request: Request) -> Response:
    """Another format of a model that is there, from a converter."""
    model = project.models.get(request.path_params["model"])
    if model is None:
        return _problem(404, "there is no such model")
    files, problem = await _files(request)
    if problem:
        return _problem(422, problem)
    project.receive(model, request.path_params["format"], files)
    _note(loop, project, model, request.path_params["format"], files)
    return JSONResponse(model.listed)


async def create_model(loop: LoopServer, project: Project, request: Request) -> Response:
    """What the README's curl does: a zip, and the project has a model of a new version."""
    async with request.form() as form:
        (part,) = (part for part in form.getlist("files") if isinstance(part, UploadFile))
        content = await part.read()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    model = project.add_model(project.next_version())
    project.receive(model, request.path_params["format"], files)
    _note(loop, project, model, request.path_params["format"], files)
    return JSONResponse(model.listed)


async def trainings(loop: LoopServer, project: Project, request: Request) -> Response:
    data = [{"model_id": model.id} for model in reversed(project.models.values())]
    return JSONResponse({"charts": [{"data": data}]})


def _note(
    loop: LoopServer, project: Project, model: StoredModel, format: str, files: Files, training: int | None = None
) -> None:
    entry = ModelUpload(f"{project.organization}/{project.id}", model.id, format, files, training)
    loop.model_uploads.add(entry)


async def _files(request: Request) -> tuple[Files, str | None]:
    """The parts by name, and what is wrong with them."""
    async with request.form() as form:
        parts = [
            (part.filename or "", await part.read()) for part in form.getlist("files") if isinstance(part, UploadFile)
        ]
    files = dict(parts)
    if not files or len(files) != len(parts):
        return files, f"files are missing, or come twice: {[name for name, _ in parts]}"
    if any("/" in name or "\\" in name or not name for name in files):
        return files, f"a model is flat: {sorted(files)}"
    try:
        told = json.loads(files.get("model.json", b"{}"))
    except ValueError as exc:
        return files, f"model.json: {exc}"
    return files, None if isinstance(told, dict) else "model.json is no object"


def _same(stored: Files, files: Files) -> bool:
    """Whether it comes again; `model.json` is ours by now, so that it does not count."""
    return {n: c for n, c in stored.items() if n != "model.json"} == {
        n: c for n, c in files.items() if n != "model.json"
    }


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _range(request: Request, etag: str, size: int) -> int | None:
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if found is None or request.headers.get("if-range", etag) != etag or int(found[1]) >= size:
        return None
    return int(found[1])


def _problem(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, status)
