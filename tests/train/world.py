"""A platform in memory that gives jobs, and fails where a test wants it to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from msgspec.structs import replace

from loopcore.abc import (
    ImageStore,
    Job,
    JobQueue,
    JobState,
    ModelRegistry,
    Report,
    Score,
    StoredImage,
    Worker,
)
from loopcore.datasets import read_snapshot
from loopcore.errors import ModelError, RejectedError
from loopcore.package import open_folder, write_package
from loopcore.testing import make_jpeg
from loopcore.types import Annotation, Box, Model, ModelInfo, Prediction

LABELS = ("cat", "dog")
CAT = Box(label="cat", x=1, y=2, width=10, height=10)

Fault = Callable[[], Awaitable[None]] | Exception


class World(JobQueue):
    """The platform, and all else that a worker deals with; survives the worker.

    Attributes:
        images_of: The platform's images: bytes (`None`: it has lost them), set, state and annotations, by id.
        calls: What was asked, in order.
        faults: What happens at the next calls of an operation, one each: an error, or something to do.
        always: What happens at every call of an operation.
        published: What the platform has taken: the model's files by format.
        seen: What the platform was told that the model found, by image.
        scores: The scores that the platform has heard.
        trained: How many steps the trainer has done, over all its processes.
        downloads: The images that were downloaded, in order.
    """

    def __init__(self) -> None:
        self.images_of: dict[str, tuple[bytes | None, str | None, str, tuple[Annotation, ...] | None]] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.always: Callable[[str], Awaitable[None]] | None = None
        self.published: dict[str, dict[str, bytes]] = {}
        self.uploads = 0
        self.seen: dict[str, Prediction] = {}
        self.scores: list[Score] = []
        self.trained = 0
        self.steps = 3
        self.formats: tuple[str, ...] = ("null", "other")
        self.labels: tuple[str, ...] = LABELS
        self.parameters: Mapping[str, Any] = {}
        self.base: str | None = None
        self.downloads: list[str] = []
        self.models_of: list[tuple[ModelInfo, Path]] = []
        self.store = Images(self)
        self.registry = Models(self)
        for number in range(6):
            state = "complete" if number < 4 else "inbox"
            kind = "test" if number == 3 else "train"
            self.images_of[f"image-{number}"] = (make_jpeg(number), kind, state, (CAT,))

    async def point(self, name: str) -> None:
        """Where something may happen."""
        self.calls.append(name)
        await anyio.lowlevel.checkpoint()
        if self.always is not None:
            await self.always(name)
        if waiting := self.faults.get(name):
            fault = waiting.pop(0)
            if isinstance(fault, Exception):
                raise fault
            await fault()

    async def serve(self, worker: Worker, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await anyio.sleep_forever()

    def images(self, job: Job) -> ImageStore:
        return self.store

    def models(self, job: Job) -> ModelRegistry:
        return self.registry

    async def score(self, state: JobState) -> None:
        await self.point("score")
        assert state.score is not None
        self.scores.append(state.score)

    async def train(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: anyio.Event,
        log: Path,
    ) -> Path:
        """A trainer that keeps its progress in its folder, as one that resumes does."""
        labels = read_snapshot(snapshot).labels
        self.parameters, self.base = parameters, None if base is None else open_folder(base).info.version
        done = workdir / "done"
        steps = len(done.read_text()) if done.exists() else 0

        def tell() -> None:
            score = Score(confusion=dict.fromkeys(labels, (steps, 0, 1)), epoch=steps, metrics={"f1": 0.5})
            report(steps / self.steps, f"step {steps}", score=score, loss=1 / (steps + 1))

        tell()
        while steps < self.steps and not stop.is_set():
            await self.point("step")
            steps += 1
            done.write_text("x" * steps)
            self.trained += 1
            tell()
        await self.point("trained")
        for name in self.formats:
            folder = workdir / "out" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.bin").write_text(f"{name} of {steps} steps")
            write_package(folder, ModelInfo(name="made", version="0", format=name, labels=self.labels))
        return workdir / "out"

    def job(self, id: str = "job-1", **changes: Any) -> Job:
        return replace(Job(id=id, labels=LABELS, project="zoo", context={"number": 7}), **changes)


class Images(ImageStore):
    def __init__(self, world: World) -> None:
        self._world = world

    async def images(self, states: Sequence[str] = ()) -> Sequence[str]:
        await self._world.point("images of " + ("+".join(states) or "all states"))
        return [name for name, row in self._world.images_of.items() if not states or row[2] in states]

    async def fetch(self, images: Sequence[str], into: Path, got: Callable[[StoredImage], None]) -> None:
        await self._world.point("fetch images")
        for name in images:
            data, kind, state, annotations = self._world.images_of[name]
            if data is None:
                got(StoredImage(id=name, missing="the platform does not have it"))
                continue
            file = into / f"{name}.jpg"
            if not file.exists():
                await self._world.point("download")
                self._world.downloads.append(name)
                file.with_suffix(".part").write_bytes(data)
                file.with_suffix(".part").rename(file)
            got(StoredImage(id=name, file=file.name, annotations=annotations, set=kind, state=state))  # type: ignore[arg-type]

    async def add(self, image: str, annotations: Sequence[Annotation]) -> None:
        raise NotImplementedError

    async def predictions(self, predictions: Mapping[str, Prediction], model: ModelInfo) -> None:
        await self._world.point("predictions")
        assert model.version == "1.1"
        self._world.seen.update(predictions)


class Models(ModelRegistry):
    def __init__(self, world: World) -> None:
        self._world = world

    async def list(self) -> Sequence[ModelInfo]:
        await self._world.point("list models")
        return [info for info, _ in self._world.models_of]

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        await self._world.point("fetch model")
        for known, folder in self._world.models_of:
            if known.version == info.version and known.format == format:
                for file in folder.iterdir():
                    (into / file.name).write_bytes(file.read_bytes())
                return
        raise ModelError("there is no such model")

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        await self._world.point(f"publish {package.info.format}")
        files = {file.name: (package.path / file.name).read_bytes() for file in package.info.files}
        before = self._world.published.setdefault(package.info.format, files)
        if before != files:
            raise RejectedError("the platform has another model of this training already", status=409)
        self._world.uploads += 1
        await self._world.point(f"published {package.info.format}")
        return replace(package.info, version="1.1", extra={"platform": {"id": f"id-of-{job}"}})
