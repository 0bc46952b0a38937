"""The REST interface (section 2): who may call what, and the routes that are neither uploads nor models."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from loop import models, samples, uploads
from loop.entries import DetectionsUpload, Report
from loop.shapes import Detections, DetectorStatus, wrong_with
from loop.store import STATES, Project

if TYPE_CHECKING:
    from loop.server import LoopServer

Endpoint: TypeAlias = Callable[["LoopServer", Project, Request], Awaitable[Response]]

PROJECT = "/api/{organization}/projects/{project}"


def application(loop: LoopServer) -> Starlette:
    """The routes; those that take no cookie are named (2.1)."""

    def of_project(path: str, method: str, endpoint: Endpoint, *, anonymous: bool = False) -> Route:
        async def serve(request: Request) -> Response:
            if not anonymous and request.state.call.account is None:
                return _problem(401, "log in first")
            key = request.path_params["organization"], request.path_params["project"]
            project = loop.store.projects.get(key)
            if project is None:
                return _problem(404, f"there is no project {key[0]}/{key[1]}")
            return await endpoint(loop, project, request)

        return Route(PROJECT + path, serve, methods=[method])

    def of_new(path: str, method: str, endpoint: Endpoint) -> Route:
        async def serve(loop: LoopServer, project: Project, request: Request) -> Response:
            if loop.old:
                return _problem(404, "Not Found")
            return await endpoint(loop, project, request)

        return of_project(path, method, serve)

    def plain(path: str, method: str, endpoint: Callable[[LoopServer, Request], Awaitable[Response]]) -> Route:
        async def serve(request: Request) -> Response:
            return await endpoint(loop, request)

        return Route(path, serve, methods=[method])

    async def unknown(request: Request, exc: Exception) -> Response:
        loop.complaints.add(f"no client calls this: {request.method} {request.url.path}")
        return PlainTextResponse("there is nothing here", 404)

    return Starlette(
        exception_handlers={404: unknown, 405: unknown},
        routes=[
            plain("/api/login", "POST", _login),
            plain("/api/logout", "POST", _logout),
            plain("/api/status", "GET", _status),
            plain("/api/projects", "GET", _projects),
            plain("/api/{organization}/projects/generator", "POST", _generate),
            plain(PROJECT, "DELETE", _delete),
            of_project("", "GET", _project),
            of_project("/data", "GET", _data),
            of_project("/images", "GET", _images),
            of_project("/images/{id}/main", "GET", _image),
            of_project("/images", "POST", uploads.upload, anonymous=True),
            of_new("/detectors", "POST", _detectors),
            of_new("/deployment/target", "GET", models.target),
            of_project("/models", "GET", models.listing),
            of_project("/models/{model}/{format}/file", "GET", models.download, anonymous=True),
            of_project("/trainings/{number}/models/latest/{format}/file", "PUT", models.publish_training),
            of_project("/models/{model}/{format}/file", "PUT", models.publish_model),
            of_project("/detections", "POST", _detections),
            of_project("/trainings", "GET", models.trainings),
            of_project("/{format}", "POST", models.create_model),
        ],
    )


async def _login(loop: LoopServer, request: Request) -> Response:
    form = await request.form()
    username, password = str(form.get("username", "")), str(form.get("password", ""))
    known = loop.accounts.get(username) == password if username else loop.guests and not password
    if not known:
        return _problem(401, "wrong username or password")
    answer = JSONResponse({})
    answer.set_cookie("session", loop.open_session(username or "guest"), httponly=True)
    loop.logins.add(username)
    return answer


async def _logout(loop: LoopServer, request: Request) -> Response:
    loop.sessions.pop(request.state.call.cookies.get("session", ""), None)
    answer = JSONResponse({})
    answer.delete_cookie("session")
    return answer


async def _status(loop: LoopServer, request: Request) -> Response:
    return JSONResponse({"state": "ready"})


async def _projects(loop: LoopServer, request: Request) -> Response:
    if request.state.call.account is None:
        return _problem(401, "log in first")
    rows = [
        {"organization_id": project.organization, "project_id": project.id, "resource": project.resource}
        for project in loop.store.projects.values()
    ]
    return JSONResponse({"projects": rows})


async def _generate(loop: LoopServer, request: Request) -> Response:
    samples.generate(loop.store, request.path_params["organization"], await request.json())
    return JSONResponse({})


async def _delete(loop: LoopServer, request: Request) -> Response:
    loop.store.projects.pop((request.path_params["organization"], request.path_params["project"]), None)
    return JSONResponse({})


async def _project(loop: LoopServer, project: Project, request: Request) -> Response:
    return JSONResponse({"categories": project.categories})


async def _data(loop: LoopServer, project: Project, request: Request) -> Response:
    state = request.query_params.get("state")
    if state and state not in STATES:
        return _problem(422, f"there is no state {state}")
    chosen = [
        image.id for image in project.images.values() if image.state == state or (not state and image.state != "trash")
    ]
    return JSONResponse({"image_ids": chosen, "categories": project.categories})


async def _images(loop: LoopServer, project: Project, request: Request) -> Response:
    ids = [id for id in request.query_params.get("ids", "").split(",") if id]
    if len(ids) > 100:
        return _problem(422, f"{len(ids)} ids are more than 100")
    return JSONResponse({"images": [project.images[id].data for id in ids if id in project.images]})


async def _image(loop: LoopServer, project: Project, request: Request) -> Response:
    image = project.images.get(request.path_params["id"])
    if image is None:
        return _problem(404, "there is no such image")
    return Response(image.jpeg, media_type="image/jpeg")


async def _detectors(loop: LoopServer, project: Project, request: Request) -> Response:
    status = json.loads(await request.body())
    wrong = wrong_with(status, DetectorStatus)
    if wrong:
        loop.complaints.add(wrong)
        return _problem(422, wrong)
    loop.detectors.add(Report("detectors", status, f"{project.organization}/{project.id}"))
    return JSONResponse({})


async def _detections(loop: LoopServer, project: Project, request: Request) -> Response:
    items = json.loads(await request.body())
    wrong = wrong_with(items, list[Detections])
    if wrong is None and len(items) > 100:
        wrong = f"{len(items)} images are more than 100"
    if wrong is None:
        strangers = [item["image_id"] for item in items if item["image_id"] not in project.images]
        wrong = f"images of other projects: {strangers}" if strangers else None
    if wrong:
        loop.complaints.add(f"detections: {wrong}")
        return _problem(422, wrong)
    loop.detections.add(DetectionsUpload(f"{project.organization}/{project.id}", items))
    return JSONResponse({})


def _problem(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, status)
