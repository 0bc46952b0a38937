"""Frames through infer into collect: what an answer promises."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import create_task_group, fail_after

from loopcore.abc import Backend, Selector
from loopcore.collect.outbox import Outbox, Taker
from loopcore.collect.selection import Selection
from loopcore.config import OutboxTable, SelectorTable
from loopcore.errors import BackendError, FrameError, NotReadyError, PluginError, StorageError
from loopcore.files import Disk
from loopcore.hooks import Hooks
from loopcore.hookspecs import hookimpl
from loopcore.infer.serving import Serving
from loopcore.infer.threads import Threads
from loopcore.options import Options
from loopcore.pipeline import Controls, Pipeline
from loopcore.testing import AlwaysSelector, FixedBackend, make_jpeg, make_picture
from loopcore.types import Box, Encoded, Frame, FrameInfo, Keep, Model, ModelInfo, Pixels, Prediction, image_id

pytestmark = pytest.mark.anyio

PICTURE = Encoded(make_jpeg(1), "image/jpeg")
MODEL = Model(info=ModelInfo(name="fixed", version="1", format="null"), path=Path())


class Never(Selector):
    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        return ()


class Sees(Selector):
    needs_image = True

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        assert frame is not None
        return (f"{frame.pixels.shape}",)


class Picky(FixedBackend):
    """Fails on pictures of 13 pixels' width, and when one of those is in the batch."""

    max_batch = 4

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if any(frame.info.width == 13 for frame in frames):
            raise BackendError("thirteen")
        return super().infer(frames)


class Buggy(FixedBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if frames[0].info.width == 13:
            raise ZeroDivisionError
        return super().infer(frames)


async def _nothing(*_: Any) -> Any:
    return {}


@asynccontextmanager
async def pipeline(
    folder: Path,
    selector: type[Selector] = AlwaysSelector,
    *,
    backend: type[Backend] = FixedBackend,
    takers: Sequence[Taker] = (),
    hooks: Hooks | None = None,
    disk: Disk | None = None,
    active: bool = True,
) -> AsyncGenerator[tuple[Pipeline, Outbox]]:
    holder: list[Pipeline] = []

    threads = Threads()
    serving = Serving(lambda model: backend(backend.Options(), model), lambda entered: holder[0].fit(entered), _nothing)
    selection = Selection([(SelectorTable(driver="always", name="always"), selector(Options()))])
    outbox = Outbox(folder, OutboxTable(min_free=0), takers, disk=disk or Disk())  # type: ignore[arg-type]
    service = Pipeline(
        serving=serving,
        selection=selection,
        outbox=outbox,
        hooks=hooks or Hooks(),
        controls=Controls(_nothing, _nothing, _nothing, _nothing, _nothing),
        threads=threads,
    )
    holder.append(service)
    with fail_after(20):
        async with outbox, threads, create_task_group() as group:
            await group.start(serving.run)
            if active:
                await serving.activate(MODEL)
            yield service, outbox
            group.cancel_scope.cancel()


async def test_a_selected_frame_is_in_the_outbox_when_the_answer_comes(tmp_path: Path) -> None:
    async with pipeline(tmp_path) as (service, outbox):
        answer = await service.predict(PICTURE, camera="c", tags=["a", "b", "a"], source="here")
        assert answer.sample_id is not None
        sample = await outbox.show(answer.sample_id)
    assert sample is not None
    assert sample.image == PICTURE.data
    assert sample.info.image_id == image_id(PICTURE.data)
    assert sample.info.prediction == answer.prediction
    assert sample.info.tags == ("a", "b")
    assert answer.reasons == sample.info.reasons == ("always",)
    assert (answer.width, answer.height) == (64, 48)
    assert answer.prediction.detections == (Box(label="thing", confidence=0.5, x=16, y=12, width=32, height=24),)


async def test_no_id_means_that_nothing_was_accepted(tmp_path: Path) -> None:
    async with pipeline(tmp_path, Never) as (service, outbox):
        answer = await service.predict(PICTURE)
        assert answer.sample_id is None
        assert (await outbox.status())["count"] == 0


async def test_the_caller_may_keep_all_or_none(tmp_path: Path) -> None:
    async with pipeline(tmp_path, Never) as (service, _):
        assert (await service.predict(PICTURE, keep=Keep.ALL)).sample_id
    async with pipeline(tmp_path / "other", AlwaysSelector) as (service, _):
        assert (await service.predict(PICTURE, keep=Keep.NONE)).sample_id is None


async def test_the_same_instant_in_another_time_zone_is_the_same_sample(tmp_path: Path) -> None:
    utc = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    async with pipeline(tmp_path) as (service, outbox):
        first = await service.predict(PICTURE, captured=utc)
        second = await service.predict(PICTURE, captured=utc.astimezone(timezone(timedelta(hours=5))))
        third = await service.predict(PICTURE, captured=utc + timedelta(microseconds=1))
        assert (await outbox.status())["count"] == 2
    assert first.sample_id == second.sample_id != third.sample_id


async def test_a_capture_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    async with pipeline(tmp_path) as (service, _):
        with pytest.raises(FrameError, match="time zone"):
            await service.predict(PICTURE, captured=datetime(2026, 1, 2))  # noqa: DTZ001


async def test_what_no_sink_wants_is_counted_and_not_kept(tmp_path: Path) -> None:
    takers = [Taker(name="other", wants=lambda info: "rare" in info.reasons)]
    async with pipeline(tmp_path, takers=takers) as (service, outbox):
        answer = await service.predict(PICTURE)
        assert answer.sample_id is None
        assert service.report()["unwanted"] == 1
        assert (await outbox.status())["count"] == 0


async def test_an_array_is_encoded_once_and_only_when_kept(tmp_path: Path) -> None:
    pixels = Pixels(make_picture(3))
    async with pipeline(tmp_path) as (service, outbox):
        answer = await service.predict(pixels)
        again = await service.predict(pixels)
        assert answer.sample_id == again.sample_id is not None
        sample = await outbox.show(answer.sample_id or "")
    assert sample is not None
    assert sample.info.media == "image/jpeg"
    assert sample.image.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
async def test_an_array_that_is_no_picture_is_refused(tmp_path: Path, array: Any) -> None:
    async with pipeline(tmp_path) as (service, _):
        with pytest.raises(FrameError):
            await service.predict(Pixels(array))


async def test_bytes_that_are_no_picture_are_refused_and_counted(tmp_path: Path) -> None:
    async with pipeline(tmp_path) as (service, _):
        with pytest.raises(FrameError):
            await service.predict(Encoded(b"not a picture", "image/jpeg"))
        assert service.report()["failed"] == {"FrameError": 1}


async def test_without_a_model_the_caller_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with pipeline(tmp_path, active=False) as (service, _):
        with pytest.raises(NotReadyError) as caught:
            await service.predict(PICTURE)
    assert caught.value.retry_after_s > 0


async def test_a_frame_that_the_model_fails_on_fails_alone_in_its_batch(tmp_path: Path) -> None:
    outcomes: dict[int, str] = {}

    async def ask(service: Pipeline, width: int) -> None:
        try:
            await service.predict(Encoded(make_jpeg(1, width=width), "image/jpeg"))
        except BackendError as exc:
            outcomes[width] = str(exc)
        else:
            outcomes[width] = "fine"

    async with pipeline(tmp_path, backend=Picky) as (service, _), create_task_group() as group:
        for width in (10, 11, 12, 13, 14, 15):
            group.start_soon(ask, service, width)
    assert outcomes == {10: "fine", 11: "fine", 12: "fine", 13: "thirteen", 14: "fine", 15: "fine"}


async def test_a_backend_that_breaks_its_contract_is_a_plugin_error_for_that_frame(tmp_path: Path) -> None:
    async with pipeline(tmp_path, backend=Buggy) as (service, _):
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            await service.predict(Encoded(make_jpeg(1, width=13), "image/jpeg"))
        assert (await service.predict(PICTURE)).sample_id


async def test_a_selector_that_needs_the_image_gets_it(tmp_path: Path) -> None:
    async with pipeline(tmp_path, Sees) as (service, _):
        assert (await service.predict(PICTURE)).reasons == ("(48, 64, 3)",)


async def test_a_full_disk_is_told_to_the_caller(tmp_path: Path) -> None:
    class Full(Disk):
        full = False

        def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(descriptor, parts)

    disk = Full()
    async with pipeline(tmp_path, disk=disk) as (service, _):
        disk.full = True
        with pytest.raises(StorageError):
            await service.predict(PICTURE)
        assert (await service.predict(PICTURE, keep=Keep.NONE)).sample_id is None


async def test_keep_stores_what_a_human_said_and_merges_when_it_comes_again(tmp_path: Path) -> None:
    box = Box(label="cup", x=1, y=2, width=3, height=4)
    async with pipeline(tmp_path, active=False) as (service, outbox):
        first = await service.keep(PICTURE, tags=["a"], reasons=["asked"], urgent=True)
        second = await service.keep(PICTURE, tags=["b"], annotations=[box], state="complete")
        assert first == second
        sample = await outbox.show(first)
    assert sample is not None
    assert sample.info.tags == ("a", "b")
    assert sample.info.annotations == (box,)
    assert sample.info.urgent


async def test_a_plugin_may_read_what_the_core_cannot(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def loopcore_decode_frame(self, data: bytes, media: str) -> Any:
            return make_picture(1) if data.startswith(b"RAW1") else None

    async with pipeline(tmp_path, hooks=Hooks({"raw": Plugin()})) as (service, outbox):
        answer = await service.predict(Encoded(b"RAW1....", "image/x-raw"))
        sample = await outbox.show(answer.sample_id or "")
        with pytest.raises(FrameError):
            await service.predict(Encoded(b"RAW2....", "image/x-raw"))
    assert sample is not None
    assert sample.info.media == "image/jpeg"


async def test_a_slow_plugin_does_not_delay_the_answer(tmp_path: Path) -> None:
    heard = anyio.Event()

    class Plugin:
        @hookimpl
        async def loopcore_sample_kept(self, sample: Any) -> None:
            heard.set()
            await anyio.sleep_forever()

    hooks = Hooks({"slow": Plugin()})
    async with pipeline(tmp_path, hooks=hooks) as (service, _), create_task_group() as group:
        await group.start(hooks.run)
        for seed in range(3):
            assert (await service.predict(Encoded(make_jpeg(seed), "image/jpeg"))).sample_id
        await heard.wait()
        group.cancel_scope.cancel()


def _careless(prediction: Prediction) -> type[Backend]:
    """A backend that behaves at its warm-up only."""

    class Careless(FixedBackend):
        def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
            return super().infer(frames) if frames[0].info.width == 640 else [prediction] * len(frames)

    return Careless


@pytest.mark.parametrize(
    "found",
    [
        {"confidence": math.nan},
        {"confidence": 1.0000001},
        {"x": math.inf},
        {"y": np.float32(1)},
        {"label": None},
        {"label": "\ud800"},
    ],
    ids=str,
)
async def test_an_answer_that_could_not_be_read_again_is_refused_and_nothing_is_kept(
    tmp_path: Path, found: dict[str, Any]
) -> None:
    shape: dict[str, Any] = {"label": "thing", "x": 1, "y": 1, "width": 2, "height": 2}
    box = Box(**shape | found)
    async with pipeline(tmp_path, backend=_careless(Prediction(detections=(box,)))) as (service, outbox):
        with pytest.raises(PluginError):
            await service.predict(PICTURE)
        assert (await outbox.status())["count"] == 0


async def test_keep_refuses_what_could_not_be_read_again(tmp_path: Path) -> None:
    box = Box(label="thing", confidence=7, x=1, y=1, width=2, height=2)
    async with pipeline(tmp_path, active=False) as (service, outbox):
        wrong: list[dict[str, Any]]
        wrong = [{"annotations": [box]}, {"state": 5}, {"prediction": Prediction(extra={"raw": object()})}]
        for what in wrong:
            with pytest.raises(FrameError, match="cannot be written down"):
                await service.keep(PICTURE, **what)
        assert (await outbox.status())["count"] == 0


class Once(Selector):
    """Wants a picture when it sees it for the first time."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.seen: set[str | None] = set()

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        is_new = info.source not in self.seen
        self.seen.add(info.source)
        return ("new",) if is_new else ()


async def test_a_frame_that_could_not_be_stored_is_kept_when_it_comes_again(tmp_path: Path) -> None:
    class Full(Disk):
        full = False

        def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(descriptor, parts)

    disk = Full()
    async with pipeline(tmp_path, Once, disk=disk) as (service, outbox):
        disk.full = True
        with pytest.raises(StorageError):
            await service.predict(PICTURE, source="a")
        disk.full = False
        other = await service.predict(Encoded(make_jpeg(2), "image/jpeg"), source="a")
        answer = await service.predict(PICTURE, source="a")
        again = await service.predict(PICTURE, source="a")
        assert (await outbox.status())["count"] == 1
    assert answer.sample_id
    assert answer.reasons == ("new",)
    assert other.sample_id is None
    assert again.sample_id is None


class Silent(FixedBackend):
    max_batch = 4

    def infer(self, frames: Sequence[Frame]) -> Any:
        return [
            None if frame.info.width == 13 else found
            for frame, found in zip(frames, super().infer(frames), strict=True)
        ]


class Dizzy(FixedBackend):
    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        raise ZeroDivisionError


@pytest.mark.parametrize("backend", [Silent, Dizzy])
async def test_whatever_a_backend_does_wrong_is_a_plugin_error(tmp_path: Path, backend: type[Backend]) -> None:
    async with pipeline(tmp_path, backend=backend) as (service, _):
        with pytest.raises(PluginError):
            await service.predict(Encoded(make_jpeg(1, width=13), "image/jpeg"))
        assert service.report()["failed"] == {"PluginError": 1}
        assert (await service.predict(Pixels(make_picture(1)))).sample_id


async def test_a_plugin_s_fault_is_logged_once_with_where_it_happened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pipeline(tmp_path, backend=Buggy) as (service, _):
        for _ in range(3):
            with pytest.raises(PluginError):
                await service.predict(Encoded(make_jpeg(1, width=13), "image/jpeg"))
    (record,) = [record for record in caplog.records if record.name == "loopcore.pipeline.service"]
    assert record.exc_info
    assert isinstance(record.exc_info[1].__cause__, ZeroDivisionError)  # type: ignore[union-attr]


class Strict(FixedBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        assert all(frame.pixels.flags.c_contiguous for frame in frames)
        return super().infer(frames)


async def test_a_backend_gets_whole_arrays_whatever_a_source_hands_in(tmp_path: Path) -> None:
    async with pipeline(tmp_path, backend=Strict) as (service, _):
        assert (await service.predict(Pixels(make_picture(1)[:, :, ::-1]))).sample_id


async def test_names_that_are_no_unicode_are_kept_in_a_form_that_is(tmp_path: Path) -> None:
    async with pipeline(tmp_path) as (service, outbox):
        answer = await service.predict(PICTURE, camera="T\udcfcr", source="\udcff.jpg", tags=["\ud800"])
        sample = await outbox.show(answer.sample_id or "")
    assert sample is not None
    assert sample.info.camera == "T\\udcfcr"
    assert sample.info.source == "\\udcff.jpg"
    assert sample.info.tags == ("\\ud800",)


async def test_a_capture_time_outside_the_calendar_is_refused(tmp_path: Path) -> None:
    async with pipeline(tmp_path) as (service, _):
        with pytest.raises(FrameError, match="not a time"):
            await service.predict(PICTURE, captured=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))))


async def test_keep_takes_what_only_a_plugin_can_read(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def loopcore_decode_frame(self, data: bytes, media: str) -> Any:
            return make_picture(1)

    async with pipeline(tmp_path, hooks=Hooks({"raw": Plugin()})) as (service, outbox):
        sample = await outbox.show(await service.keep(Encoded(b"RAW1", "image/x-raw")))
    assert sample is not None
    assert sample.info.media == "image/jpeg"
    assert (sample.info.width, sample.info.height) == (64, 48)


async def test_a_backend_that_would_end_the_process_fails_its_frame_alone(tmp_path: Path) -> None:
    class Quitting(FixedBackend):
        max_batch = 4

        def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
            if any(frame.info.width == 13 for frame in frames):
                raise SystemExit(0)
            return super().infer(frames)

    outcomes: dict[int, bool] = {}

    async def ask(service: Pipeline, width: int) -> None:
        try:
            await service.predict(Encoded(make_jpeg(1, width=width), "image/jpeg"))
        except PluginError:
            outcomes[width] = False
        else:
            outcomes[width] = True

    async with pipeline(tmp_path, backend=Quitting) as (service, _), create_task_group() as group:
        for width in (11, 12, 13, 14):
            group.start_soon(ask, service, width)
    assert outcomes == {11: True, 12: True, 13: False, 14: True}
