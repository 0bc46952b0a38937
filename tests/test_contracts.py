"""The contracts say what they promise, and the built-in drivers keep it: each runs through the suite of its kind."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loopcore import abc as contracts
from loopcore import hookspecs
from loopcore.abc import Driver
from loopcore.drivers.command_trainer import CommandTrainer
from loopcore.drivers.folder_sink import FolderSink
from loopcore.drivers.folder_source import FolderSource
from loopcore.drivers.http_sink import HttpSink
from loopcore.drivers.onnx.backend import OnnxBackend
from loopcore.drivers.outline import OutlineAnnotator
from loopcore.drivers.selectors import Below, Count, Interval, Label, Random
from loopcore.drivers.uncertain import Uncertain
from loopcore.drivers.video_source import VideoSource
from loopcore.package import open_model
from loopcore.testing import (
    AnnotatorSuite,
    BackendSuite,
    HttpSinkSuite,
    LoopbackServer,
    Reply,
    Request,
    SelectorSuite,
    SinkSuite,
    SourceSuite,
    TrainerSuite,
    make_jpeg,
)
from loopcore.testing.faults import PORTAL
from loopcore.testing.pictures import START, make_picture
from loopcore.types import Frame, FrameInfo, Model


def promises() -> Iterator[tuple[str, object]]:
    """Every class of `abc` that a plugin meets, and each of its own public methods."""
    for name, kind in vars(contracts).items():
        if inspect.isclass(kind) and kind.__module__ == contracts.__name__:
            yield name, kind
            for method, member in vars(kind).items():
                if inspect.isfunction(member) and not method.startswith("_"):
                    yield f"{name}.{method}", member


GROUPS = {
    "loopcore.annotators",
    "loopcore.backends",
    "loopcore.selectors",
    "loopcore.sinks",
    "loopcore.sources",
    "loopcore.trainers",
}
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("loopcore_")}
TERSE = {"Console.print", "Console.table"}
"""Said once, by the class."""


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*each, id=each[0]) for each in promises()])
def test_contract_says_what_it_promises(name: str, thing: object) -> None:
    doc = vars(thing)["__doc__"] if inspect.isclass(thing) else inspect.getdoc(thing)
    assert name in TERSE or (doc and doc.strip().endswith((".", "`", "…", "```")))


def test_every_abstract_method_is_a_promise() -> None:
    abstract = {
        f"{name}.{method}"
        for name, kind in promises()
        if inspect.isclass(kind)
        for method in getattr(kind, "__abstractmethods__", ())
        if method in vars(kind)
    }
    assert len(abstract) > 20
    assert abstract <= dict(promises()).keys()


@pytest.mark.parametrize("name", HOOKS)
def test_hook_says_when_it_is_called_and_what_with(name: str) -> None:
    spec = HOOKS[name]
    doc = inspect.getdoc(spec) or ""
    arguments = inspect.signature(spec).parameters
    assert "Called" in doc or inspect.iscoroutinefunction(spec)
    assert not arguments or "Args:" in doc
    assert [argument for argument in arguments if f"{argument}:" not in doc] == []


def test_every_built_in_driver_runs_through_a_suite() -> None:
    announced = {point.value for point in distribution("loopcore").entry_points if point.group in GROUPS}
    suites = [thing for name, thing in globals().items() if name.startswith("Test")]
    drivers: set[type[Driver]] = {suite.driver for suite in suites}
    names = {f"{driver.__module__}:{driver.__qualname__}" for driver in drivers}
    assert announced
    assert {_home(value) for value in announced} == names


def _home(value: str) -> str:
    """Where the class that an entry point names is really defined."""
    module, _, name = value.partition(":")
    driver = getattr(__import__(module, fromlist=[name]), name)
    return f"{driver.__module__}:{driver.__qualname__}"


class TestFolderSink(SinkSuite):
    driver = FolderSink

    @pytest.fixture
    def table(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"path": str(tmp_path / "samples")}

    @pytest.fixture
    def held(self, tmp_path: Path) -> Callable[[], Sequence[str]]:
        """Every picture anywhere near, so that one outside the folder would show."""
        return lambda: [path.stem for path in tmp_path.rglob("*") if path.suffix in {".jpg", ".png"}]


class Receiver:
    """What a user might write for the sink `http`: it knows samples by their key, and checks the picture's size."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(status=405)
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in request.body.split(b"--" + boundary)[1:-1]]
        sample = msgspec.json.decode(parts[0])
        if sample["image_bytes"] != len(parts[1]) or sample["id"] != request.headers["idempotency-key"]:
            return Reply(status=400, body=b"not what was promised")
        duplicate = sample["id"] in self.ids
        if not duplicate:
            self.ids.append(sample["id"])
        return Reply(body=msgspec.json.encode({"id": f"r{len(self.ids)}", "duplicate": duplicate}))

    def held(self) -> Sequence[str]:
        return self.ids


class TestHttpSink(HttpSinkSuite):
    driver = HttpSink
    lies = (PORTAL, Reply(body=b'{"success": false, "error": "disk full"}'), Reply(body=b'{"accepted": false}'))

    @pytest.fixture
    def peer(self) -> Receiver:
        return Receiver()

    @pytest.fixture
    def table(self, server: LoopbackServer) -> Mapping[str, Any]:
        return {"url": f"{server.url}/samples"}


class TestFolderSource(SourceSuite):
    driver = FolderSource
    frames = 4
    ends = False

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for seed in range(self.frames):
            (folder / f"{seed}.jpg").write_bytes(make_jpeg(seed))
        return folder

    @pytest.fixture
    def table(self, folder: Path) -> Mapping[str, Any]:
        return {"path": str(folder), "every": "10 ms", "settle": "10 ms"}

    @pytest.fixture
    def more(self, folder: Path) -> Callable[[], object]:
        return lambda: (folder / "later.jpg").write_bytes(make_jpeg(99))

    @pytest.fixture
    def missing(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"path": str(tmp_path / "nowhere")}


class TestFolderSourceOnce(TestFolderSource):
    ends = True

    @pytest.fixture
    def table(self, folder: Path) -> Mapping[str, Any]:
        return {"path": str(folder), "every": "10 ms", "settle": "10 ms", "watch": False}


CLIP_FRAMES = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    av = pytest.importorskip("av")
    path: Path = tmp_path_factory.mktemp("clips") / "gate.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for seed in range(CLIP_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_picture(seed), format="rgb24")))
        container.mux(stream.encode())
    return path


class TestVideoSource(SourceSuite):
    driver = VideoSource
    frames = CLIP_FRAMES

    @pytest.fixture
    def table(self, clip: Path) -> Mapping[str, Any]:
        return {"path": str(clip), "camera": "gate"}

    @pytest.fixture
    def missing(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"path": str(tmp_path / "nowhere.mp4")}


class TestOnnxBackend(BackendSuite):
    driver = OnnxBackend

    @pytest.fixture
    def model(self, spots_model: Path, tmp_path: Path) -> Model:
        return open_model(spots_model, tmp_path)

    @pytest.fixture
    def frames(self) -> list[Frame]:
        """Dark frames with two bright squares each, in different places."""
        return [_spots(width, height) for width, height in ((64, 64), (128, 64), (64, 128), (200, 150))]


def _spots(width: int, height: int) -> Frame:
    pixels = np.zeros((height, width, 3), np.uint8)
    side = max(width, height) // 5
    for x, y in ((width // 8, height // 8), (width - side - 4, height - side - 4)):
        pixels[y : y + side, x : x + side] = 255
    return Frame(info=FrameInfo(width=width, height=height, time=START, camera="gate"), pixels=pixels)


class TestUncertain(SelectorSuite):
    driver = Uncertain


class TestBelow(SelectorSuite):
    driver = Below


class TestInterval(SelectorSuite):
    driver = Interval

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"every": "5 s"}


class TestRandom(SelectorSuite):
    driver = Random

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"share": 0.3}


class TestCount(SelectorSuite):
    driver = Count

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"over": 3, "changed": True}


class TestLabel(SelectorSuite):
    driver = Label

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"labels": ["seal"], "rare": 0.1, "among": 100}


class TestOutlineAnnotator(AnnotatorSuite):
    driver = OutlineAnnotator


COUNTING = """
import json, os, time
from pathlib import Path
work, package = Path(os.environ["LOOPCORE_WORKDIR"]), Path(os.environ["LOOPCORE_PACKAGE"])
book = work / "epochs"
for epoch in range(int(book.read_text()) if book.exists() else 0, 3):
    if Path(os.environ["LOOPCORE_STOP"]).exists():
        break
    (package / "model.onnx").write_text(f"{epoch + 1} epochs")
    book.write_text(str(epoch + 1))
    print(json.dumps({"progress": (epoch + 1) / 3, "score": {"epoch": epoch + 1}}), flush=True)
    time.sleep(0.05)
"""
"""A program that trains, as docs/write-a-trainer.md has it."""


class TestCommandTrainer(TrainerSuite):
    driver = CommandTrainer

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"command": [sys.executable, "-I", "-S", "-c", COUNTING], "stop": "file"}
