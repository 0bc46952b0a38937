"""A platform that needs nothing but memory: it keeps models, and says which one is to be live."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from msgspec import Struct

from loopcore.abc import DeploymentTarget, ModelRegistry, Platform
from loopcore.deploy.identity import same_model
from loopcore.errors import ModelError, RejectedError
from loopcore.files import inner_path
from loopcore.options import Options
from loopcore.package import write_package
from loopcore.types import Model, ModelInfo

CapabilityT = TypeVar("CapabilityT")


class _Stored(Struct, frozen=True):
    info: ModelInfo
    files: dict[str, bytes]


class MemoryModels(ModelRegistry):
    """Keeps models in a list.

    Attributes:
        errors: Raised by the next calls, one each, in order.
        fetched: What was fetched, in order: version and format.
    """

    def __init__(self) -> None:
        self.errors: deque[Exception] = deque()
        self.fetched: list[tuple[str, str]] = []
        self._stored: list[_Stored] = []

    async def list(self) -> Sequence[ModelInfo]:
        await self._answer()
        return [stored.info for stored in self._stored]

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:  # noqa: A002 - the field's term
        await self._answer()
        self.fetched.append((info.version, format))
        for stored in self._stored:
            if stored.info.format == format and same_model(info, stored.info):
                await to_thread.run_sync(_write, stored, into)
                return
        raise ModelError(f"there is no model {info.name} {info.version} in the format {format!r}")

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        await self._answer()
        stored = await to_thread.run_sync(_read, package)
        for known in self._stored:
            if (known.info.id, known.info.format) == (package.info.id, package.info.format):
                return known.info
        self._stored.insert(0, stored)
        return stored.info

    def forget(self) -> None:
        """Lose all models."""
        self._stored.clear()

    async def _answer(self) -> None:
        await checkpoint()
        if self.errors:
            raise self.errors.popleft()


class MemoryDeployment(DeploymentTarget):
    """Has a target, and collects reports.

    Attributes:
        wanted: The target.
        errors: Raised by the next calls, one each, in order.
        reports: What the node has reported, in order.
        reported: Set with each report; replace it to wait for the next one.
        asked: Likewise, with each question for the target.
    """

    def __init__(self, models: MemoryModels) -> None:
        self.wanted: ModelInfo | None = None
        self.errors: deque[Exception] = deque()
        self.reports: list[Mapping[str, Any]] = []
        self.reported = anyio.Event()
        self.asked = anyio.Event()
        self._models = models

    async def target(self) -> ModelInfo | None:
        await self._answer()
        self.asked.set()
        return self.wanted

    async def assign(self, model: ModelInfo) -> None:
        await self._answer()
        if not any(same_model(model, one) for one in await self._models.list()):
            raise RejectedError(f"there is no model {model.name} {model.version}")
        self.wanted = model

    async def report(self, status: Mapping[str, Any]) -> None:
        await self._answer()
        self.reports.append(status)
        self.reported.set()

    async def _answer(self) -> None:
        await checkpoint()
        if self.errors:
            raise self.errors.popleft()


class MemoryPlatform(Platform):
    """Keeps models in memory. For other capabilities put their implementations into `capabilities`.

    Attributes:
        models: Its registry.
        deployment: Its target.
        capabilities: What it can do, by kind.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.models = MemoryModels()
        self.deployment = MemoryDeployment(self.models)
        self.capabilities: dict[type, object] = {ModelRegistry: self.models, DeploymentTarget: self.deployment}

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        found = self.capabilities.get(kind)
        return found if isinstance(found, kind) else None


def make_model(
    folder: Path,
    *,
    name: str = "made",
    version: str = "1",
    format: str = "null",  # noqa: A002 - the field's term
    labels: Sequence[str] = ("cat", "dog"),
    content: bytes = b"weights",
    extra: Mapping[str, Any] | None = None,
) -> Model:
    """A package of one small file in a folder that is made; other content is another model."""
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(content * 1000)
    info = ModelInfo(name=name, version=version, format=format, labels=tuple(labels), extra=dict(extra or {}))
    return write_package(folder, info)


def _read(package: Model) -> _Stored:
    return _Stored(package.info, {file.name: (package.path / file.name).read_bytes() for file in package.info.files})


def _write(stored: _Stored, into: Path) -> None:
    for name, data in stored.files.items():
        path = inner_path(into, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in into.iterdir():
        if path.is_file() and path.name not in stored.files:
            path.unlink()
    write_package(into, stored.info)
