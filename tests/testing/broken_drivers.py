"""Drivers that break one promise each, under their suites; `test_suites.py` runs this file and counts the failures."""

from __future__ import annotations

import hashlib
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from anyio.abc import TaskStatus
from msgspec import Struct, structs

from loopcore.abc import DeploymentTarget, ModelRegistry, Report, Score, Selector, Service, Sink, Source
from loopcore.errors import BusyError, FrameError, NotReadyError, TrainingError
from loopcore.options import Options
from loopcore.package import write_package
from loopcore.testing import (
    BackendSuite,
    FixedBackend,
    FixedTrainer,
    HttpSinkSuite,
    LoopbackServer,
    MemoryPlatform,
    MemorySource,
    PlatformSuite,
    Reply,
    Request,
    SelectorSuite,
    SinkSuite,
    SourceSuite,
    TrainerSuite,
    make_jpeg,
)
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import (
    Box,
    Delivered,
    Encoded,
    Frame,
    FrameInfo,
    Model,
    ModelInfo,
    Prediction,
    Receipt,
    Sample,
)

books: list[str] = []
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # costs no reading of certificates


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Sinks(SinkSuite):
    @pytest.fixture
    def held(self) -> Callable[[], Sequence[str]]:
        books.clear()
        return lambda: books


class BookSink(Sink):
    """Right in all respects."""

    max_batch = 3

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        await anyio.lowlevel.checkpoint()
        books.extend(sample.info.id for sample in samples if sample.info.id not in books)
        return [Delivered() for _ in samples]


class TestForgetfulSink(Sinks):
    class driver(BookSink):  # noqa: N801 - a suite's attribute
        async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
            return [Delivered() for _ in samples]


class TestRepeatingSink(Sinks):
    class driver(BookSink):  # noqa: N801
        async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
            books.extend(sample.info.id for sample in samples)
            return [Delivered() for _ in samples]


class TestShortSink(Sinks):
    class driver(BookSink):  # noqa: N801
        async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
            return (await super().send(samples))[:1]


class TestBusySink(Sinks):
    class driver(BookSink):  # noqa: N801
        def __init__(self, options: Options) -> None:
            super().__init__(options)
            Path("/dev/null").open().close()


class Loose(Struct):
    path: str = ""


class TestLooseSink(Sinks):
    class driver(BookSink):  # noqa: N801
        Options = Loose


class Url(Options, frozen=True):
    url: str


class TrustingSink(Sink):
    """Takes any answer for a success."""

    Options = Url

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            for sample in samples:
                await client.post(self.options.url, content=sample.image, headers={"x-id": sample.info.id})
        return [Delivered() for _ in samples]


class Books:
    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, request: Request) -> Reply:
        if request.headers["x-id"] not in self.ids:
            self.ids.append(request.headers["x-id"])
        return Reply()

    def held(self) -> Sequence[str]:
        return self.ids


class TestTrustingSink(HttpSinkSuite):
    driver = TrustingSink

    @pytest.fixture
    def peer(self) -> Books:
        return Books()

    @pytest.fixture
    def table(self, server: LoopbackServer) -> dict[str, str]:
        return {"url": server.url}


class PictureSource(Source):
    """Three pictures; what it does with an error is up to the children."""

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        for index in range(3):
            await self.hand(service, index)

    async def hand(self, service: Service, index: int) -> None:
        await service.predict(Encoded(make_jpeg(index), "image/jpeg"))


class TestHastySource(SourceSuite):
    frames = 3

    class driver(PictureSource):  # noqa: N801
        async def hand(self, service: Service, index: int) -> None:
            with suppress(BusyError, NotReadyError, FrameError):
                await super().hand(service, index)


class TestFragileSource(SourceSuite):
    frames = 3

    class driver(PictureSource):  # noqa: N801
        async def hand(self, service: Service, index: int) -> None:
            while True:
                try:
                    return await super().hand(service, index)
                except (BusyError, NotReadyError):
                    await anyio.lowlevel.checkpoint()


class TestForgetfulSource(SourceSuite):
    frames = 3
    shots = count()

    class driver(MemorySource):  # noqa: N801
        async def _hand(self, service: Service, image: Encoded, index: int) -> bool:
            now = datetime.now(UTC) + timedelta(seconds=next(TestForgetfulSource.shots))
            try:
                await service.predict(image, captured=now)
            except (BusyError, NotReadyError):
                return False
            except FrameError:
                pass
            return True


class TestDicingSelector(SelectorSuite):
    class driver(Selector):  # noqa: N801
        def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
            return ["luck"] if random.random() < 0.5 else []


class TestHoardingSelector(SelectorSuite):
    class driver(Selector):  # noqa: N801
        def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
            self.__dict__.setdefault("all", []).append((info, prediction))
            return []


class TestClockSelector(SelectorSuite):
    class driver(Selector):  # noqa: N801
        def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
            return ["fresh"] if datetime.now(UTC) - info.time < timedelta(hours=1) else []


class Backends(BackendSuite):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return Model(info=ModelInfo(name="nothing", version="1", format="null"), path=tmp_path)


class TestLeaningBackend(Backends):
    class driver(FixedBackend):  # noqa: N801
        def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
            return [super(type(self), self).infer(frames[-1:])[0] for _ in frames]


class TestScaledBackend(Backends):
    class driver(FixedBackend):  # noqa: N801
        def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
            sizes = [(frame.pixels.shape[1], frame.pixels.shape[0]) for frame in frames]
            found = [Box(label="thing", confidence=0.5, x=w / 4, y=h / 4, width=w / 2, height=h / 2) for w, h in sizes]
            answers = super().infer(frames)
            return [structs.replace(one, detections=(box,)) for one, box in zip(answers, found, strict=True)]


class TestScribblingBackend(Backends):
    class driver(FixedBackend):  # noqa: N801
        def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
            for frame in frames:
                np.add(frame.pixels, 1, out=frame.pixels, casting="unsafe")
            return super().infer(frames)


class TestEagerBackend(Backends):
    class driver(FixedBackend):  # noqa: N801
        def __init__(self, options: Options, model: Model) -> None:
            super().__init__(options, model)
            list(model.path.iterdir())


class TestCarelessTrainer(TrainerSuite):
    class driver(FixedTrainer):  # noqa: N801
        """Dices, writes into the snapshot, forgets the labels and its score, and takes a wish to stop for an end."""

        def train(
            self,
            snapshot: Path,
            base: Path | None,
            parameters: Mapping[str, Any],
            workdir: Path,
            report: Report,
            stop: Callable[[], bool],
        ) -> Path:
            if (workdir / "begun").exists():
                report(0.5)
            else:
                (workdir / "begun").touch()
                report(0.0, score=Score(epoch=0))
            pause = Event()
            for _ in range(50 if parameters.get("slow") else 0):
                if stop():
                    raise TrainingError("it was stopped")
                pause.wait(0.02)
            package = workdir / "package"
            package.mkdir(exist_ok=True)
            (package / "model.txt").write_text(str(random.random()))
            with (snapshot / "snapshot.json").open("a") as file:
                file.write(" ,")
            write_package(package, ModelInfo(name="careless", version="1", format="null", labels=("dog",)))
            return package

    @pytest.fixture
    def parameters(self, request: pytest.FixtureRequest) -> Mapping[str, Any]:
        return {"slow": "stop" in request.node.name or "killed" in request.node.name}


class TestMistakingPlatform(PlatformSuite):
    class MistakingPlatform(MemoryPlatform):
        """Sends whatever it has, takes everything for a target, and does not know a model again."""

        def __init__(self, options: Options) -> None:
            super().__init__(options)
            self.models = _MistakingModels()
            self.deployment = _MistakingDeployment(self.models)
            self.capabilities = {ModelRegistry: self.models, DeploymentTarget: self.deployment}

    driver = MistakingPlatform


class _MistakingModels(MemoryModels):
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        listed = await self.list()
        await super().fetch(listed[0], listed[0].format, into)

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        again = structs.replace(package.info, id=hashlib.sha256(str(len(await self.list())).encode()).hexdigest())
        return await super().publish(structs.replace(package, info=again), job)


class _MistakingDeployment(MemoryDeployment):
    async def assign(self, model: ModelInfo) -> None:
        self.wanted = structs.replace(model, id="", version="0")
