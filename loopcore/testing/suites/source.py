"""What a source promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest

from loopcore.abc import Driver, Source
from loopcore.errors import BusyError, ConfigError, FrameError, NotReadyError
from loopcore.options import decode
from loopcore.testing.service import RecordingService
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import Encoded, Pixels


class SourceSuite(DriverSuite):
    """A source hands over each frame once, waits when it must, and ends when it is told to.

    ```python
    class TestTapeSource(SourceSuite):
        driver = TapeSource
        frames = 3

        @pytest.fixture
        def table(self, tmp_path):
            return {"path": str(record_a_tape(tmp_path, frames=3))}
    ```

    Attributes:
        frames: How many frames the input of the fixture `table` has, all of them good and no two alike; at least 2.
        ends: Whether `run` returns by itself when they have come.
    """

    driver: ClassVar[type[Driver]]
    frames: ClassVar[int]
    ends: ClassVar[bool] = True

    @pytest.fixture
    def more(self) -> Callable[[], object]:
        """Adds one frame to the input. To be overridden for a source that does not end."""
        raise NotImplementedError(f"{type(self).__name__} has no fixture `more`, which adds a frame to the input")

    @pytest.fixture
    def missing(self) -> Mapping[str, Any] | None:
        """A table whose input is not there and never will be; `None` if this source waits for its input."""
        return None

    async def test_every_frame_is_handed_over_once_and_in_whole(self, make: Callable[[], Source]) -> None:
        service = RecordingService()
        await self._run(make, service, self.frames)
        assert len(service.taken) == self.frames
        assert len({frame.id for frame in service.taken}) == self.frames
        for frame in service.taken:
            match frame.image:
                case Encoded(data=data, media=media):
                    assert media in {"image/jpeg", "image/png"}
                    assert len(data) > 0
                case Pixels(array=array):
                    assert array.dtype == "uint8"
                    assert array.ndim == 3
                    assert array.shape[2] == 3
            assert frame.captured is None or frame.captured.tzinfo is not None

    @pytest.mark.parametrize("error", [BusyError, NotReadyError])
    async def test_refused_frame_is_tried_again_before_the_next(
        self, make: Callable[[], Source], error: type[BusyError | NotReadyError]
    ) -> None:
        service = RecordingService([error("not now", retry_after_s=0.01), error("not yet", retry_after_s=0.01)])
        await self._run(make, service, self.frames + 2)
        assert [frame.taken for frame in service.handed] == [False, False] + [True] * self.frames
        assert len({frame.id for frame in service.handed[:3]}) == 1
        assert len({frame.id for frame in service.taken}) == self.frames

    async def test_bad_frame_does_not_stop_the_others(self, make: Callable[[], Source]) -> None:
        service = RecordingService([FrameError("this one is bad")])
        await self._run(make, service, self.frames)
        assert len(service.taken) == self.frames - 1

    async def test_source_waits_for_a_slow_service_and_can_be_cancelled(self, make: Callable[[], Source]) -> None:
        service = RecordingService()
        service.close()
        with anyio.fail_after(LIMIT_S):
            async with make() as source, anyio.create_task_group() as tasks:
                await tasks.start(source.run, service)
                await service.wait_for(1)
                tasks.cancel_scope.cancel()
        assert len(service.handed) <= self.frames

    async def test_frames_that_come_again_after_a_restart_are_the_same_samples(
        self, make: Callable[[], Source], request: pytest.FixtureRequest
    ) -> None:
        """The medium may not let the source know what it has handed over; then its ids must say it."""
        first, second = RecordingService(), RecordingService()
        await self._run(make, first, self.frames)
        known = {frame.id for frame in first.handed}
        if self.ends:
            await self._run(make, second, 0)
            assert {frame.id for frame in second.handed} <= known
            return
        more: Callable[[], object] = request.getfixturevalue("more")
        with anyio.fail_after(LIMIT_S):
            async with make() as source, _running(source, second, cancel=True):
                more()
                while not (new := {frame.id for frame in second.handed} - known):
                    await second.wait_for(len(second.handed) + 1)
        assert len(new) == 1

    async def test_missing_input_is_a_config_error(self, missing: Mapping[str, Any] | None) -> None:
        if missing is None:
            pytest.skip("this source waits for its input (no fixture `missing`)")
        with anyio.fail_after(LIMIT_S), pytest.RaisesGroup(ConfigError, allow_unwrapped=True, flatten_subgroups=True):
            source = self.driver(decode(missing, self.driver.Options))
            assert isinstance(source, Source)
            async with source:
                await source.run(RecordingService(), task_status=anyio.TASK_STATUS_IGNORED)

    async def _run(self, make: Callable[[], Source], service: RecordingService, count: int) -> None:
        """Run until the source has ended or, if it does not end, so many frames were handed over."""
        with anyio.fail_after(LIMIT_S):
            async with make() as source, _running(source, service, cancel=not self.ends):
                if not self.ends:
                    await service.wait_for(count)


@asynccontextmanager
async def _running(source: Source, service: RecordingService, *, cancel: bool) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(source.run, service)
        yield
        if cancel:
            tasks.cancel_scope.cancel()
