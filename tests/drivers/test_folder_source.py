"""What the source `folder` promises: each whole picture once, in order, and never again after a restart."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from PIL import Image

from loopcore.drivers.folder_source import FolderSource, exif_time
from loopcore.drivers.folder_watch import FolderWatch
from loopcore.drivers.ledger import Ledger
from loopcore.errors import BackendError, BusyError, ConfigError, FrameError, StorageError
from loopcore.options import decode
from loopcore.testing import RecordingService, SourceSuite, make_jpeg
from loopcore.testing.pictures import make_png

pytestmark = pytest.mark.anyio
OLD = 1_700_000_000


def put(path: Path, data: bytes | None = None, *, seed: int = 1, rests: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_jpeg(seed) if data is None else data)
    if rests:
        os.utime(path, (OLD, OLD))
    return path


def make(path: Path, **table: Any) -> FolderSource:
    return FolderSource(decode({"path": str(path), "every": "10 ms", **table}, FolderSource.Options))


async def run_once(path: Path, service: RecordingService | None = None, **table: Any) -> RecordingService:
    service = service or RecordingService()
    with anyio.fail_after(10):
        await make(path, watch=False, **table).run(service, task_status=anyio.TASK_STATUS_IGNORED)
    return service


@asynccontextmanager
async def watching(path: Path, **table: Any) -> AsyncGenerator[RecordingService]:
    service = RecordingService()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(path, **table).run, service)
            yield service
            tasks.cancel_scope.cancel()


def names(service: RecordingService) -> list[str]:
    return [Path(frame.source or "").name for frame in service.taken]


class TestFolderSourceSuite(SourceSuite):
    driver = FolderSource
    frames = 3

    @pytest.fixture
    def table(self, tmp_path: Path) -> dict[str, Any]:
        for n in range(3):
            put(tmp_path / f"{n}.jpg", seed=n)
        return {"path": str(tmp_path), "watch": False}

    @pytest.fixture
    def missing(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "nowhere")}


async def test_pictures_come_in_order_of_their_paths_as_their_files_are(tmp_path: Path) -> None:
    put(tmp_path / "b.JPG", seed=2)
    put(tmp_path / "a.png", make_png(1))
    put(tmp_path / "c" / "d" / "x.jpeg", seed=3)
    service = await run_once(tmp_path)
    assert [(frame.source, frame.image.media) for frame in service.taken] == [
        (str(tmp_path / "a.png"), "image/png"),
        (str(tmp_path / "b.JPG"), "image/jpeg"),
        (str(tmp_path / "c" / "d" / "x.jpeg"), "image/jpeg"),
    ]
    assert service.taken[1].image.data == make_jpeg(2)


async def test_hidden_unfinished_and_foreign_files_and_links_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "yes.jpg")
    for name in (".hidden.jpg", "half.jpg.part", "draft.jpg~", "note.txt", ".hidden/in.jpg"):
        put(tmp_path / name)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "yes.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.jpg").mkdir()
    assert names(await run_once(tmp_path)) == ["yes.jpg"]
    assert names(await run_once(tmp_path, patterns=["*"], state=str(tmp_path / ".other"))) == ["note.txt", "yes.jpg"]


async def test_folders_below_are_left_out_on_demand(tmp_path: Path) -> None:
    put(tmp_path / "here.jpg")
    put(tmp_path / "below" / "there.jpg")
    assert names(await run_once(tmp_path, recursive=False)) == ["here.jpg"]


async def test_first_folder_names_the_camera(tmp_path: Path) -> None:
    put(tmp_path / "gate" / "2026" / "a.jpg")
    put(tmp_path / "z.jpg")
    service = await run_once(tmp_path, camera="other", camera_from="folder", tags=["zoo"])
    assert [(frame.camera, frame.tags) for frame in service.taken] == [("gate", ("zoo",)), ("other", ("zoo",))]


async def test_picture_that_comes_later_is_handed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    async with watching(tmp_path) as service:
        await service.wait_for(1)
        put(tmp_path / "new" / "b.jpg", seed=2)
        await service.wait_for(2)
        put(tmp_path / "c.jpg", seed=3)
        await service.wait_for(3)
    assert names(service) == ["a.jpg", "b.jpg", "c.jpg"]


async def test_file_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    whole = make_jpeg(1)
    growing = put(tmp_path / "a.jpg", whole[:100], rests=False)
    put(tmp_path / "b.jpg", seed=2)
    async with watching(tmp_path, settle="1 h") as service:
        await service.wait_for(1)
        assert names(service) == ["b.jpg"]
        put(growing, whole)
        await service.wait_for(2)
    assert names(service) == ["b.jpg", "a.jpg"]
    assert service.taken[1].image.data == whole


async def test_one_pass_waits_for_files_that_are_being_written(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", rests=False)
    assert names(await run_once(tmp_path, settle="100 ms")) == ["a.jpg"]


async def test_nothing_comes_again_after_a_restart(tmp_path: Path) -> None:
    for n in range(3):
        put(tmp_path / f"{n}.jpg", seed=n)
    assert len((await run_once(tmp_path)).taken) == 3
    put(tmp_path / "3.jpg", seed=3)
    assert names(await run_once(tmp_path)) == ["3.jpg"]
    assert names(await run_once(tmp_path)) == []


async def test_changed_file_is_another_picture(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", seed=1)
    await run_once(tmp_path)
    os.utime(put(tmp_path / "a.jpg", seed=2), (OLD + 1, OLD + 1))
    assert names(await run_once(tmp_path)) == ["a.jpg"]


async def test_picture_that_was_handed_over_but_not_answered_comes_again(tmp_path: Path) -> None:
    """The memory is written after the sample is durable, so a crash between them loses nothing."""
    put(tmp_path / "a.jpg")
    service = RecordingService()
    service.close()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(make(tmp_path).run, service)
            await service.wait_for(1)
            tasks.cancel_scope.cancel()
    again = await run_once(tmp_path)
    assert [frame.id for frame in again.taken] == [service.handed[0].id]


async def test_bad_pictures_are_counted_logged_and_left_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abcd":
        put(tmp_path / f"{name}.jpg", seed=ord(name))
    put(tmp_path / "e.jpg", b"\xff\xd8" + bytes(5000))
    service = RecordingService([FrameError("damaged"), BackendError("no luck")])
    source = make(tmp_path, watch=False, after="delete", max_bytes=4000)
    with anyio.fail_after(10):
        await source.run(service, task_status=anyio.TASK_STATUS_IGNORED)
    assert names(service) == ["c.jpg", "d.jpg"]
    assert (source.handed, source.bad) == (2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "b.jpg", "e.jpg"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


async def test_full_outbox_makes_the_source_wait_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.jpg", seed=1)
    put(tmp_path / "b.jpg", seed=2)
    service = await run_once(tmp_path, RecordingService([StorageError("full"), BusyError("busy", retry_after_s=0)]))
    assert [Path(frame.source or "").name for frame in service.handed] == ["a.jpg", "a.jpg", "a.jpg", "b.jpg"]
    assert names(service) == ["a.jpg", "b.jpg"]
    assert len(caplog.records) == 1


async def test_files_are_moved_when_answered_and_none_is_overwritten(tmp_path: Path) -> None:
    inbox, done = tmp_path / "in", tmp_path / "in" / "done"
    put(inbox / "gate" / "a.jpg", seed=1)
    put(done / "gate" / "a.jpg", b"an older one")
    service = await run_once(inbox, after="move", move_to=str(done))
    assert names(service) == ["a.jpg"]
    assert not (inbox / "gate" / "a.jpg").exists()
    older, newer = sorted((done / "gate").iterdir(), key=lambda path: len(path.name))
    assert older.read_bytes() == b"an older one"
    assert newer.read_bytes() == make_jpeg(1)
    assert not list(inbox.glob(".loopcore*"))


async def test_folder_that_cannot_keep_the_state_asks_for_another_place(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="state: name a file"):
        await run_once(tmp_path, state=str(tmp_path / "nowhere" / "state"))
    assert names(await run_once(tmp_path, state=str(tmp_path / "state"))) == ["a.jpg"]


def with_exif(taken: str, offset: str | None, fraction: str | None = None) -> bytes:
    exif = Image.Exif()
    notes = exif.get_ifd(0x8769)
    notes[0x9003] = taken
    if offset is not None:
        notes[0x9011] = offset
    if fraction is not None:
        notes[0x9291] = fraction
    file = BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (with_exif("2026:05:04 12:30:00", "+02:00"), datetime(2026, 5, 4, 10, 30, tzinfo=UTC)),
        (with_exif("2026:05:04 12:30:00", "+00:00", "25"), datetime(2026, 5, 4, 12, 30, 0, 250_000, tzinfo=UTC)),
        (with_exif("2026:05:04 12:30:00", None), None),
        (with_exif("0000:00:00 00:00:00", "+00:00"), None),
        (with_exif("2026:05:04 12:30:00", "+02:00")[:60], None),
        (make_jpeg(1), None),
        (b"", None),
    ],
)
def test_time_of_the_picture_is_read_where_it_is_certain(data: bytes, expected: datetime | None) -> None:
    assert exif_time(data) == expected


async def test_capture_time_comes_from_where_the_options_say(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", with_exif("2026:05:04 12:30:00", "+00:00"))
    expected = {
        "exif": datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
        "mtime": datetime.fromtimestamp(OLD, UTC),
        "none": None,
    }
    for captured, moment in expected.items():
        service = await run_once(tmp_path, captured=captured, state=str(tmp_path / f".{captured}"))
        assert [frame.captured for frame in service.taken] == [moment]


def test_still_folder_is_not_listed_again_until_a_whole_look(tmp_path: Path) -> None:
    now = [0.0]
    put(tmp_path / "a.jpg")
    os.utime(tmp_path, (OLD, OLD))
    watch = FolderWatch(tmp_path, ["*.jpg"], recursive=True, settle_s=0, clock=lambda: now[0])
    assert [found.path.name for found in watch.look(()).found] == ["a.jpg"]
    os.utime(put(tmp_path / "a.jpg", b"overwritten in place"), (OLD + 5, OLD + 5))
    assert watch.look(()).found == []
    now[0] = 60
    look = watch.look(())
    assert [found.size for found in look.found] == [20]
    assert look.present == {look.found[0].mark}


def test_file_with_a_time_in_the_future_rests_when_it_stays_the_same(tmp_path: Path) -> None:
    now = [0.0]
    ahead = time.time() + 86_400
    os.utime(put(tmp_path / "a.jpg"), (ahead, ahead))
    watch = FolderWatch(tmp_path, ["*.jpg"], recursive=True, settle_s=2, clock=lambda: now[0])
    assert watch.look(()).waiting == 1
    now[0] = 1.9
    assert watch.look(()).found == []
    now[0] = 2
    assert len(watch.look(()).found) == 1


def test_ledger_survives_a_torn_line_and_forgets_what_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    marks = [f"{n:032x}" for n in range(2000)]
    path.write_text("\n".join(marks) + "\n" + "torn" * 5)
    ledger = Ledger(path)
    ledger.open()
    ledger.add("f" * 32)
    again = Ledger(path)
    again.open()
    assert len(again) == 2001
    assert "f" * 32 in again
    again.prune({marks[7]})
    assert [mark for mark in (*marks, "f" * 32) if mark in again] == [marks[7]]
    assert path.read_text() == marks[7] + "\n"


@pytest.mark.parametrize("table", [{"after": "move"}, {"move_to": "x"}, {"every": 0}, {"patterns": []}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, table: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        make(tmp_path, **table)
