"""What a backend promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from anyio.to_thread import run_sync
from msgspec import structs

from loopcore.abc import Backend, Driver
from loopcore.errors import ModelError
from loopcore.options import decode
from loopcore.testing.pictures import make_frame
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import Box, Classification, Detection, Frame, Model, Point, Prediction, Segmentation

_PIXELS = 0.02
"""Two runs agree if coordinates differ by no more than this share of the frame's longer side …"""
_CONFIDENCE = 0.005
"""… and confidences by no more than this: batches of other sizes are other orders of addition."""


class BackendSuite(DriverSuite):
    """A backend finds the same in a frame whatever else it is doing, and says where in the original's pixels.

    ```python
    class TestAcmeBackend(BackendSuite):
        driver = AcmeBackend

        @pytest.fixture
        def model(self):
            return Model(info=ModelInfo(name="tiny", version="1", format="acme", labels=("a",)), path=FOLDER)

        @pytest.fixture
        def frames(self):
            return [...]                    # frames in which this model finds something
    ```
    """

    driver: ClassVar[type[Driver]]

    @pytest.fixture
    def model(self) -> Model:
        """To be overridden: a small model that the backend can run."""
        raise NotImplementedError(f"{type(self).__name__} has no fixture `model`")

    @pytest.fixture
    def frames(self) -> list[Frame]:
        """Four frames of different sizes. Override it so that the model finds something in at least one of them."""
        return [make_frame(seed, *size) for seed, size in enumerate([(64, 48), (97, 61), (48, 96), (320, 240)])]

    @pytest.fixture
    def make(self, table: Mapping[str, Any], model: Model) -> Callable[[], Any]:
        return lambda: self._make(table, model)

    def _make(self, table: Mapping[str, Any], model: Model) -> Backend:
        assert issubclass(self.driver, Backend)
        return self.driver(decode(table, self.driver.Options), model)

    def test_backend_runs_the_model_s_format(self, model: Model) -> None:
        assert issubclass(self.driver, Backend)
        assert model.info.format in self.driver.formats

    def test_constructor_does_not_look_for_the_model(
        self, table: Mapping[str, Any], model: Model, tmp_path: Path
    ) -> None:
        self._make(table, structs.replace(model, path=tmp_path / "is not there"))

    async def test_model_without_its_files_is_a_model_error(
        self, table: Mapping[str, Any], model: Model, tmp_path: Path
    ) -> None:
        if not model.info.files:
            pytest.skip("this model has no files")
        backend = self._make(table, structs.replace(model, path=tmp_path))
        with pytest.raises(ModelError):
            async with backend:
                pass

    async def test_each_frame_gets_a_prediction(self, make: Callable[[], Backend], frames: list[Frame]) -> None:
        async with make() as backend:
            assert backend.max_batch >= 1
            assert backend.max_overlap >= 1
            for size in range(1, min(backend.max_batch, len(frames)) + 1):
                predictions = await _infer(backend, frames[:size])
                assert len(predictions) == size
                assert all(isinstance(prediction, Prediction) for prediction in predictions)

    async def test_something_is_found(self, make: Callable[[], Backend], frames: list[Frame]) -> None:
        """Else the other tests compare nothing with nothing. A backend that never finds anything overrides this."""
        async with make() as backend:
            assert any(one.detections for one in await _alone(backend, frames))

    async def test_prediction_names_the_model(self, make: Callable[[], Backend], frames: list[Frame]) -> None:
        async with make() as backend:
            (prediction,) = await _infer(backend, frames[:1])
            assert (prediction.model, prediction.model_version) == (backend.model.info.name, backend.model.info.version)
            if labels := backend.model.info.labels:
                found = [one.label for each in await _alone(backend, frames) for one in each.detections]
                assert set(found) <= set(labels)

    async def test_result_does_not_depend_on_the_rest_of_the_batch(
        self, make: Callable[[], Backend], frames: list[Frame]
    ) -> None:
        async with make() as backend:
            alone = await _alone(backend, frames)
            for size in range(2, min(backend.max_batch, len(frames)) + 1):
                _assert_same(frames[:size], await _infer(backend, frames[:size]), alone[:size])
                _assert_same(frames[:size][::-1], await _infer(backend, frames[:size][::-1]), alone[:size][::-1])

    async def test_result_does_not_depend_on_the_calls_before(
        self, make: Callable[[], Backend], frames: list[Frame]
    ) -> None:
        async with make() as backend:
            forward = await _alone(backend, frames)
            backward = (await _alone(backend, frames[::-1]))[::-1]
            _assert_same(frames, forward, backward)

    async def test_calls_may_overlap_as_far_as_the_backend_allows(
        self, make: Callable[[], Backend], frames: list[Frame]
    ) -> None:
        async with make() as backend:
            alone = await _alone(backend, frames)
            together: dict[int, Prediction] = {}
            limiter = anyio.CapacityLimiter(backend.max_overlap)

            async def infer(index: int) -> None:
                (together[index],) = await run_sync(backend.infer, [frames[index]], limiter=limiter)

            with anyio.fail_after(LIMIT_S):
                async with anyio.create_task_group() as tasks:
                    for index in range(len(frames)):
                        tasks.start_soon(infer, index)
            _assert_same(frames, [together[index] for index in range(len(frames))], alone)

    async def test_pixels_are_not_written_to(self, make: Callable[[], Backend], frames: list[Frame]) -> None:
        before = [frame.pixels.copy() for frame in frames]
        async with make() as backend:
            await _alone(backend, frames)
        assert all((frame.pixels == copy).all() for frame, copy in zip(frames, before, strict=True))

    async def test_places_are_in_pixels_of_the_original(self, make: Callable[[], Backend], frames: list[Frame]) -> None:
        """The same pixels, said to be decoded at half of the original's size: everything is found twice as far out."""
        halved = [
            structs.replace(
                frame, info=structs.replace(frame.info, width=2 * frame.info.width, height=2 * frame.info.height)
            )
            for frame in frames
        ]
        async with make() as backend:
            plain = await _alone(backend, frames)
            doubled = await _alone(backend, halved)
        expected = [structs.replace(one, detections=tuple(_scaled(found) for found in one.detections)) for one in plain]
        _assert_same(halved, doubled, expected)

    async def test_decode_size_is_a_size(self, make: Callable[[], Backend]) -> None:
        async with make() as backend:
            for width, height in ((1, 1), (64, 48), (1920, 1080), (3, 4000)):
                least = backend.decode_size(width, height)
                assert all(isinstance(side, int) for side in least)
                assert min(least) >= 1


async def _infer(backend: Backend, frames: Sequence[Frame]) -> Sequence[Prediction]:
    with anyio.fail_after(LIMIT_S):
        return await run_sync(backend.infer, frames)


async def _alone(backend: Backend, frames: Sequence[Frame]) -> list[Prediction]:
    return [(await _infer(backend, [frame]))[0] for frame in frames]


def _assert_same(frames: Sequence[Frame], ours: Sequence[Prediction], others: Sequence[Prediction]) -> None:
    for frame, one, other in zip(frames, ours, others, strict=True):
        side = max(frame.info.width, frame.info.height)
        assert len(one.detections) == len(other.detections)
        for found, again in zip(_sorted(one), _sorted(other), strict=True):
            assert (type(found), found.label) == (type(again), again.label)
            assert found.confidence == pytest.approx(again.confidence, abs=_CONFIDENCE)
            assert _numbers(found) == pytest.approx(_numbers(again), abs=_PIXELS * side)


def _sorted(prediction: Prediction) -> list[Detection]:
    return sorted(prediction.detections, key=lambda found: (found.label, *(round(n) for n in _numbers(found))))


def _numbers(detection: Detection) -> list[float]:
    match detection:
        case Box(x=x, y=y, width=width, height=height):
            return [x, y, width, height]
        case Point(x=x, y=y):
            return [x, y]
        case Segmentation(points=points):
            return [number for point in points for number in point]
        case Classification():
            return []


def _scaled(found: Detection) -> Detection:
    match found:
        case Box():
            return structs.replace(found, x=2 * found.x, y=2 * found.y, width=2 * found.width, height=2 * found.height)
        case Point():
            return structs.replace(found, x=2 * found.x, y=2 * found.y)
        case Segmentation():
            return structs.replace(found, points=tuple((2 * x, 2 * y) for x, y in found.points))
        case Classification():
            return found
