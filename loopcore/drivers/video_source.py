"""The source `video`: clips, frame by frame."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import anyio
import numpy as np
from anyio import to_thread
from msgspec import Meta, Struct

from loopcore.abc import Service, Source
from loopcore.drivers.patience import predict_patiently
from loopcore.errors import BackendError, ConfigError, FrameError, PluginError
from loopcore.options import Duration, Options
from loopcore.types import RGB, Pixels

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from anyio.streams.memory import MemoryObjectSendStream

_log = getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TURN_S = 0.2  # a thread comes back after so long, so that a cancelled source need not wait for it
_TICK_S = 1e-6


class VideoOptions(Options, frozen=True):
    """What `video` can be told.

    Attributes:
        path: A clip, or a glob of clips, which are read one after the other in order of their names.
        camera: The camera of all frames.
        camera_from: `name`: each clip's name without its ending is the camera.
        every: Seconds of the clip between two frames; all frames by default.
        fps: The same as frames a second of the clip.
        start: When the clip begins, with time zone; each clip of a glob begins there.
        loop: Begin again at the end. The time goes on, so that every round makes samples of its own.
        realtime: Not faster than the clip's own time.
        tags: Kept with the samples.
    """

    path: Path
    camera: str | None = None
    camera_from: Literal["none", "name"] = "none"
    every: Duration | None = None
    fps: Annotated[float, Meta(gt=0)] | None = None
    start: Annotated[datetime, Meta(tz=True)] | None = None
    loop: bool = False
    realtime: bool = False
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.every is not None and self.fps is not None:
            raise ValueError("Expected every or fps, not both")

    @property
    def every_s(self) -> float:
        """Seconds between two frames; 0 for all."""
        return 1 / self.fps if self.fps is not None else float(self.every or 0)


class ClipFrame(Struct, frozen=True, eq=False):
    """A frame of a clip: which it is, from 0; its time in seconds from the clip's first; and its pixels."""

    index: int
    at_s: float
    pixels: RGB


def frames_of(path: Path) -> Iterator[RGB]:
    """The pixels of all frames of a clip, upright, in order. Blocking.

    Raises:
        ConfigError: PyAV is not installed.
        FrameError: This is not a clip, or it is damaged from here on.
    """
    with _Clip(path) as clip:
        while (frame := clip.read()) is not None:
            yield frame.pixels


class VideoSource(Source):
    """Hands over the frames of clips, as fast as the node answers.

    A frame's capture time is the clip's beginning and the frame's own time. The beginning is `start`, else what the
    clip says of itself (`creation_time`), else 1970-01-01: then the time tells frames of one clip apart and orders
    them, and cannot be taken for a real one. The same clip gives the same samples each time, so after a restart, which
    begins anew, nothing is stored twice.

    A clip that cannot be read, or is damaged from some frame on, is logged and counted, and the next one follows.

    Attributes:
        handed: How many frames the node has answered.
        bad: How many frames or clips could not be used.
    """

    Options = VideoOptions
    options: VideoOptions

    def __init__(self, options: VideoOptions) -> None:
        super().__init__(options)
        self.handed = 0
        self.bad = 0

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        _av()
        clips = await to_thread.run_sync(_find, self.options.path)
        task_status.started()
        shift_s = 0.0
        while True:
            length_s = 0.0
            for clip in clips:
                length_s = max(length_s, await self._play(clip, service, shift_s))
            if not self.options.loop:
                return
            if not length_s:
                raise ConfigError(f"there is nothing to see in {self.options.path}")
            shift_s += length_s

    async def _play(self, path: Path, service: Service, shift_s: float) -> float:
        """Hand over one clip and return its length in seconds."""
        began = anyio.current_time()
        try:
            clip = await to_thread.run_sync(_Clip, path, self.options.every_s)
        except FrameError as exc:
            self._count_bad(path, exc)
            return 0.0
        start = (self.options.start or clip.created or _EPOCH) + timedelta(seconds=shift_s)
        camera = path.stem if self.options.camera_from == "name" else self.options.camera
        sender, receiver = anyio.create_memory_object_stream[ClipFrame](1)
        try:
            async with anyio.create_task_group() as tasks, receiver:
                tasks.start_soon(self._read_ahead, clip, sender)
                async for frame in receiver:
                    if self.options.realtime:
                        await anyio.sleep_until(began + frame.at_s)
                    await self._hand_over(service, path, camera, start, frame)
        finally:
            clip.close()
        return clip.length_s

    async def _read_ahead(self, clip: _Clip, sender: MemoryObjectSendStream[ClipFrame]) -> None:
        """Decode while the node is busy: one frame waits, and the next one for its place."""
        async with sender:
            try:
                while not clip.ended:
                    frame = await to_thread.run_sync(clip.read, _TURN_S)
                    if frame is not None:
                        await sender.send(frame)
            except FrameError as exc:
                self._count_bad(clip.path, exc)

    async def _hand_over(
        self, service: Service, path: Path, camera: str | None, start: datetime, frame: ClipFrame
    ) -> None:
        try:
            await predict_patiently(
                service,
                Pixels(frame.pixels),
                camera=camera,
                captured=start + timedelta(seconds=frame.at_s),
                tags=self.options.tags,
                source=f"{path}#{frame.index}",
            )
            self.handed += 1
        except (FrameError, BackendError, PluginError) as exc:
            self._count_bad(path, exc)

    def _count_bad(self, path: Path, exc: Exception) -> None:
        self.bad += 1
        _log.warning("A frame or the rest of a clip was left out: %s path=%s", exc, path)


class _Clip:
    """An open clip. Blocking; used by one thread at a time.

    Args:
        path: The file.
        every_s: Seconds between two frames; 0 for all.

    Raises:
        FrameError: It is not a clip.
    """

    def __init__(self, path: Path, every_s: float = 0.0) -> None:
        av = _av()
        self.path = path
        self.length_s = 0.0
        self.ended = False
        self._every_s = every_s
        self._error = av.FFmpegError
        self._index = -1
        self._due = 0
        self._first_s: float | None = None
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as exc:
            raise FrameError(f"{path.name} is not a readable clip: {exc}", status=415) from exc
        if not self._container.streams.video:
            self._container.close()
            raise FrameError(f"{path.name} has no pictures in it", status=415)
        self._stream = self._container.streams.video[0]
        self._frames = self._container.decode(self._stream)
        self.created = _created(self._container.metadata) or _created(self._stream.metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def read(self, patience_s: float | None = None) -> ClipFrame | None:
        """The next frame that is wanted; `None` at the end, or when none was found within `patience_s`.

        Raises:
            FrameError: The clip is damaged from here on; it counts as ended.
        """
        until = None if patience_s is None else time.monotonic() + patience_s
        while until is None or time.monotonic() < until:
            try:
                frame = next(self._frames, None)
                if frame is None:
                    self.ended = True
                    return None
                at_s = self._clock(frame)
                if not self._every_s or at_s + _TICK_S >= self._due * self._every_s:
                    if self._every_s:
                        self._due = max(self._due, int((at_s + _TICK_S) // self._every_s)) + 1
                    return ClipFrame(self._index, at_s, _upright(frame))
            except (self._error, OSError, ValueError) as exc:
                self.ended = True
                raise FrameError(f"{self.path.name} is damaged after frame {self._index}: {exc}") from exc
        return None

    def _clock(self, frame: Any) -> float:
        """The frame's time from the first one; by the average rate where the clip does not say."""
        self._index += 1
        step_s = 1 / float(self._stream.average_rate or 25)
        time_s = self._index * step_s if frame.time is None else float(frame.time)
        if self._first_s is None:
            self._first_s = time_s
        at_s = round(max(time_s - self._first_s, 0.0), 6)
        self.length_s = max(self.length_s, at_s + step_s)
        return at_s


def _av() -> Any:
    try:
        import av
    except ImportError as exc:
        raise ConfigError("clips are read by PyAV, which is not installed: pip install 'loopcore[video]'") from exc
    return av


def _upright(frame: Any) -> RGB:
    pixels: RGB = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise, as the camera was held
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _created(metadata: dict[str, str]) -> datetime | None:
    try:
        created = datetime.fromisoformat(metadata["creation_time"])
    except (KeyError, ValueError):
        return None
    created = created if created.tzinfo is not None else created.replace(tzinfo=UTC)
    return created if created > _EPOCH + timedelta(days=1) else None  # many cameras write their zero


def _find(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - may be absolute
    clips = [each for each in found if each.is_file()]
    if not clips:
        raise ConfigError(f"there is no clip {path}", key="path")
    return clips
