"""Models are what they were promised to be, and the store knows after any crash which one serves."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import zipfile
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from msgspec import structs

from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import IntegrityError, ModelError, StorageError
from loopcore.files import Disk
from loopcore.package import open_model, write_package
from loopcore.types import ModelInfo


def make_package(folder: Path, version: str = "1", content: bytes = b"weights", **fields: Any) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "sub" / "more.bin").write_bytes(b"more")
    write_package(folder, ModelInfo(name="gate", version=version, format="onnx", labels=("cat", "dog"), **fields))
    return folder


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as bundle:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                bundle.write(path, prefix + path.relative_to(folder).as_posix())
    return target


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package", spec={"size": 416}, extra={"note": "x"})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_a_package_is_opened_where_it_lies(package, tmp_path):
    model = open_model(package, tmp_path / "unused")
    assert (model.info.name, model.info.version, model.info.labels) == ("gate", "1", ("cat", "dog"))
    assert model.info.spec == {"size": 416}
    assert [file.name for file in model.info.files] == ["model.onnx", "sub/more.bin"]
    assert model.path == package
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("prefix", ["", "gate-1/"])
def test_a_zip_is_the_same_model_as_its_folder(package, tmp_path, prefix):
    model = open_model(zipped(package, tmp_path / "gate.zip", prefix), tmp_path / "unpacked")
    assert model.info == open_model(package, tmp_path).info
    assert (model.path / "sub" / "more.bin").read_bytes() == b"more"


def test_a_bare_onnx_takes_its_labels_from_the_file_beside_it(tmp_path):
    (tmp_path / "My model (1).onnx").write_bytes(b"graph")
    (tmp_path / "My model (1).onnx.data").write_bytes(b"tensors")
    (tmp_path / "labels.txt").write_text("cat\n\ndog \r\n")
    model = open_model(tmp_path / "My model (1).onnx", tmp_path / "unused")
    assert model.info.labels == ("cat", "dog")
    assert model.info.name == "My_model__1_"
    assert model.info.format == "onnx"
    assert [file.name for file in model.info.files] == ["My model (1).onnx", "My model (1).onnx.data"]


def test_the_id_depends_on_names_and_content_of_the_files_and_on_nothing_else(tmp_path):
    first, again, other = (
        open_model(make_package(tmp_path / name, version, content), tmp_path).info.id
        for name, version, content in (("a", "1", b"weights"), ("b", "2", b"weights"), ("c", "1", b"others"))
    )
    assert first == again
    assert first != other


def test_a_file_that_is_not_the_promised_one_is_refused(package, tmp_path):
    (package / "model.onnx").write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match="hash"):
        open_model(package, tmp_path)
    (package / "model.onnx").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="size"):
        open_model(package, tmp_path)
    (package / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        open_model(package, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("name", "../x"),
        ("version", "a/b"),
        ("version", ""),
        ("format", ".."),
        ("labels", "cat"),
        ("files", []),
        ("files", [{"name": "../secret", "size": 6, "sha256": "0" * 64}]),
        ("files", [{"name": "/etc/passwd", "size": 6, "sha256": "0" * 64}]),
        ("files", [{"name": "model.json", "size": 6, "sha256": "0" * 64}]),
        ("files", [{"name": "model.onnx", "size": -1, "sha256": "0" * 64}]),
        ("files", [{"name": "model.onnx", "size": 7, "sha256": "../../x"}]),
    ],
)
def test_a_wrong_manifest_is_refused(package, tmp_path, key, value):
    manifest = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(ModelError):
        open_model(package, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema": 1}'])
def test_a_damaged_manifest_is_refused(package, tmp_path, text):
    (package / "model.json").write_text(text)
    with pytest.raises(ModelError):
        open_model(package, tmp_path)


def test_keys_that_this_version_does_not_know_are_ignored(package, tmp_path):
    manifest = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps({**manifest, "signature": "…"}))
    assert open_model(package, tmp_path).info.name == "gate"


def test_links_in_a_package_are_refused(package, tmp_path):
    (tmp_path / "secret").write_bytes(b"weights")
    (package / "model.onnx").unlink()
    (package / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="link"):
        open_model(package, tmp_path)


def test_a_pipe_in_a_package_is_refused_without_waiting(package, tmp_path):
    (package / "model.onnx").unlink()
    os.mkfifo(package / "model.onnx")
    with pytest.raises(ModelError, match="regular"):
        open_model(package, tmp_path)


@pytest.mark.parametrize("name", ["absent", "model.txt", "empty"])
def test_what_is_no_model_is_refused(tmp_path, name):
    (tmp_path / "model.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        open_model(tmp_path / name, tmp_path / "unused")


def test_a_zip_that_leads_outside_changes_nothing(tmp_path, store):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bundle:
        bundle.writestr("../../evil", "x")
    with pytest.raises(ModelError):
        store.stage(tmp_path / "bad.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "models"]
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "zip", "onnx"])
def test_a_staged_model_stays_when_its_source_is_gone(package, tmp_path, store, form):
    source = {"folder": package, "zip": tmp_path / "gate.zip", "onnx": package / "model.onnx"}[form]
    zipped(package, tmp_path / "gate.zip")
    expected = open_model(source, tmp_path / "unpacked").info
    staged = store.stage(source)
    (package / "model.onnx").unlink()
    assert staged.info == expected
    assert store.get(expected.version) == staged
    assert staged.path.parent == store.folder
    assert len(staged.path.name) == 64


def test_staging_the_same_twice_gives_one_model_and_another_spec_another(tmp_path, store):
    first = store.stage(make_package(tmp_path / "a", spec={"confidence": 0.5}))
    assert store.stage(tmp_path / "a") == first
    other = store.stage(make_package(tmp_path / "b", spec={"confidence": 0.6}))
    assert other.info.id == first.info.id
    assert other.path != first.path
    assert {model.path for model in store.list()} == {first.path, other.path}


def test_a_damaged_model_in_the_store_is_found_out_and_replaced_by_staging_it_again(package, store):
    staged = store.stage(package)
    store.activate(staged)
    (staged.path / "model.onnx").write_bytes(b"weightz")
    with pytest.raises(IntegrityError):
        store.active()
    with pytest.raises(IntegrityError):
        store.get("1")
    assert store.stage(package) == staged
    assert store.active() == staged


def test_the_active_model_and_the_one_before_are_remembered(tmp_path, store):
    one, two = (store.stage(make_package(tmp_path / version, version)) for version in "12")
    assert store.active() is None
    assert store.previous() is None
    store.activate(one)
    assert (store.active(), store.previous()) == (one, None)
    store.activate(two)
    store.activate(two)
    again = ModelStore(store.folder)
    assert (again.active(), again.previous()) == (two, one)
    back = again.previous()
    assert back is not None
    again.activate(back)
    assert (store.active(), store.previous()) == (one, two)


def test_only_a_staged_model_can_be_activated(package, tmp_path, store):
    with pytest.raises(ModelError, match="staged"):
        store.activate(open_model(package, tmp_path))


def test_a_version_that_is_not_here_or_not_in_a_format_that_is_wanted_is_none(package, store):
    store.stage(package)
    assert store.get("9") is None
    assert store.get("1", ["eim"]) is None
    assert store.get("1", ["eim", "onnx"]) is not None


def test_a_model_can_be_called_by_its_id_or_its_beginning(package, store):
    staged = store.stage(package)
    assert store.get(staged.info.id) == store.get(staged.info.id[:8]) == staged
    assert store.get(staged.info.id[:7]) is None


def test_two_models_of_one_version_must_be_told_apart(tmp_path, store):
    one, two = (store.stage(make_package(tmp_path / name, "1", content=name.encode())) for name in ("a", "b"))
    with pytest.raises(ModelError, match=f"{one.info.id}.*say the id") as caught:
        store.get("1")
    assert two.info.id in str(caught.value)
    assert store.get(two.info.id[:12]) == two


def test_a_platform_s_id_calls_a_model_too(tmp_path, store):
    staged = store.stage(make_package(tmp_path / "a", extra={"acme": {"id": "6f0e-17aa-90"}}))
    assert store.get("6f0e-17aa-90") == staged


def test_a_model_of_a_platform_is_found_in_the_best_format_that_is_here(tmp_path, store):
    wanted = ModelInfo(name="other", version="7", format="", extra={"acme": {"id": "x"}})
    for name in ("onnx", "onnx_int8"):
        folder = make_package(tmp_path / name, extra={"acme": {"id": "x"}})
        write_package(folder, structs.replace(open_model(folder, tmp_path).info, format=name))
        store.stage(folder)
    found = [store.find(wanted, formats) for formats in (["onnx_int8", "onnx"], ["onnx"], ["eim"])]
    assert [model and model.info.format for model in found] == ["onnx_int8", "onnx", None]


def test_a_damaged_model_is_not_found(package, store):
    staged = store.stage(package)
    (staged.path / "model.onnx").write_bytes(b"weightz")
    assert store.find(staged.info, ["onnx"]) is None


def test_what_was_staged_remembers_what_it_was_made_from(package, store):
    source = ModelInfo(name="gate", version="1", format="pt", id="a" * 64, extra={"acme": {"id": "x"}})
    staged = store.stage(package, [source])
    assert staged.info.extra == {"note": "x", "acme": {"id": "x"}, "origin": ["a" * 64]}
    assert store.list() == (staged,)
    assert store.find(source, ["onnx"]) == staged


def test_what_has_arrived_in_part_is_there_at_the_next_attempt_until_it_is_cleared(store):
    folder = store.arrival("ab")
    (folder / "part").write_text("x")
    again = ModelStore(store.folder)
    assert again.arrival("ab") == folder
    assert (folder / "part").exists()
    ModelStore(store.folder).prune()
    assert (folder / "part").exists()
    again.clear(folder)
    assert not folder.exists()


def test_parts_that_nobody_goes_on_with_can_be_given_up(store):
    store.give_up()
    folder = store.arrival("ab")
    store.give_up()
    assert not folder.exists()


def test_the_part_of_another_model_makes_room(store):
    (store.arrival("ab") / "part").write_text("x")
    other = store.arrival("cd")
    assert [path for path in store.folder.iterdir() if path.is_dir()] == [other]


def test_a_damaged_record_is_reported_and_mended_by_the_next_activation(package, store):
    staged = store.stage(package)
    (store.folder / "active.json").write_text('{"active": "../../x"}')
    with pytest.raises(ModelError):
        store.active()
    with pytest.raises(ModelError):
        store.prune()
    store.activate(staged)
    assert store.active() == staged


def test_pruning_keeps_the_active_the_previous_and_the_newest(tmp_path, store):
    models = []
    for n in range(6):
        models.append(store.stage(make_package(tmp_path / str(n), str(n))))
        os.utime(models[-1].path / "model.json", (n, n))
    store.activate(models[0])
    store.activate(models[1])
    (store.folder / ".draft-left-behind").mkdir()
    gone = store.prune(keep=2)
    assert [model.info.version for model in gone] == ["3", "2"]
    assert [model.info.version for model in store.list()] == ["5", "4", "1", "0"]
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


class Full(Disk):
    """A disk that refuses from the nth step on."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __getattribute__(self, name: str) -> Any:
        if name in ("open", "write", "sync", "rename", "mkdir", "sync_folder"):
            self.steps -= 1
            if self.steps < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().__getattribute__(name)


def test_a_full_disk_at_any_step_leaves_a_whole_model_active(tmp_path, store):
    old = store.stage(make_package(tmp_path / "old", "1"))
    store.activate(old)
    make_package(tmp_path / "new", "2")
    seen = []
    for steps in range(100):
        full = ModelStore(store.folder, disk=Full(steps))
        try:
            full.activate(full.stage(tmp_path / "new"))
        except StorageError:
            active = store.active()
            assert active is not None
            seen.append(active.info.version)
        else:
            break
    # Only where the very last step fails, making the record's name durable, is the new one active already.
    assert len(seen) > 15
    assert seen == ["1"] * (len(seen) - 1) + ["2"]
    assert store.previous() == old


CHILD = """
import sys
from pathlib import Path
from loopcore.deploy.modelstore import ModelStore
store = ModelStore(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for source in sys.argv[2:]:
        store.activate(store.stage(Path(source)))
        store.prune(keep=0)
        print("done", flush=True)
"""


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_whole_model_is_active_after_the_process_is_killed(tmp_path, store, steps):
    sources = [make_package(tmp_path / version, version, os.urandom(300_000)) for version in "123"]
    store.activate(store.stage(sources[0]))
    with Popen([sys.executable, "-c", CHILD, store.folder, *sources], stdout=PIPE) as child:
        assert child.stdout is not None
        for _ in range(steps):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    active = store.active()
    assert active is not None
    assert active.info.version in "123"
    store.prune(keep=0)
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]
