"""`loopcore demo`: the whole of it once, then what it left on the disk."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from loopcore import imaging
from loopcore.cli.demo import demo, workspace
from loopcore.cli.demo.report import write_report
from loopcore.cli.demo.scenes import LABELS, Material, Slip, load_material, make_scene
from loopcore.cli.demo.summary import Seen, match, summarize
from loopcore.errors import ConfigError
from loopcore.types import Box, image_id

COMMAND = [sys.executable, "-W", "error", "-m", "loopcore", "demo", "--scenes", "30"]


def _demo(out: Path, *options: str) -> str:
    done = subprocess.run([*COMMAND, "--out", str(out), *options], capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo's folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, _demo(out)


@pytest.fixture(scope="module")
def material() -> tuple[Material, Material]:
    return load_material()


def test_every_scene_is_seen_and_every_pick_delivered_whole(ran: tuple[Path, str]) -> None:
    out, _ = ran
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    seen = [Path(line["info"]["source"]).name for line in lines if line["event"] == "prediction_made"]
    kept = {line["id"] for line in lines if line["event"] == "sample_kept"}
    delivered = {line["id"] for line in lines if line["event"] == "sample_delivered"}
    records = {path: json.loads(path.read_text())["sample"] for path in out.glob("samples/**/*.json")}

    assert sorted(seen) == sorted(path.name for path in out.glob("scenes/*.jpg"))
    assert len(seen) == 30
    assert kept == delivered == {record["id"] for record in records.values()}
    assert 3 < len(kept) < 30
    for path, record in records.items():
        assert image_id(path.with_suffix(".jpg").read_bytes()) == record["image_id"]
        assert set(record["reasons"]) <= {"uncertain", "interval"}


def test_uncertain_frames_have_a_box_in_the_band_and_the_model_is_worse_on_them(ran: tuple[Path, str]) -> None:
    low, high = workspace.BAND
    summary = summarize(ran[0], LABELS, workspace.BAND)

    assert summary.unsure
    for frame in summary.unsure:
        assert any(low <= box.confidence <= high for box in frame.found)
    assert summary.score(summary.others).rate > 0.8
    assert summary.score(summary.unsure).rate < summary.score(summary.others).rate


def test_figures_shown_are_those_on_the_disk(ran: tuple[Path, str]) -> None:
    out, printed = ran
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    found = [box for line in lines if line["event"] == "prediction_made" for box in line["prediction"]["detections"]]
    samples = [json.loads(path.read_text())["sample"] for path in out.glob("samples/**/*.json")]
    truth = [slip for slips in json.loads((out / "truth.json").read_text()).values() for slip in slips]
    page = _Page((out / "report.html").read_text())

    assert page.tiles == ["30", str(len(found)), str(len(samples)), str(len(samples))]
    for reason in ("uncertain", "interval"):
        assert page.rows[reason] == str(sum(reason in sample["reasons"] for sample in samples))
    for label in LABELS:
        there, seen = (sum(one["label"] == label for one in ones) for ones in (truth, found))
        assert re.search(rf"^ ?{label} +{there} +{seen} ", printed, re.MULTILINE)
        assert page.labels[label][:2] == [str(there), str(seen)]
    assert re.search(rf"frames picked +{len(samples)} ", printed)
    assert re.search(rf"samples delivered +{len(samples)} ", printed)


def test_report_needs_nothing_outside_itself(ran: tuple[Path, str]) -> None:
    text = (ran[0] / "report.html").read_text()
    page = _Page(text)

    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "url(" not in text
    assert "@import" not in text
    assert str(ran[0]) not in text
    assert "prefers-color-scheme: dark" in text


def test_every_frame_has_an_annotated_picture(ran: tuple[Path, str]) -> None:
    out, _ = ran
    pictures = {path.name: imaging.decode(path.read_bytes()) for path in (out / "pictures").iterdir()}

    assert set(pictures) == {path.name for path in (out / "scenes").iterdir()}
    assert {picture.shape for picture in pictures.values()} == {(480, 720, 3)}


def test_the_same_seed_picks_the_same_and_leaves_files_of_others_alone(ran: tuple[Path, str]) -> None:
    out, _ = ran
    before = {path.relative_to(out): path.read_bytes() for path in out.glob("samples/**/*.jpg")}
    model = (out / "model" / "model.onnx").read_bytes()
    foreign = [out / "notes.txt", out / "samples" / "mine.jpg", out / "scenes" / "deeper" / "notes.txt"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (out / "scenes" / "scene-999.jpg").write_text("of an earlier demo")

    _demo(out)

    assert {path.relative_to(out): path.read_bytes() for path in out.glob("samples/*/*/*.jpg")} == before
    assert (out / "model" / "model.onnx").read_bytes() == model
    assert [path.read_text() for path in foreign] == ["mine"] * 3
    assert not (out / "scenes" / "scene-999.jpg").exists()


def test_files_that_no_demo_made_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text("mine")

    with pytest.raises(ConfigError, match=r"loop\.toml is in the way.*--out"):
        workspace.prepare(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["loop.toml"]


@pytest.mark.parametrize("name", ["onnx", "skimage", "sklearn"])
def test_a_missing_extra_is_named_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigError, match=rf'needs {name}: pip install "loopcore\[demo\]"'):
        demo(tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_interrupt_ends_with_130_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    command = [sys.executable, "-u", *COMMAND[1:], "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "Fitting" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, err.strip()) == (130, "")
    workspace.prepare(tmp_path)
    assert not list(tmp_path.glob("scenes/*"))


def test_scenes_depend_on_the_seed_alone(material: tuple[Material, Material]) -> None:
    _, unseen = material
    scenes = [make_scene(unseen, np.random.default_rng(seed), count=3, hard=0.5) for seed in (1, 1, 2)]

    assert scenes[0].slips == scenes[1].slips != scenes[2].slips
    assert (scenes[0].pixels == scenes[1].pixels).all()


def test_the_model_does_not_see_the_handwriting_it_is_tried_on(material: tuple[Material, Material]) -> None:
    learned, unseen = material

    for label in LABELS:
        known = {digit.tobytes() for digit in learned.digits[label]}
        assert len(known) > 80
        assert known.isdisjoint(digit.tobytes() for digit in unseen.digits[label])


def test_a_slip_is_matched_once_and_by_the_surest_box() -> None:
    slip = Slip(label="3", x=10, y=10, width=40, height=40)
    sure, unsure, astray = (
        Box(label="3", confidence=0.9, x=12, y=10, width=40, height=40),
        Box(label="8", confidence=0.5, x=10, y=10, width=40, height=40),
        Box(label="1", confidence=0.4, x=200, y=10, width=40, height=40),
    )
    frame = Seen(name="a.jpg", time=workspace.BEGIN, found=(sure, unsure, astray), slips=(slip,))

    assert match(frame) == [(sure, slip), (unsure, None), (astray, None)]


def test_what_comes_from_files_is_escaped_in_the_report(ran: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = ran
    evil = "<img src=x onerror=alert(1)>"
    for name in ("truth.json", "journal.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    journal = (tmp_path / "journal.jsonl").read_text().replace('"handwriting"', json.dumps(evil))
    (tmp_path / "journal.jsonl").write_text(journal)
    (tmp_path / "pictures").symlink_to(out / "pictures")

    write_report(tmp_path, summarize(tmp_path, LABELS, workspace.BAND))

    text = (tmp_path / "report.html").read_text()
    assert evil not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


class _Page(HTMLParser):
    """What a test wants of the report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.tiles: list[str] = []
        self.cells: list[list[str]] = []
        self._path: list[str] = []
        self._in_tile = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = dict(attrs)
        self.sources += [named["src"] or ""] if "src" in named else []
        self._in_tile = self._in_tile or (tag == "div" and named.get("class") == "tile")
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
        self._path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._in_tile and self._path[-1:] == ["b"]:
            self.tiles.append(data)
            self._in_tile = False
        if "td" in self._path:
            self.cells[-1][-1] += data.strip()

    @property
    def rows(self) -> dict[str, str]:
        """The second cell of each row, by the first."""
        return {row[0]: row[1] for row in self.cells if len(row) > 1}

    @property
    def labels(self) -> dict[str, list[str]]:
        return {row[0][0]: row[1:] for row in self.cells if row and row[0][:1].isdigit()}
