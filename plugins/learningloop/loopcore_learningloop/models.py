"""The models of a Loop (`learning-loop.md` 2.2, 8)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from anyio import to_thread
from msgspec import Struct

from loopcore.abc import ModelRegistry
from loopcore.errors import ModelError, RejectedError, RemoteError, RetryableError, StorageError
from loopcore.files import inner_path, unzip
from loopcore.http import Body, Part, multipart
from loopcore.package import MANIFEST
from loopcore.types import Model, ModelInfo
from loopcore_learningloop import packages, wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.downloads import Download
from loopcore_learningloop.projects import Project
from loopcore_learningloop.translation import Categories

_log = logging.getLogger(__name__)

_DOWNLOAD = ".learningloop.zip"
_LEFT = frozenset({_DOWNLOAD, f"{_DOWNLOAD}.tag"})
_FIELD = "files"
_CONFLICT = 409
_GONE = 404


class _Conflict(Struct):
    detail: wire.StoredModel


class Models(ModelRegistry):
    """The models of one project, or of all that the account can see.

    Args:
        loop: Where they are.
        project: The project; `None`: all of them.
        limit_s: How long the download or upload of one may take.
        pickles: Fetch formats that run code when they are loaded. Only for a trainer, which is a program of the
            operator's own in a process of its own; no node may serve them.
        categories: Of the models that are published; by default the project's.
        training: The number of the training that published models come from, whatever its job is called.
    """

    def __init__(
        self,
        loop: Loop,
        project: Project | None,
        *,
        limit_s: float = 600.0,
        pickles: bool = False,
        categories: Categories | None = None,
        training: int | None = None,
    ) -> None:
        self._loop = loop
        self._project = project
        self._limit_s = limit_s
        self._pickles = pickles
        self._categories = categories
        self._training = training
        self._others: dict[tuple[str, str], Project] = {}

    async def list(self) -> Sequence[ModelInfo]:
        """See `ModelRegistry`. Models without a version can be started from, and not be chosen: trainings see them."""
        if self._project is not None:
            return await self._list_of(self._project)
        found = await self._loop.get("projects", wire.ListedProjects)
        return [info for one in found.projects for info in await self._list_of_other(one)]

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:  # noqa: A002 - the field's term
        """See `ModelRegistry`. What an interrupted download has left in the folder is gone on from."""
        told = packages.told_of(info)
        if told is None:
            raise ModelError(f"{info.name} {info.version} is not a model of a Learning Loop")
        project = self._home(told)
        archive = into / _DOWNLOAD
        download = Download(self._loop, project.path("models", told.id, format, "file"), archive)

        def unpack() -> None:
            unzip(archive, into)
            download.discard()
            packages.adopt(into, told, format, pickles=self._pickles)

        try:
            await to_thread.run_sync(packages.empty, into, _LEFT)
            digest = await download.fetch(self._limit_s)
            await to_thread.run_sync(unpack)
        except RejectedError as exc:
            raise ModelError(f"the Loop does not give {info.name} {info.version} as {format}: {exc}") from exc
        except RetryableError as exc:
            if exc.status == _GONE and not await self._has(project, told.id, format):
                raise ModelError(f"{project} has no model {told.version} ({told.id}) as {format}") from exc
            raise
        except OSError as exc:
            raise StorageError(f"cannot write {into}: {exc.strerror or exc}") from exc
        _log.info("A model was fetched name=%s version=%s format=%s sha256=%s", info.name, info.version, format, digest)

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        """See `ModelRegistry`. Without a job, a model that is the Loop's own gets a further format.

        Args:
            package: The model.
            job: The number of the training, if the registry was not told one.
        """
        told = packages.told_of(package.info)
        if job is None and told is None:
            whose = f"{package.info.name} {package.info.version}"
            raise RejectedError(f"the Loop takes models of its own trainings, and {whose} comes from none of them")
        project = self._home(told if job is None else None)
        if told is not None and job is None:
            path = project.path("models", told.id, package.info.format, "file")
        else:
            number = str(job if self._training is None else self._training)
            path = project.path("trainings", number, "models", "latest", package.info.format, "file")
        body = await self._packed(package, project, anew=job is not None)
        model_id = await self._put(path, body) or (told.id if told and job is None else "")
        told = wire.ModelInformation(
            id=model_id,
            organization=project.organization,
            project=project.id,
            version=await self._version(project, model_id) or package.info.version,
        )
        return packages.info_of(told, package.info.format, labels=package.info.labels)

    async def _version(self, project: Project, model_id: str) -> str | None:
        """The version that the Loop has given a model; `None` if it cannot say, because the upload is what counts."""
        try:
            return next((one.version for one in await self._listed(project) if one.id == model_id), None)
        except RemoteError as exc:
            _log.warning("The Loop does not tell the version of a new model id=%s error=%s", model_id, exc)
            return None

    async def _packed(self, package: Model, project: Project, *, anew: bool) -> Body:
        info = package.info
        if nested := [file.name for file in info.files if "/" in file.name]:
            raise RejectedError(f"the Loop takes no folders in a package, and {info.name} has {nested[0]!r}")
        manifest = packages.manifest_for(info, self._categories or await project.categories(), anew=anew)
        parts = [Part(name=_FIELD, filename=MANIFEST, content=manifest, media="application/json")]
        parts += (
            Part(name=_FIELD, filename=file.name, content=inner_path(package.path, file.name)) for file in info.files
        )
        try:
            return await to_thread.run_sync(multipart, parts)
        except OSError as exc:
            raise StorageError(f"cannot read {package.path}: {exc.strerror or exc}") from exc

    async def _put(self, path: str, body: Body) -> str | None:
        """Upload; the Loop's id of the model, if it says one. A 409 says that the Loop has it (2.2)."""
        answer = await self._loop.call("PUT", path, content=body, expect={_CONFLICT, _GONE}, timeout_s=self._limit_s)
        if answer.status_code == _GONE:
            # The Loop's own 404 is final, and is JSON; that of a proxy before it is not.
            kind = RejectedError if "json" in answer.headers.get("content-type", "") else RetryableError
            raise kind(f"PUT {path} answered 404: {answer.text[:300]}", status=_GONE)
        if "html" in answer.headers.get("content-type", ""):
            raise RetryableError(f"PUT {path} answered with a web page; is the URL right?")
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if answer.status_code == _CONFLICT:
                return msgspec.json.decode(answer.content, type=_Conflict).detail.id
            return msgspec.json.decode(answer.content, type=wire.StoredModel).id
        return None

    async def _list_of(self, project: Project) -> Sequence[ModelInfo]:
        models = sorted(filter(self._is_shown, await self._listed(project)), key=_age, reverse=True)
        return [packages.info_of(_told(project, model), key) for model in models for key in model.formats]

    def _is_shown(self, model: wire.ListedModel) -> bool:
        return bool(model.version) or self._training is not None

    async def _list_of_other(self, found: wire.ListedProject) -> Sequence[ModelInfo]:
        """A project that cannot be read is left out: the others' models are worth having."""
        try:
            return await self._list_of(self._project_of(found.organization_id, found.project_id))
        except RemoteError as exc:
            if exc.status is None or exc.status >= 500:
                raise
            _log.warning("A project is left out project=%s error=%s", found.project_id, exc)
            return ()

    async def _listed(self, project: Project) -> Sequence[wire.ListedModel]:
        return (await self._loop.get(project.path("models"), wire.ListedModels)).models

    async def _has(self, project: Project, model_id: str, format: str) -> bool:  # noqa: A002
        return any(one.id == model_id and format in one.formats for one in await self._listed(project))

    def _home(self, told: wire.ModelInformation | None) -> Project:
        if told is not None:
            return self._project_of(told.organization, told.project)
        if self._project is None:
            raise RejectedError("the platform has no project of its own; name one in its table")
        return self._project

    def _project_of(self, organization: str, project_id: str) -> Project:
        key = organization.lower(), project_id.lower()
        if self._project is not None and key == (self._project.organization, self._project.id):
            return self._project
        return self._others.setdefault(key, Project(self._loop, *key))


def _told(project: Project, model: wire.ListedModel) -> wire.ModelInformation:
    return wire.ModelInformation(
        id=model.id,
        organization=project.organization,
        project=project.id,
        version=model.version or model.id,
        host=model.host,
    )


def _age(model: wire.ListedModel) -> tuple[str, tuple[int, ...]]:
    """By date, and of one date by version: its numbers, because 1.10 follows 1.9."""
    numbers = (int(part) if part.isdecimal() else 0 for part in (model.version or "").split("."))
    return model.created or "", tuple(numbers)
