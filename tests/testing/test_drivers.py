"""The drivers that live in memory pass the suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from loopcore.errors import RetryableError
from loopcore.options import Options
from loopcore.testing import (
    AlwaysSelector,
    BackendSuite,
    FixedBackend,
    FixedTrainer,
    MemoryPlatform,
    MemorySink,
    MemorySource,
    NullBackend,
    PlatformSuite,
    RecordingService,
    SelectorSuite,
    SinkSuite,
    SourceSuite,
    TrainerSuite,
    make_sample,
)
from loopcore.types import Encoded, Frame, Model, ModelInfo


class TestMemorySink(SinkSuite):
    driver = MemorySink

    @pytest.fixture
    def sinks(self) -> list[MemorySink]:
        return []

    @pytest.fixture
    def make(self, sinks: list[MemorySink]) -> Callable[[], MemorySink]:
        """A memory goes with its instance; here the next one takes it over, as a peer would keep it."""

        def make() -> MemorySink:
            sink = MemorySink(Options())
            if sinks:
                sink.samples = sinks[0].samples
            sinks.append(sink)
            return sink

        return make

    @pytest.fixture
    def held(self, sinks: list[MemorySink]) -> Callable[[], Sequence[str]]:
        return lambda: list(sinks[0].samples)

    async def test_errors_are_raised_one_by_one(self) -> None:
        sink = MemorySink(Options())
        sink.errors.append(RetryableError("later"))
        sample = make_sample(0)
        with pytest.raises(RetryableError):
            await sink.send([sample])
        assert not sink.samples
        await sink.send([sample])
        assert sink.samples == {sample.info.id: sample}


class TestMemoryPlatform(PlatformSuite):
    driver = MemoryPlatform


class TestMemorySource(SourceSuite):
    driver = MemorySource
    frames = 3


class Backends(BackendSuite):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return Model(info=ModelInfo(name="nothing", version="1", format="null"), path=tmp_path)


class TestFixedBackend(Backends):
    driver = FixedBackend


class TestNullBackend(Backends):
    driver = NullBackend

    async def test_something_is_found(self, make: Callable[[], NullBackend], frames: list[Frame]) -> None:
        async with make() as backend:
            assert not any(one.detections for one in backend.infer(frames))


class TestFixedTrainer(TrainerSuite):
    driver = FixedTrainer

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"steps": 2, "formats": ["null", "other"]}


class TestAlwaysSelector(SelectorSuite):
    driver = AlwaysSelector


@pytest.mark.anyio
async def test_recording_service_answers_again_when_it_is_opened() -> None:
    service = RecordingService()
    service.close()
    image = Encoded(make_sample(0).image, "image/jpeg")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.predict, image)
            await service.wait_for(1)
            service.open()
    assert [frame.taken for frame in service.taken] == [True]
