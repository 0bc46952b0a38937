"""A bundle arrives whole, or says what is missing; nothing in a hostile one is believed."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcore.collect.bundle import Choice, Damage, Head, Member, Reader, Writer, admissible
from loopcore.errors import StorageError
from loopcore.files import Disk
from loopcore.testing import make_jpeg
from loopcore.types import Box, Prediction, Sample, SampleInfo, image_id, sample_id

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
HEAD = Head(id="0" * 32, origin="here", choice=Choice())
MANY = 1 << 30


def make_sample(number: int, image: bytes | None = None, **known: Any) -> Sample:
    data = make_jpeg(number, 32, 24) if image is None else image
    digest = image_id(data)
    facts: dict[str, Any] = {
        "id": sample_id(digest, "gate", NOON),
        "image_id": digest,
        "media": "image/jpeg",
        "image_bytes": len(data),
        "width": 32,
        "height": 24,
        "kept": NOON,
        "camera": "gate",
        "captured": NOON,
        "prediction": Prediction(detections=(Box(label="penguin", x=1, y=2, width=3, height=4),)),
    }
    return Sample(info=SampleInfo(**(facts | known)), image=data)


SAMPLES = [make_sample(number) for number in range(4)]


def write(path: Path, samples: Sequence[Sample] = SAMPLES, head: Head = HEAD, **options: Any) -> Path:
    writer = Writer(path, head, **options)
    try:
        for seq, one in enumerate(samples, 1):
            if seq > writer.after:
                writer.add(seq, 0, one)
        writer.finish()
    finally:
        writer.close()
    return path


def read(path: Path) -> tuple[list[Sample], list[Damage], bool]:
    """Samples, damage, and whether it is whole."""
    with Reader(path) as reader:
        pieces = []
        while some := reader.pieces(MANY):
            pieces += some
    samples = [piece.sample for piece in pieces if isinstance(piece, Member)]
    return samples, [piece for piece in pieces if isinstance(piece, Damage)], reader.whole


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four samples."""
    return write(tmp_path_factory.mktemp("good") / "good.loopcore")


def test_samples_come_out_as_they_went_in(tmp_path: Path) -> None:
    assert read(write(tmp_path / "b")) == (SAMPLES, [], True)
    assert names(tmp_path) == {"b"}


def test_any_tar_lists_it_and_sha256sum_checks_what_was_unpacked(tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", write(tmp_path / "b"), "-C", tmp_path], check=True)
    hashed = [name for name in names(tmp_path) if len(name) > 60]
    assert len(hashed) == 2 * len(SAMPLES)
    sums = "".join(f"{name.partition('.')[0]}  {name}\n" for name in hashed)
    subprocess.run(["sha256sum", "--check", "--quiet"], input=sums.encode(), cwd=tmp_path, check=True)
    assert names(tmp_path) - set(hashed) == {"b", "bundle.json", "end.json"}


def test_bundle_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "b", HEAD)
    writer.add(1, 0, SAMPLES[0])
    writer.close()
    assert names(tmp_path) == {"b.part"}
    assert read(tmp_path / "b.part") == (SAMPLES[:1], [], False)


def test_bundle_is_never_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    with pytest.raises(StorageError, match="there already"):
        Writer(path, HEAD)


def test_part_of_another_export_is_not_gone_on_with(tmp_path: Path) -> None:
    Writer(tmp_path / "b", HEAD).close()
    for other in (
        Head(id="1" * 32, origin="there", choice=Choice()),
        Head(id="1" * 32, origin="here", choice=Choice(sink="a")),
    ):
        with pytest.raises(StorageError, match="part of another export"):
            Writer(tmp_path / "b", other)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 12_000), zeros=st.sampled_from([0, 1, 700, 5000]))
def test_export_goes_on_wherever_it_was_cut(good: Path, cut: int, zeros: int) -> None:
    """As after a power cut: a prefix, its last bytes perhaps zeros; and the result is the same to the byte."""
    whole = good.read_bytes()
    cut %= len(whole)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        path.with_name("b.part").write_bytes(whole[:cut] + bytes(zeros if cut > 1024 else min(zeros, 700)))
        assert write(path).read_bytes() == whole


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 12_000), flip=st.integers(1, 255))
def test_flipped_bits_cost_the_sample_they_hit_and_are_told(good: Path, at: int, flip: int) -> None:
    damaged = bytearray(good.read_bytes())
    damaged[1024 + at % (len(damaged) - 2048)] ^= flip  # behind the head, before the two empty blocks
    with TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        path.write_bytes(damaged)
        samples, damage, is_whole = read(path)
    assert len(samples) >= len(SAMPLES) - 1
    assert all(sample in SAMPLES for sample in samples)
    assert len(damage) == len(SAMPLES) - len(samples)
    assert not is_whole or samples == SAMPLES  # no hash covers the padding


def test_truncated_bundle_is_not_taken_for_whole(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    for cut in range(1024, len(whole) - 1536, 97):  # up to the last words
        (tmp_path / "b").write_bytes(whole[:cut])
        samples, _, is_whole = read(tmp_path / "b")
        assert samples == SAMPLES[: len(samples)]
        assert not is_whole


def test_sample_cut_out_of_the_middle_is_missed(good: Path, tmp_path: Path) -> None:
    with Reader(write(tmp_path / "a")) as reader:
        marks = [reader.mark.offset]
        while reader.pieces(1):
            marks.append(reader.mark.offset)
    whole = good.read_bytes()
    (tmp_path / "b").write_bytes(whole[: marks[1]] + whole[marks[2] :])
    samples, damage, is_whole = read(tmp_path / "b")
    assert (samples, damage, is_whole) == ([SAMPLES[0], *SAMPLES[2:]], [], False)


def test_reader_goes_on_where_another_was(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    with Reader(path) as first:
        first.pieces(1)
        mark = first.mark
    with Reader(path) as second:
        second.go_on(mark)
        found = second.pieces(MANY)
        second.pieces(MANY)
        assert [piece.sample for piece in found if isinstance(piece, Member)] == SAMPLES[1:]
        assert second.whole


class FullDisk(Disk):
    """Has room for so many writes."""

    def __init__(self, writes: int) -> None:
        self.writes = writes

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        if not self.writes:
            super().write(descriptor, [b"".join(parts)[:700]])
            raise OSError(errno.ENOSPC, "No space left on device")
        self.writes -= 1
        super().write(descriptor, parts)


def test_full_stick_is_told_and_the_export_goes_on_later(tmp_path: Path, good: Path) -> None:
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path / "b", disk=FullDisk(3))
    assert write(tmp_path / "b").read_bytes() == good.read_bytes()


# Hostile bundles


def hostile(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar that begins as a bundle does."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in ((tarfile.TarInfo("bundle.json"), msgspec.json.encode(HEAD)), *members):
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def named(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "member",
    [
        named("../../escaped"),
        named("/tmp/escaped"),
        named(f"../{'0' * 64}.json"),
        named("a" * 64 + ".json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        named("a" * 64 + ".jpg", type=tarfile.LNKTYPE, linkname="bundle.json"),
        named("a" * 64 + ".json", type=tarfile.FIFOTYPE),
        named("folder", type=tarfile.DIRTYPE),
    ],
)
def test_foreign_members_are_damage_and_touch_nothing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    (tmp_path / "in").mkdir()
    samples, damage, is_whole = read(hostile(tmp_path / "in" / "b", (member, b"x")))
    assert (samples, len(damage), is_whole) == ([], 1, False)
    assert names(tmp_path) == {"in"}
    assert names(tmp_path / "in") == {"b"}


@pytest.mark.parametrize("size", [10_000_000_0, 8 * 1024**3 - 1])
def test_lying_sizes_cost_no_memory(tmp_path: Path, size: int) -> None:
    path = hostile(tmp_path / "b")
    block = named("a" * 64 + ".json", size=size).tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:1024] + block)
    tracemalloc.start()
    try:
        samples, damage, is_whole = read(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert (samples, len(damage), is_whole) == ([], 1, False)


@pytest.mark.parametrize(
    "meta",
    [
        b"{}",
        b"[" * 100_000,
        b'{"seq": 1e400}',
        msgspec.json.encode({"seq": -1, "revision": 0, "image": "x.jpg", "sample": SAMPLES[0].info}),
        msgspec.json.encode({"seq": 1, "revision": 0, "image": "../x.jpg", "sample": SAMPLES[0].info}),
        msgspec.json.encode(
            {"seq": 1, "revision": 0, "image": f"{'0' * 64}.jpg", "sample": make_sample(1, id="0" * 64).info}
        ),
        msgspec.json.encode(
            {
                "seq": 1,
                "revision": 0,
                "image": f"{SAMPLES[0].info.image_id}.jpg",
                "sample": make_sample(0, kept=datetime(2026, 5, 4)).info,  # noqa: DTZ001 - without an offset
            }
        ),
    ],
)
def test_json_that_lies_is_damage(tmp_path: Path, meta: bytes) -> None:
    name = f"{image_id(meta)}.json"
    image = SAMPLES[0].image
    path = hostile(tmp_path / "b", (named(name), meta), (named(f"{image_id(image)}.jpg"), image))
    samples, damage, _ = read(path)
    assert samples == []
    assert damage


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"x" * 5000)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("bundle.json", msgspec.json.encode(HEAD))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("empty", "text", "zip", "pipe", "folder", "absent"):
        with pytest.raises(StorageError):
            Reader(tmp_path / name)


def test_only_real_pictures_that_are_what_they_say_are_admitted() -> None:
    assert admissible(SAMPLES[0]) is None
    assert admissible(make_sample(1, image=b"no picture"))
    assert "32 × 24" in str(admissible(make_sample(1, width=33)))
    assert admissible(make_sample(1, media="image/png"))


def test_choice_goes_by_time_and_reason() -> None:
    info = make_sample(1, reasons=("uncertain",)).info
    later = datetime(2026, 5, 5, tzinfo=UTC)
    assert Choice(since=NOON, until=later, reasons=("uncertain", "rare")).wants(info)
    assert not Choice(since=later).wants(info)
    assert not Choice(until=NOON).wants(info)
    assert not Choice(reasons=("rare",)).wants(info)
