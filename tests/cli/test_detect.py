"""`loopcore detect` on real models, photographs and clips."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from loopcore import cli, imaging
from loopcore.cli.frames import find, in_order
from loopcore.geometry import iou
from loopcore.package import write_package
from loopcore.types import ModelInfo


class Run:
    """What a command line gave: exit code, stdout and stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def loopcore(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: object) -> Run:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Run(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def yolox(shared_data: Path) -> Path:
    return shared_data / "models" / "yolox-nano-coco" / "yolox_nano.onnx"


@pytest.fixture
def quick(shared_data: Path) -> Path:
    return shared_data / "models" / "fastestdet-coco" / "fastestdet.onnx"


@pytest.fixture
def photos(shared_data: Path) -> Path:
    return shared_data / "photos"


@pytest.mark.parametrize("name", ["yolox-nano-coco", "fastestdet-coco", "ultraface-rfb320"])
def test_json_agrees_with_the_reference_on_every_photo(loopcore: Any, shared_data: Path, name: str) -> None:
    folder = shared_data / "models" / name
    reference = json.loads((folder / "reference_detections.json").read_text())
    least = reference["score_threshold"]
    (model,) = folder.glob("*.onnx")

    run = loopcore("detect", model, shared_data / "photos", "--json", "--confidence", least - 0.05)

    assert (run.code, run.err) == (0, "")
    assert {Path(line["source"]).name for line in run.lines} == set(reference["photos"])
    for line in run.lines:
        expected = reference["photos"][Path(line["source"]).name]
        assert [line["width"], line["height"], line["index"]] == [*expected["size"], 0]
        assert line["infer_ms"] > 0
        found = line["detections"]
        for wanted in expected["detections"]:
            assert any(_same(one, wanted) for one in found), (line["source"], wanted)
        for one in found:
            surely = one["confidence"] > least + 0.05
            assert not surely or any(_same(one, wanted) for wanted in expected["detections"]), (line["source"], one)


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    box = [found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]]
    overlap = iou(np.array([box], np.float32), np.array([wanted["box_xyxy"]], np.float32))[0, 0]
    near = abs(found["confidence"] - wanted["score"]) <= 0.05
    return bool(found["label"] == wanted["label"] and overlap >= 0.9 and near)


def test_json_lines_have_exactly_the_documented_keys(loopcore: Any, yolox: Path, photos: Path) -> None:
    (line,) = loopcore("detect", yolox, photos / "bottles.jpg", "--json").lines

    assert list(line) == ["source", "index", "width", "height", "detections", "infer_ms"]
    assert line["source"] == str(photos / "bottles.jpg")
    assert list(line["detections"][0]) == ["kind", "label", "confidence", "x", "y", "width", "height"]
    assert line["detections"][0]["kind"] == "box"


def test_tables_count_by_file_and_by_label(loopcore: Any, yolox: Path, photos: Path) -> None:
    run = loopcore("detect", yolox, photos / "bottles.jpg", photos / "china.jpg", "--confidence", 0.35)

    assert run.code == 0
    by_file = [line.split() for line in run.out.splitlines()]
    assert [str(photos / "bottles.jpg"), "1", "3x", "bottle"] in by_file
    assert [str(photos / "china.jpg"), "1", "nothing"] in by_file
    assert ["bottle", "3", "1"] in by_file
    assert "2 frames of 2 files, 3 found" in run.out


def test_folders_globs_and_repeated_files_are_each_read_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "deeper/c.mp4", "odd[1].jpg"):
        (tmp_path / name).touch()

    found, missing = find([f"{tmp_path}/*.jpg", str(tmp_path), f"{tmp_path}/odd[1].jpg", f"{tmp_path}/none*"])

    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "b.jpg",
        "odd[1].jpg",
        "a.PNG",
        "deeper/c.mp4",
    ]
    assert missing == [f"{tmp_path}/none*"]


def test_each_nth_frame_of_a_clip_is_a_line(loopcore: Any, quick: Path, shared_data: Path) -> None:
    clip = shared_data / "videos" / "bottle-detection.mp4"

    run = loopcore("detect", quick, clip, "--json", "--every", 100)

    assert run.code == 0
    assert [line["index"] for line in run.lines] == list(range(0, 100 * len(run.lines), 100))
    assert len(run.lines) > 1
    assert {line["source"] for line in run.lines} == {str(clip)}
    assert any(found["label"] == "bottle" for line in run.lines for found in line["detections"])


def test_bad_pictures_are_told_and_the_others_done(loopcore: Any, quick: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "person.jpg", tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((photos / "person.jpg").read_bytes()[:3000])
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "d.mp4").write_text("no clip")
    shutil.copy(photos / "coffee.png", tmp_path / "e.png")

    run = loopcore("detect", quick, tmp_path, tmp_path / "gone.jpg", "--json")

    assert run.code == 1
    assert [Path(line["source"]).name for line in run.lines] == ["a.jpg", "e.png"]
    told = run.err.splitlines()
    assert len(told) == 4
    for name in ("b.jpg", "c.png", "d.mp4", "gone.jpg"):
        assert sum(name in line for line in told) == 1


def test_nothing_to_look_at_is_a_mistake_of_usage(loopcore: Any, quick: Path, tmp_path: Path) -> None:
    run = loopcore("detect", quick, tmp_path, tmp_path / "*.jpg")

    assert (run.code, run.out) == (2, "")
    assert "nothing to look at" in run.err
    assert len(run.err.splitlines()) == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_control_characters_in_names_do_not_reach_the_terminal(
    loopcore: Any, quick: Path, photos: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    shutil.copy(photos / "person.jpg", tmp_path / "good\x1b[31m\n\x9b31m\u202e.jpg")
    (tmp_path / "bad\x1b]0;title\x07.jpg").touch()

    run = loopcore("detect", quick, tmp_path, *options)

    assert run.code == 1
    assert not any(char in run.out + run.err for char in "\x1b\x07\x9b\u202e")
    assert "\\x1b]0;title\\x07" in run.err


def test_labels_and_confidence_of_the_command_line_win(
    loopcore: Any, yolox: Path, photos: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {index}" for index in range(80)))
    picture = photos / "bottles.jpg"

    from_file = loopcore("detect", yolox, picture, "--json", "--labels", names, "--confidence", 0.92)
    from_list = loopcore("detect", yolox, picture, "--json", "--labels", ",".join(names.read_text().splitlines()))

    labels = [found["label"] for found in from_file.lines[0]["detections"]]
    assert labels in (["thing 39"], ["thing 39"] * 2)
    assert {found["label"] for found in from_list.lines[0]["detections"]} == {"thing 39"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--decoder", "yolo99"), 2),
        (("--labels", "names/gone.txt"), 2),
        (("--confidence", "1.5"), 2),
        (("--labels", "cat,dog"), 1),
    ],
)
def test_wrong_wishes_are_told_in_a_sentence(
    loopcore: Any, yolox: Path, photos: Path, options: tuple[str, ...], expected: int
) -> None:
    run = loopcore("detect", yolox, photos / "bottles.jpg", *options)

    assert (run.code, run.out) == (expected, "")
    assert "Traceback" not in run.err
    assert run.err.strip()


def test_wrong_decoder_is_answered_with_the_right_ones(loopcore: Any, yolox: Path, photos: Path) -> None:
    run = loopcore("detect", yolox, photos / "bottles.jpg", "--decoder", "yolxo")

    assert run.err.startswith("loopcore: --decoder: expected one of 'classify', ")
    assert "did you mean 'yolo'?" in run.err


def test_folder_with_a_bare_model_leads_to_the_file(loopcore: Any, yolox: Path, photos: Path) -> None:
    run = loopcore("detect", yolox.parent, photos / "bottles.jpg")

    assert run.code == 1
    assert f"name its file: {yolox}" in run.err


def test_annotated_pictures_have_the_size_of_the_originals_and_names_of_their_own(
    loopcore: Any, quick: Path, photos: Path, shared_data: Path, tmp_path: Path
) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        shutil.copy(photos / "bottles.jpg", tmp_path / place)
    clip = shared_data / "videos" / "bottle-detection.mp4"

    run = loopcore("detect", quick, tmp_path / "one", tmp_path / "two", clip, "--every", 200, "--draw", tmp_path / "d")

    assert run.code == 0
    drawn = {path.name: imaging.decode(path.read_bytes()) for path in (tmp_path / "d").iterdir()}
    assert {"bottles.jpg", "bottles-2.jpg", "bottle-detection-000000.jpg"} <= set(drawn)
    original = imaging.decode((photos / "bottles.jpg").read_bytes())
    assert drawn["bottles.jpg"].shape == original.shape
    assert np.abs(drawn["bottles.jpg"].astype(int) - original).max() > 100


def test_packages_are_run_as_a_folder_and_as_a_zip(loopcore: Any, quick: Path, photos: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(quick, package)
    labels = tuple((quick.parent / "labels.txt").read_text().split("\n"))[:80]
    write_package(package, ModelInfo(name="quick", version="1", format="onnx", labels=labels))
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as bundle:
        for path in package.iterdir():
            bundle.write(path, f"inner/{path.name}")

    runs = [
        loopcore("detect", model, photos / "bottles.jpg", "--json").lines[0]["detections"]
        for model in (quick, package, tmp_path / "package.zip")
    ]

    assert runs[0]
    assert runs[0] == runs[1] == runs[2]


def test_a_format_that_nothing_runs_is_told(loopcore: Any, quick: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(quick, tmp_path)
    write_package(tmp_path, ModelInfo(name="quick", version="1", format="stone"))

    run = loopcore("detect", tmp_path, photos / "bottles.jpg")

    assert run.code == 1
    assert "no installed backend runs the format 'stone'" in run.err


def test_interrupt_ends_with_130(quick: Path, shared_data: Path) -> None:
    clip = shared_data / "videos" / "car-detection.mp4"
    command = [sys.executable, "-m", "loopcore", "detect", str(quick), str(clip), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.anyio
async def test_results_keep_the_order_of_the_items_and_little_is_in_memory() -> None:
    read = 0
    shown: list[int] = []
    most = 0
    later = anyio.Event()

    def items() -> Any:
        nonlocal read
        for number in range(20):
            read += 1
            yield number

    async def work(number: int) -> int:
        if number == 0:
            await later.wait()
        if number == 2:
            later.set()
        return number

    def show(number: int) -> None:
        nonlocal most
        most = max(most, read - len(shown))
        shown.append(number)

    with anyio.fail_after(10):
        await in_order(items(), work, show, ahead=3)

    assert shown == list(range(20))
    assert most <= 3
