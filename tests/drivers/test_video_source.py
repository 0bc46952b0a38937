"""What the source `video` promises: the same frames with the same times, whenever a clip is shown."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from loopcore.drivers.video_source import VideoSource, frames_of
from loopcore.errors import BackendError, ConfigError, FrameError, StorageError
from loopcore.options import decode
from loopcore.testing import RecordingService, SourceSuite

av = pytest.importorskip("av")
pytestmark = pytest.mark.anyio
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLIPS = ("bottle-detection", "car-detection", "one-by-one-person-detection")


def film(path: Path, *, frames: int = 10, rate: int = 5, metadata: dict[str, str] | None = None) -> Path:
    """A clip in which each frame is a shade lighter than the one before, and white in its upper left quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(frames):
            pixels = np.full((48, 64, 3), 10 + n % 20 * 10, np.uint8)
            pixels[:24, :32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def make(path: Path, **table: Any) -> VideoSource:
    return VideoSource(decode({"path": str(path), **table}, VideoSource.Options))


async def show(source: VideoSource, service: RecordingService | None = None) -> RecordingService:
    service = service or RecordingService()
    with anyio.fail_after(20):
        await source.run(service, task_status=anyio.TASK_STATUS_IGNORED)
    return service


def seconds(service: RecordingService, start: datetime = EPOCH) -> list[float]:
    return [(frame.captured - start).total_seconds() for frame in service.taken if frame.captured]


class TestVideoSourceSuite(SourceSuite):
    driver = VideoSource
    frames = 4

    @pytest.fixture
    def table(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(film(tmp_path / "a.mp4", frames=4))}

    @pytest.fixture
    def missing(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "nowhere.mp4")}


async def test_all_frames_come_with_the_clips_own_time(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", frames=6, rate=5)
    service = await show(make(path, camera="gate", tags=["zoo"]))
    assert seconds(service) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [frame.source for frame in service.taken] == [f"{path}#{n}" for n in range(6)]
    assert {(frame.camera, frame.tags) for frame in service.taken} == {("gate", ("zoo",))}
    assert [int(frame.image.array[40, 60].mean()) // 10 for frame in service.taken] == pytest.approx(
        [1, 2, 3, 4, 5, 6], abs=1
    )


@pytest.mark.parametrize("table", [{"every": "400 ms"}, {"fps": 2.5}])
async def test_frames_are_left_out_by_the_clips_own_time(tmp_path: Path, table: dict[str, Any]) -> None:
    service = await show(make(film(tmp_path / "a.mp4", frames=10, rate=5), **table))
    assert seconds(service) == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])


async def test_time_begins_where_the_options_say_else_the_clip_else_1970(tmp_path: Path) -> None:
    plain = film(tmp_path / "plain.mp4", frames=1)
    stamped = film(tmp_path / "stamped.mkv", frames=1, metadata={"creation_time": "2024-05-06T07:08:09Z"})
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for source, expected in (
        (make(plain), EPOCH),
        (make(stamped), datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        (make(stamped, start=start), start),
    ):
        service = await show(source)
        assert [frame.captured for frame in service.taken] == [expected]


async def test_clips_of_a_glob_follow_each_other_and_a_broken_one_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film(tmp_path / "a.mp4", frames=2)
    (tmp_path / "b.mp4").write_bytes(b"no clip at all")
    film(tmp_path / "c.mp4", frames=2)
    source = make(tmp_path / "*.mp4", camera_from="name")
    service = await show(source)
    assert [frame.camera for frame in service.taken] == ["a", "a", "c", "c"]
    assert (source.handed, source.bad) == (4, 1)
    assert "b.mp4" in caplog.text


async def test_clip_that_is_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    service = await show(make(path))
    assert 0 < len(service.taken) < 40


async def test_frame_the_model_fails_on_is_left_out(tmp_path: Path) -> None:
    source = make(film(tmp_path / "a.mp4", frames=3))
    service = await show(source, RecordingService([BackendError("no luck")]))
    assert seconds(service) == pytest.approx([0.2, 0.4])
    assert source.bad == 1


async def test_frame_that_cannot_be_stored_is_tried_again(tmp_path: Path) -> None:
    service = await show(make(film(tmp_path / "a.mp4", frames=2)), RecordingService([StorageError("full")]))
    assert seconds(service) == pytest.approx([0, 0.2])


async def test_only_few_frames_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopcore.drivers import video_source

    read = []
    upright = video_source._upright
    monkeypatch.setattr(video_source, "_upright", lambda frame: read.append(1) or upright(frame))
    service = RecordingService()
    service.close()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(film(tmp_path / "a.mp4", frames=10)).run, service)
            await service.wait_for(1)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert len(read) <= 4


async def test_loop_goes_on_in_time(tmp_path: Path) -> None:
    service = RecordingService()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(film(tmp_path / "a.mp4", frames=2, rate=5), loop=True).run, service)
            await service.wait_for(5)
            tasks.cancel_scope.cancel()
    assert seconds(service)[:4] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert len({frame.id for frame in service.taken}) == len(service.taken)


async def test_loop_over_nothing_ends(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no clip at all")
    with pytest.raises(ConfigError, match="nothing to see"):
        await show(make(tmp_path / "a.mp4", loop=True))


async def test_realtime_is_not_faster_than_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due = []

    async def note(moment: float) -> None:
        due.append(moment)

    monkeypatch.setattr(anyio, "sleep_until", note)
    await show(make(film(tmp_path / "a.mp4", frames=3, rate=5), realtime=True))
    assert [moment - due[0] for moment in due] == pytest.approx([0, 0.2, 0.4])


def test_frame_stands_upright_when_the_clip_says_that_it_is_turned(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", frames=1)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: 40 bytes of version 0 stand before the matrix
    clockwise = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 48 << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big") for number in clockwise)
    path.write_bytes(data)
    (pixels,) = frames_of(path)
    assert pixels.shape == (64, 48, 3)
    assert pixels[:30, 26:].mean() > 200 > pixels[40:, :20].mean()


def test_pixels_are_rgb_and_contiguous(tmp_path: Path) -> None:
    frames = list(frames_of(film(tmp_path / "a.mp4", frames=3)))
    assert len(frames) == 3
    for pixels in frames:
        assert pixels.dtype == np.uint8
        assert pixels.shape == (48, 64, 3)
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("data", [None, b"", b"no clip at all"])
def test_what_is_no_clip_is_a_frame_error(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FrameError, match=r"a\.mp4"):
        next(frames_of(path))


async def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"loopcore\[video\]"):
        await show(make(tmp_path / "a.mp4"))


@pytest.mark.parametrize("table", [{"every": 1, "fps": 2}, {"fps": 0}, {"start": datetime(2026, 1, 1)}])  # noqa: DTZ001
def test_options_that_make_no_sense_are_refused(tmp_path: Path, table: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        make(tmp_path, **table)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", CLIPS)
async def test_real_clip_gives_the_same_samples_twice(shared_data: Path, name: str) -> None:
    path = shared_data / "videos" / f"{name}.mp4"
    first, second = [await show(make(path, every="5 s")) for _ in range(2)]
    assert [frame.id for frame in first.taken] == [frame.id for frame in second.taken]
    steps = np.diff(seconds(first))
    assert len(steps) >= 5
    assert np.all((steps > 4.8) & (steps < 5.2))
    assert first.taken[0].captured == (EPOCH if name == CLIPS[0] else first.taken[0].captured)
    assert (first.taken[0].captured - EPOCH > timedelta(days=1)) == (name != CLIPS[0])
