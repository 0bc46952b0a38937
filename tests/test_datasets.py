"""Promises of `datasets`: a snapshot is whole or absent, the same content has the same id, and damage shows."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopcore.datasets import (
    Picture,
    Snapshot,
    SnapshotWriter,
    is_for_validation,
    read_snapshot,
    set_aside,
)
from loopcore.errors import DatasetError, StorageError
from loopcore.files import Disk
from loopcore.testing.pictures import make_jpeg, make_png
from loopcore.types import Box, Classification, Point, Segmentation

SHAPES = (
    Box(label="cat", x=1, y=2.5, width=3, height=4),
    Point(label="dog", x=0.1, y=7),
    Segmentation(label="cat", points=((0, 0), (5, 0), (0, 5))),
    Classification(label="dog"),
)


def picture(folder: Path, name: str, seed: int = 0, media: str = "image/jpeg", **changes: object) -> Picture:
    path = folder / f"{name}.bin"
    path.write_bytes(make_png(seed) if media == "image/png" else make_jpeg(seed))
    return msgspec.structs.replace(
        Picture(path=path, id=name, media=media, width=64, height=48, annotations=()), **changes
    )


def write(
    folder: Path, pictures: Sequence[Picture], labels: Sequence[str] = ("cat", "dog"), **given: object
) -> Snapshot:
    writer = SnapshotWriter(folder, labels, **given)
    writer.begin()
    for one in pictures:
        writer.add(one)
    return writer.finish()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [
        picture(tmp_path, "b", 1, set="val", tags=("night",)),
        picture(tmp_path, "a", 2, annotations=SHAPES),
        picture(tmp_path, "c", 3, media="image/png", set="test", annotations=None),
    ]


def test_snapshot_is_read_as_it_was_written(tmp_path: Path, pictures: list[Picture]) -> None:
    written = write(tmp_path / "s", pictures)
    assert read_snapshot(tmp_path / "s") == written
    assert [entry.id for entry in written.entries] == ["a", "b", "c"]
    assert written.entries[0].annotations == SHAPES
    assert written.entries[2].annotations is None
    assert written.file(written.entries[1]).read_bytes() == pictures[0].path.read_bytes()
    assert written.count() == {"train": 1, "val": 1, "test": 1}


def test_same_content_has_the_same_id_in_any_order_and_place(tmp_path: Path, pictures: list[Picture]) -> None:
    assert write(tmp_path / "s", pictures).id == write(tmp_path / "t", pictures[::-1], link=True).id


@pytest.mark.parametrize(
    "change",
    [{"set": "val"}, {"tags": ("new",)}, {"annotations": SHAPES[:3]}, {"id": "other"}, {"width": 65}],
    ids=lambda change: next(iter(change)),
)
def test_any_change_is_another_id(tmp_path: Path, pictures: list[Picture], change: dict[str, object]) -> None:
    changed = [pictures[0], msgspec.structs.replace(pictures[1], **change), pictures[2]]
    assert write(tmp_path / "s", pictures).id != write(tmp_path / "t", changed).id


def test_other_labels_and_other_bytes_are_another_id(tmp_path: Path, pictures: list[Picture]) -> None:
    first = write(tmp_path / "s", pictures).id
    assert write(tmp_path / "t", pictures, labels=("dog", "cat")).id != first
    pictures[0].path.write_bytes(make_jpeg(99))
    assert write(tmp_path / "u", pictures).id != first


def test_same_picture_under_two_ids_is_stored_once(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "s", [picture(tmp_path, "a", 1), picture(tmp_path, "b", 1)])
    assert len(list((tmp_path / "s" / "images").iterdir())) == 1
    assert read_snapshot(tmp_path / "s") == snapshot


def test_linked_pictures_take_no_room_and_copies_leave_the_original_alone(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    copied = write(tmp_path / "s", pictures)
    before = pictures[0].path.stat()
    linked = write(tmp_path / "t", pictures, link=True)
    assert before.st_nlink == 1
    assert before.st_mode & 0o200
    assert linked.file(linked.entries[1]).stat().st_ino == before.st_ino
    assert not linked.file(linked.entries[1]).stat().st_mode & 0o222
    assert copied.file(copied.entries[1]).stat().st_ino != before.st_ino


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_disk_that_cannot_link_gets_a_copy(tmp_path: Path, pictures: list[Picture], number: int) -> None:
    class Other(Disk):
        def link(self, old: Path, new: Path) -> None:
            raise OSError(number, "no link")

    assert read_snapshot(write(tmp_path / "s", pictures, link=True, disk=Other()).path).id


def test_id_twice_and_what_is_no_picture_are_refused(tmp_path: Path, pictures: list[Picture]) -> None:
    writer = SnapshotWriter(tmp_path / "s", ())
    writer.begin()
    writer.add(pictures[0])
    with pytest.raises(DatasetError, match="'b' comes twice"):
        writer.add(pictures[0])
    with pytest.raises(DatasetError, match=r"'a' does not fit .* at `\$.media`"):
        writer.add(msgspec.structs.replace(pictures[1], media="image/gif"))
    with pytest.raises(StorageError, match="No such file"):
        writer.add(msgspec.structs.replace(pictures[1], path=tmp_path / "absent"))
    (tmp_path / "link").symlink_to(pictures[1].path)
    with pytest.raises(StorageError):
        writer.add(msgspec.structs.replace(pictures[1], path=tmp_path / "link"))


def test_folder_of_this_name_is_not_replaced(tmp_path: Path, pictures: list[Picture]) -> None:
    write(tmp_path / "s", pictures)
    with pytest.raises(StorageError):
        write(tmp_path / "s", pictures[:1])
    assert len(read_snapshot(tmp_path / "s").entries) == 3


class Failing(Disk):
    """Refuses the step of this number, as a full disk does, or after it as a crash."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

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

    def link(self, old: Path, new: Path) -> None:
        self._step()
        super().link(old, new)

    def sync_folder(self, path: Path) -> None:
        self._step()
        super().sync_folder(path)


@pytest.mark.parametrize("link", [False, True])
def test_snapshot_appears_whole_or_not_at_all(tmp_path: Path, pictures: list[Picture], link: bool) -> None:
    seen = set()
    for at in range(30):
        folder = tmp_path / f"s{at}"
        try:
            write(folder, pictures, link=link, disk=Failing(at))
            seen.add("written")
        except StorageError:
            seen.add("whole" if folder.exists() else "absent")
        if folder.exists():
            assert len(read_snapshot(folder).entries) == 3
        else:
            assert len(write(folder, pictures, link=link).entries) == 3  # what the crash has left is in nobody's way
    assert seen == {"absent", "whole", "written"}


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "snapshot.json").read_text())
        change(manifest)
        (folder / "snapshot.json").write_text(json.dumps(manifest))

    return apply


def first_image(folder: Path) -> Path:
    return min((folder / "images").iterdir())


def flip(folder: Path) -> None:
    image = first_image(folder)
    image.chmod(0o644)
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)


def hide(folder: Path) -> None:
    first_image(folder).rename(folder / "elsewhere")
    first_image(folder).with_name("x").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "snapshot.json").unlink(),
        lambda folder: (folder / "snapshot.json").write_text("{"),
        lambda folder: (folder / "snapshot.json").write_text("[" * 100_000),
        lambda folder: (folder / "snapshot.json").write_bytes(b"\xff"),
        edited(lambda manifest: manifest.update(schema=2)),
        edited(lambda manifest: manifest["labels"].append("x")),
        edited(lambda manifest: manifest["entries"][0].update(set="val")),
        edited(lambda manifest: manifest["entries"][0].update(set="other")),
        edited(lambda manifest: manifest["entries"].pop()),
        flip,
        hide,
    ],
)
def test_damage_shows(tmp_path: Path, pictures: list[Picture], damage: Callable[[Path], None]) -> None:
    folder = write(tmp_path / "s", pictures).path
    damage(folder)
    with pytest.raises(DatasetError):
        read_snapshot(folder)


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/passwd", "images/../../outside.jpg", "images/x.jpg", ""])
def test_path_out_of_the_folder_is_refused_though_the_id_fits(
    tmp_path: Path, pictures: list[Picture], name: str
) -> None:
    folder = write(tmp_path / "s", pictures).path
    manifest = json.loads((folder / "snapshot.json").read_text())
    manifest["entries"][0]["file"] = name
    told = {key: manifest[key] for key in ("labels", "entries")}
    manifest["id"] = sha256(msgspec.json.encode(told, order="sorted")).hexdigest()
    (folder / "snapshot.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="not the file of a picture"):
        read_snapshot(folder, pictures=False)


def test_what_a_newer_program_adds_is_ignored_and_part_of_the_id(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = write(tmp_path / "s", pictures).path
    manifest = json.loads((folder / "snapshot.json").read_text())
    manifest["entries"][0]["weight"] = 0.5
    told = {key: manifest[key] for key in ("labels", "entries")}
    manifest["id"] = sha256(msgspec.json.encode(told, order="sorted")).hexdigest()
    (folder / "snapshot.json").write_text(json.dumps(manifest))
    assert read_snapshot(folder).id == manifest["id"]


def bare(names: Sequence[str], **changes: object) -> list[Picture]:
    return [
        Picture(path=Path(name), id=name, media="image/jpeg", width=1, height=1, **changes)  # type: ignore[arg-type]
        for name in names
    ]


def test_tenth_that_is_set_aside_is_that_of_the_loop_s_trainers() -> None:
    """First 8 hexadecimal digits of SHA-256 of the id, as a share of 16⁸, below 0.1 (protocol, section 9.1)."""
    assert [number for number in range(60) if is_for_validation(str(number))] == [9, 39, 49, 51, 55]  # by sha256sum(1)
    share = sum(is_for_validation(str(number)) for number in range(10_000)) / 10_000
    assert 0.09 < share < 0.11


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_sets_have_a_picture_and_the_choice_depends_on_ids_alone(names: set[str]) -> None:
    ordered = sorted(names)
    chosen = {one.id: one.set for one in set_aside(bare(ordered))}
    assert {"train", "val"} == set(chosen.values())
    assert chosen == {one.id: one.set for one in set_aside(bare(ordered[::-1]))}


def test_other_sets_are_left_alone() -> None:
    assert {one.set for one in set_aside([*bare(["a", "b"]), *bare(["c"], set="test")]) if one.id == "c"} == {"test"}


def test_one_picture_is_too_few_to_set_any_aside() -> None:
    with pytest.raises(DatasetError, match="at least 2 training pictures, there are 1"):
        set_aside(bare(["a"]))
