"""What is promised of files: whole or not at all, bounded, and inside their folder."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore.errors import ModelError, StorageError
from loopcore.files import DISK, Disk, UnzipLimits, inner_path, locked, read_bounded, unzip, write_atomic


class FailingDisk(Disk):
    """Fails at one step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def _check(self, step: str) -> None:
        if step == self.step:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, path, *, append=False):
        self._check("open")
        return super().open(path, append=append)

    def write(self, descriptor, parts):
        super().write(descriptor, [parts[0][:3]])
        self._check("write")
        super().write(descriptor, [parts[0][3:]])

    def sync(self, descriptor):
        self._check("sync")
        super().sync(descriptor)

    def rename(self, old, new):
        self._check("rename")
        super().rename(old, new)


def test_atomic_write_replaces_the_whole_content(tmp_path):
    path = tmp_path / "state.json"
    write_atomic(path, b"old content, longer")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["open", "write", "sync", "rename"])
def test_failed_write_leaves_the_old_content_and_no_draft(tmp_path, step):
    path = tmp_path / "state.json"
    write_atomic(path, b"old")
    with pytest.raises(StorageError, match=r"state\.json.*No space left"):
        write_atomic(path, b"new content", disk=FailingDisk(step))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_write_that_need_not_last_is_atomic_and_waits_for_no_disk(tmp_path):
    path = tmp_path / "picture.jpg"
    write_atomic(path, b"old", durable=False, disk=FailingDisk("sync"))
    assert path.read_bytes() == b"old"
    with pytest.raises(StorageError):
        write_atomic(path, b"new content", durable=False, disk=FailingDisk("write"))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.jpg"]


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path):
    path = tmp_path / "state"
    contents = [bytes([65 + n]) * 50_000 for n in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_write_goes_on_after_a_short_write(tmp_path, monkeypatch):
    whole = os.writev

    def short(descriptor, parts):
        return os.write(descriptor, bytes(parts[0])[:7])

    monkeypatch.setattr(os, "writev", short)
    descriptor = DISK.open(tmp_path / "file")
    DISK.write(descriptor, [b"0123456789" * 3, b"", b"abcdefghij"])
    DISK.close(descriptor)
    assert whole is not short
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3 + b"abcdefghij"


def test_write_that_makes_no_progress_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "writev", lambda *_: 0)
    descriptor = DISK.open(tmp_path / "file")
    with pytest.raises(OSError, match="nothing was written"):
        DISK.write(descriptor, [b"data"])
    DISK.close(descriptor)


def test_many_parts_are_written_in_order(tmp_path):
    parts = [str(n).encode() for n in range(3000)]
    descriptor = DISK.open(tmp_path / "file")
    DISK.write(descriptor, parts)
    DISK.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_bounded_read_takes_the_limit_and_no_byte_more(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(StorageError, match="larger than 4"):
        read_bounded(path, 4)
    with pytest.raises(StorageError, match="cannot read"):
        read_bounded(tmp_path / "missing", 5)


def test_bounded_read_refuses_what_is_no_file_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        read_bounded(tmp_path / "pipe", 5)
    with pytest.raises(StorageError):
        read_bounded(tmp_path, 5)


@pytest.mark.parametrize("name", ["", ".", "/", "/etc/x", "../x", "a/../../x", "a\\b", "C:x", "a\0b"])
def test_name_that_leads_out_of_a_package_is_refused(name):
    with pytest.raises(ModelError):
        inner_path(Path("folder"), name)


@given(st.text())
def test_inner_path_stays_inside_or_is_refused(name):
    folder = Path("/some/folder")
    try:
        path = inner_path(folder, name)
    except ModelError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)
    assert os.path.normpath(path) != str(folder)


def test_inner_path_goes_no_deeper_than_can_be_removed_again():
    assert inner_path(Path("folder"), "a/" * 31 + "x")
    with pytest.raises(ModelError):
        inner_path(Path("folder"), "a/" * 32 + "x")


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)
    return path


def test_zip_is_unpacked_with_its_folders(tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    unzip(archive(tmp_path / "x.zip", {"a.txt": b"1", "deep/er/b.txt": b"2"}), into)
    assert (into / "a.txt").read_bytes() == b"1"
    assert (into / "deep/er/b.txt").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out"])
def test_zip_member_outside_the_folder_is_refused(tmp_path, name):
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ModelError):
        unzip(archive(tmp_path / "x.zip", {name: b"1"}), into)
    assert not (tmp_path / "out").exists()


def test_zip_with_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="link"):
        unzip(tmp_path / "x.zip", tmp_path / "into")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("a", b"1")
        bundle.writestr("a", b"2")
    with pytest.raises(ModelError, match="twice"):
        unzip(tmp_path / "x.zip", tmp_path / "into")


@pytest.mark.parametrize(
    ("limits", "members"),
    [
        (UnzipLimits(max_members=1), {"a": b"1", "b": b"2"}),
        (UnzipLimits(max_bytes=10), {"a": b"123456", "b": b"123456"}),
        (UnzipLimits(), {"bomb": bytes(5_000_000)}),
    ],
    ids=["members", "bytes", "ratio"],
)
def test_zip_over_a_limit_is_refused_before_it_is_unpacked(tmp_path, limits, members):
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ModelError):
        unzip(archive(tmp_path / "x.zip", members), into, limits)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_zip_with_an_unusual_compression_is_refused(tmp_path, compression):
    with pytest.raises(ModelError, match="unusual"):
        unzip(archive(tmp_path / "x.zip", {"a": b"1" * 100}, compression), tmp_path)


def test_damaged_zip_is_a_model_error_wherever_it_is_damaged(tmp_path):
    whole = archive(tmp_path / "x.zip", {"a": os.urandom(20) * 20, "b": b"2" * 50}).read_bytes()
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0xFF
        (tmp_path / "y.zip").write_bytes(data)
        into = tmp_path / f"into-{place}"
        into.mkdir()
        try:
            unzip(tmp_path / "y.zip", into)
        except ModelError:
            continue
        found = [file for file in into.rglob("*") if file.is_file()]
        assert all(file.read_bytes() in (b"2" * 50, file.read_bytes()[:20] * 20) for file in found)


def test_lock_is_refused_to_others_and_falls_with_the_block(tmp_path):
    refused = pytest.raises(StorageError, match=f"in use by process {os.getpid()}")
    with locked(tmp_path / "lock"), refused, locked(tmp_path / "lock"):
        pytest.fail("two hold it")
    with locked(tmp_path / "lock"):
        pass


def test_lock_falls_with_its_process(tmp_path):
    holds = (
        "import sys, pathlib; from loopcore.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holds, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=f"in use by process {process.pid}"), locked(tmp_path / "lock"):
            pytest.fail("two hold it")
        process.kill()
    with locked(tmp_path / "lock"):
        pass
