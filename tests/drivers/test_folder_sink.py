"""What the sink `folder` promises beyond what every sink promises."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from loopcore.drivers.folder_sink import FolderSink, FolderSinkOptions, Stored
from loopcore.errors import RetryableError
from loopcore.files import Disk
from loopcore.testing import SinkSuite, make_sample
from loopcore.types import Box, Delivered, Sample

pytestmark = pytest.mark.anyio


class TestFolderSink(SinkSuite):
    driver = FolderSink

    @pytest.fixture
    def table(self, tmp_path: Path) -> dict[str, str]:
        return {"path": str(tmp_path / "kept")}

    @pytest.fixture
    def held(self, tmp_path: Path) -> Callable[[], Sequence[str]]:
        return lambda: [path.stem for path in (tmp_path / "kept").rglob("*.json")]


def folder_sink(path: Path, disk: Disk | None = None) -> FolderSink:
    return FolderSink(FolderSinkOptions(path=path), disk=disk or Disk())


async def store(path: Path, *samples: Sample) -> list[Delivered]:
    async with folder_sink(path) as sink:
        receipts = await sink.send(samples)
    assert all(isinstance(receipt, Delivered) for receipt in receipts)
    return [receipt for receipt in receipts if isinstance(receipt, Delivered)]


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


async def test_picture_and_what_is_known_of_it_lie_side_by_side_by_camera_and_day(tmp_path: Path) -> None:
    tokyo = timezone(timedelta(hours=9))
    sample = make_sample(1, camera="gate", captured=datetime(2024, 5, 18, 1, tzinfo=tokyo))
    png = make_sample(2, camera=None, captured=None, media="image/png")
    receipts = await store(tmp_path, sample, png)
    assert files(tmp_path) == [
        f"_/undated/{png.info.id}.json",
        f"_/undated/{png.info.id}.png",
        f"gate/2024-05-17/{sample.info.id}.jpg",
        f"gate/2024-05-17/{sample.info.id}.json",
    ]
    assert receipts[0].remote_id == f"gate/2024-05-17/{sample.info.id}.jpg"
    folder = tmp_path / "gate" / "2024-05-17"
    stored = msgspec.json.decode((folder / f"{sample.info.id}.json").read_bytes(), type=Stored)
    assert (folder / stored.image).read_bytes() == sample.image
    assert stored.sample == sample.info


async def test_sample_kept_on_another_day_is_still_the_same(tmp_path: Path) -> None:
    sample = make_sample(1, captured=None)
    later = Sample(info=structs.replace(sample.info, kept=datetime(2030, 1, 1, tzinfo=UTC)), image=sample.image)
    await store(tmp_path, sample)
    assert [receipt.duplicate for receipt in await store(tmp_path, later)] == [True]
    assert len(files(tmp_path)) == 2


async def test_other_annotations_replace_the_old_ones(tmp_path: Path) -> None:
    sample = make_sample(1)
    truth = (Box(label="seal", x=1, y=2, width=3, height=4),)
    changed = Sample(info=structs.replace(sample.info, annotations=truth), image=sample.image)
    await store(tmp_path, sample)
    assert [receipt.duplicate for receipt in await store(tmp_path, changed)] == [True]
    (record,) = tmp_path.rglob("*.json")
    assert msgspec.json.decode(record.read_bytes(), type=Stored).sample.annotations == truth


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "/etc", "a/b", "a\\b", "nul\0", "_", "~", "Tür", "a" * 300, "a."]
)
async def test_camera_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "kept"
    await store(inside, make_sample(1, camera=name), make_sample(2, camera=None), make_sample(3, camera="plain"))
    assert list(tmp_path.iterdir()) == [inside]
    assert len(list(inside.iterdir())) == 3
    assert len(files(inside)) == 6
    assert all(len(Path(file).parts) == 3 for file in files(inside))


async def test_cameras_with_similar_names_have_folders_of_their_own(tmp_path: Path) -> None:
    await store(tmp_path, *(make_sample(1, camera=name) for name in ("a/b", "a\\b", "a-b", "a b")))
    assert len(list(tmp_path.iterdir())) == 4


class FailingDisk(Disk):
    """Lets so many steps pass, and fails each one after."""

    def __init__(self, steps: int, error: int = errno.ENOSPC) -> None:
        self.left = steps
        self.error = error

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, *, append: bool = False) -> int:
        self._step()
        return super().open(path, append=append)

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        self._step()
        super().write(descriptor, parts)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._step()
        super().mkdir(path, mode)

    def sync_folder(self, path: Path) -> None:
        self._step()
        super().sync_folder(path)


async def test_full_disk_at_any_step_means_try_again_and_leaves_nothing_half(tmp_path: Path) -> None:
    sample = make_sample(1)
    for steps in range(20):
        path = tmp_path / str(steps)
        async with folder_sink(path, FailingDisk(steps)) as sink:
            try:
                await sink.send([sample])
            except RetryableError as exc:
                assert "No space left" in str(exc)  # noqa: PT017
            else:
                break
        for record in path.rglob("*.json"):
            stored = msgspec.json.decode(record.read_bytes(), type=Stored)
            assert (record.parent / stored.image).read_bytes() == sample.image
        await store(path, sample)
        assert len(files(path)) == 2
    else:
        pytest.fail("it never came through")
    assert steps == 14


async def test_damaged_leftover_is_written_anew(tmp_path: Path) -> None:
    sample = make_sample(1)
    await store(tmp_path, sample)
    (image,) = tmp_path.rglob("*.jpg")
    image.write_bytes(b"torn")
    assert [receipt.duplicate for receipt in await store(tmp_path, sample)] == [False]
    assert image.read_bytes() == sample.image


@pytest.mark.parametrize("torn", [b"", b'{"version": 1, "image": "\xff"}', b'{"sample": ' + b"[" * 100_000])
async def test_damaged_record_is_written_anew(tmp_path: Path, torn: bytes) -> None:
    sample = make_sample(1)
    await store(tmp_path, sample)
    (record,) = tmp_path.rglob("*.json")
    whole = record.read_bytes()
    record.write_bytes(torn)
    await store(tmp_path, sample)
    assert record.read_bytes() == whole


async def test_old_drafts_of_a_killed_process_are_removed_and_young_ones_left(tmp_path: Path) -> None:
    await store(tmp_path, make_sample(1))
    (image,) = tmp_path.rglob("*.jpg")
    old, young = image.with_name(".a.jpg.1-1.tmp"), image.with_name(".b.jpg.1-2.tmp")
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (0, 0))
    await store(tmp_path, make_sample(1))
    assert (old.exists(), young.exists()) == (False, True)


async def test_folder_that_cannot_be_made_is_tried_again_later(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    sink = folder_sink(tmp_path / "file" / "below")
    with pytest.raises(RetryableError, match="below"):
        await sink.__aenter__()


async def test_check_finds_a_folder_that_is_gone(tmp_path: Path) -> None:
    async with folder_sink(tmp_path / "kept") as sink:
        assert list(await sink.check()) == []
        (tmp_path / "kept").rmdir()
        (problem,) = await sink.check()
    assert str(tmp_path / "kept") in problem.message
