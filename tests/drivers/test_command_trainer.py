"""Promises of the trainer `command`: any program trains, and how it ends is told for what it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import msgspec
import pytest

from loopcore.abc import Score
from loopcore.datasets import Snapshot
from loopcore.drivers.command_trainer import CommandTrainer
from loopcore.errors import ConfigError, LoopcoreError, PluginError, TrainingError
from loopcore.options import decode
from loopcore.package import open_folder
from loopcore.processes import call_driver
from loopcore.testing import make_snapshot
from loopcore.train.packages import open_packages

pytestmark = pytest.mark.anyio

LIMIT_S = 20.0

HEAD = """
import json, os, signal, sys, time
from pathlib import Path
package, workdir = Path(os.environ["LOOPCORE_PACKAGE"]), Path(os.environ["LOOPCORE_WORKDIR"])
def leave(name="model.onnx", content="weights"):
    path = package / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
def say(**told):
    print(json.dumps(told), flush=True)
"""


class Reports(list[tuple[float, str, Score | None, dict[str, float]]]):
    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.then = then

    def __call__(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        self.append((progress, message, score, metrics))
        self.then()


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return make_snapshot(tmp_path / "snapshot", 3)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def make(code: str, **table: Any) -> CommandTrainer:
    """A trainer that runs this program."""
    command = [sys.executable, "-I", "-S", "-c", HEAD + dedent(code)]
    return CommandTrainer(decode({"command": command, **table}, CommandTrainer.Options))


@pytest.fixture
def train(snapshot: Snapshot, workdir: Path) -> Callable[..., Path]:
    """Run it here, in this process; what needs a process of its own is below."""

    def run(
        trainer: CommandTrainer,
        parameters: Mapping[str, Any] | None = None,
        base: Path | None = None,
        report: Reports | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Path:
        return trainer.train(
            snapshot.path, base, parameters or {}, workdir, Reports() if report is None else report, stop
        )

    return run


def test_files_that_are_left_become_a_package(train: Callable[..., Path], snapshot: Snapshot, workdir: Path) -> None:
    left = train(make("leave()"))
    assert left == workdir / "package"
    info = open_folder(left).info
    assert (info.format, info.labels, info.version) == ("onnx", snapshot.labels, snapshot.id[:12])
    assert [file.name for file in info.files] == ["model.onnx"]


def test_folders_of_formats_become_packages_of_one_model(train: Callable[..., Path]) -> None:
    left = train(make("leave('a/model.a'); leave('b/model.b')", formats=["b", "a"]))
    models = open_packages(left, ("b", "a"))
    assert [(model.info.format, model.info.files[0].name) for model in models] == [("b", "model.b"), ("a", "model.a")]


def test_package_of_the_program_s_own_is_left_alone(train: Callable[..., Path]) -> None:
    code = """
        import hashlib
        leave()
        file = {"name": "model.onnx", "size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
        own = {"schema": 1, "name": "own", "version": "7", "format": "onnx", "files": [file], "spec": {"scale": 2}}
        (package / "model.json").write_text(json.dumps(own))
    """
    info = open_folder(train(make(code))).info
    assert (info.name, info.version, info.spec) == ("own", "7", {"scale": 2})


def test_program_that_leaves_nothing_has_failed(train: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError, match="the program has left no model in"):
        train(make(""))


def test_program_learns_all_from_its_environment(
    train: Callable[..., Path], snapshot: Snapshot, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_PASSWORD", "canary")
    code = """
        leave()
        (workdir / "seen.json").write_text(json.dumps({**os.environ, "cwd": os.getcwd()}))
    """
    train(make(code, env={"SEED": "7"}), {"epochs": 3}, base=tmp_path / "base")
    seen = json.loads((workdir / "seen.json").read_text())
    assert "LOOP_PASSWORD" not in seen
    assert seen["SEED"] == "7"
    assert seen["cwd"] == str(workdir)
    assert {name: value for name, value in seen.items() if name.startswith("LOOPCORE_")} == {
        "LOOPCORE_SNAPSHOT": str(snapshot.path),
        "LOOPCORE_WORKDIR": str(workdir),
        "LOOPCORE_PARAMETERS": str(workdir / "parameters.json"),
        "LOOPCORE_PACKAGE": str(workdir / "package"),
        "LOOPCORE_STOP": str(workdir / "stop"),
        "LOOPCORE_BASE": str(tmp_path / "base"),
    }
    assert json.loads((workdir / "parameters.json").read_text()) == {"epochs": 3}


def test_program_starts_where_it_is_to(train: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os; open(os.environ['LOOPCORE_PACKAGE'] + '/x', 'w').close()")
    table = {"command": [sys.executable, "program.py"], "folder": "."}
    assert train(CommandTrainer(decode(table, CommandTrainer.Options, folder=tmp_path)))


def test_lines_of_json_are_reports_and_all_else_is_not(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
        leave()
        print("epoch 1: loss 0.5")
        say(progress=0.25, message="one", metrics={"loss": 0.5}, colour="blue")
        print("{not json")
        say(progress="a lot")
        say(metrics={"loss": 0.25, "progress": 9})
        say(progress=0.5, score={"epoch": 2, "confusion": {"penguin": [1, 2, 3]}, "metrics": {"f1": 0.5}})
        print("[1]", file=sys.stderr)
    """
    reports = Reports()
    train(make(code), report=reports)
    score = Score(epoch=2, confusion={"penguin": (1, 2, 3)}, metrics={"f1": 0.5})
    assert reports == [
        (0.25, "one", None, {"loss": 0.5}),
        (0.25, "", None, {"loss": 0.25}),
        (0.5, "", score, {}),
    ]
    logged = capsys.readouterr().out
    assert "epoch 1: loss 0.5" in logged
    assert "loopcore: this line is no report: Expected `float | null`, got `str` - at `$.progress`" in logged


def test_best_score_is_told_again_when_the_training_goes_on(train: Callable[..., Path]) -> None:
    train(make("leave(); say(score={'epoch': 2}); say(progress=0.5)"))
    reports = Reports()
    train(make(""), report=reports)
    assert reports == [(0.0, "", Score(epoch=2), {})]


def test_program_finds_its_folder_as_it_has_left_it(train: Callable[..., Path], workdir: Path) -> None:
    code = "f = workdir / 'runs'; f.write_text(f.read_text() + 'x' if f.exists() else 'x'); leave()"
    for _ in range(3):
        train(make(code))
    assert (workdir / "runs").read_text() == "xxx"


@pytest.mark.parametrize(
    ("code", "error", "sentence"),
    [
        ("sys.exit(3)", TrainingError, "ended with exit code 3"),
        ("raise ValueError('odd')", TrainingError, "ended with exit code 1; its last words: ValueError: odd"),
        ("leave(); sys.exit(3)", TrainingError, "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", PluginError, "was killed by SIGKILL, perhaps because memory ran out"),
        ("os.kill(os.getpid(), 11)", PluginError, "was killed by SIGSEGV"),
        ("sys.exit(137)", PluginError, "ended with exit code 137"),
        (
            "print('RuntimeError: CUDA out of memory. Tried to'); sys.exit(1)",
            TrainingError,
            "graphics card is out of memory (",
        ),
        (
            "print('x'); print('CUDA error: invalid device ordinal', file=sys.stderr); os.abort()",
            TrainingError,
            "graphics card not found (",
        ),
    ],
)
def test_failure_is_told_for_what_it_is(
    train: Callable[..., Path], code: str, error: type[LoopcoreError], sentence: str
) -> None:
    with pytest.raises(LoopcoreError) as caught:
        train(make(code))
    assert type(caught.value) is error
    assert sentence in str(caught.value)


def test_text_of_an_error_means_nothing_if_the_program_succeeds(train: Callable[..., Path]) -> None:
    assert train(make("print('CUDA out of memory, so the batch is halved'); leave()"))


def test_texts_of_errors_can_be_others(train: Callable[..., Path]) -> None:
    trainer = make("print('loss is nan'); print('CUDA out of memory'); sys.exit(1)", errors={"is nan": "it diverges"})
    with pytest.raises(TrainingError, match="it diverges"):
        train(trainer)


def test_program_that_is_not_there_is_the_operator_s_mistake(train: Callable[..., Path], tmp_path: Path) -> None:
    trainer = CommandTrainer(decode({"command": ["no-such-program", "-x"]}, CommandTrainer.Options))
    with pytest.raises(ConfigError, match="cannot start no-such-program -x in"):
        train(trainer)
    with pytest.raises(ConfigError, match="No such file or directory"):
        train(make("leave()", folder=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"command": []}, "Expected `array` of length >= 1"),
        ({"command": "python train.py"}, "Expected `array`"),
        ({"formats": []}, "Expected `array` of length >= 1"),
        ({"formats": ["../x"]}, "Expected `str` matching regex"),
        ({"stop": "politely"}, "Invalid enum value 'politely'"),
        ({"command": [""]}, "command[0]: expected a program"),
        ({"grace": "1 min"}, "grace: expected at most 25 s"),
    ],
)
def test_mistake_in_the_options_is_found(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, msgspec.ValidationError)) as caught:
        CommandTrainer(decode({"command": ["true"], **table}, CommandTrainer.Options))
    assert sentence in str(caught.value)


async def test_check_looks_for_the_program(tmp_path: Path) -> None:
    async def problems(table: dict[str, Any]) -> list[str]:
        options = decode(table, CommandTrainer.Options, folder=tmp_path)
        async with CommandTrainer(options) as trainer:
            return [problem.message for problem in await trainer.check()]

    (tmp_path / "train.sh").write_text("#!/bin/sh\n")
    assert await problems({"command": [sys.executable]}) == []
    assert "is not there, or may not be run" in (await problems({"command": ["no-such-program"]}))[0]
    assert "may not be run" in (await problems({"command": ["./train.sh"], "folder": "."}))[0]
    (tmp_path / "train.sh").chmod(0o755)
    assert await problems({"command": ["./train.sh"], "folder": "."}) == []
    assert "there is no folder" in (await problems({"command": ["./train.sh"], "folder": "absent"}))[0]


LEARNING = """
leave()
def end(*_):
    if PATIENT:
        leave(content="best so far")
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
say(progress=0.1)
while not (STOPS and Path(os.environ["LOOPCORE_STOP"]).exists()):
    time.sleep(0.01)
leave(content="told by the file")
"""


def learning(*, patient: bool = False, stops: bool = False) -> str:
    return f"PATIENT, STOPS = {patient}, {stops}\n{LEARNING}"


@pytest.mark.parametrize(
    ("how", "code", "content"),
    [
        ("signal", learning(patient=True), "best so far"),
        ("file", learning(stops=True), "told by the file"),
        ("signal", learning(), "weights"),
        ("file", learning(), "weights"),
    ],
    ids=["heeds the signal", "heeds the file", "heeds no signal", "heeds no file"],
)
def test_training_that_is_to_stop_keeps_what_the_program_has_left(
    train: Callable[..., Path], how: str, code: str, content: str
) -> None:
    wish: list[bool] = []
    reports = Reports(lambda: wish.append(True))
    patience = "5 s" if content != "weights" else "100 ms"
    trainer = make(code, stop=how, stop_within=patience, grace="100 ms")
    left = train(trainer, report=reports, stop=lambda: bool(wish))
    assert (left / "model.onnx").read_text() == content


def test_training_that_is_stopped_before_it_has_a_model_has_failed(train: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError, match="has left no model"):
        train(make("while True: time.sleep(1)"), stop=lambda: True)


def test_wish_to_stop_is_not_kept_for_the_next_time(train: Callable[..., Path], workdir: Path) -> None:
    (workdir / "stop").touch()
    train(make("leave(content=str(Path(os.environ['LOOPCORE_STOP']).exists()))"))
    assert (workdir / "package" / "model.onnx").read_text() == "False"


# In a process of its own, as the node does it


async def call(trainer: CommandTrainer, snapshot: Snapshot, workdir: Path, **given: Any) -> Any:
    arguments = {"snapshot": snapshot.path, "base": None, "parameters": {}, "workdir": workdir}
    with anyio.fail_after(LIMIT_S):
        return await call_driver(
            CommandTrainer, trainer.options, "train", arguments, what="the trainer 'command'", cwd=workdir, **given
        )


async def test_what_the_program_prints_is_in_the_job_s_log(snapshot: Snapshot, workdir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await call(make("leave(); print('epoch 1')"), snapshot, workdir, log=log) == workdir / "package"
    assert "epoch 1\n" in log.read_text()


async def test_aborted_training_ends_the_program_in_good_order(snapshot: Snapshot, workdir: Path) -> None:
    code = """
        def end(*_):
            (workdir / "bye").touch()
            sys.exit(1)
        signal.signal(signal.SIGTERM, end)
        (workdir / "pid").write_text(str(os.getpid()))
        say(progress=0.1)
        while True: signal.pause()
    """
    with anyio.fail_after(LIMIT_S), anyio.CancelScope() as scope:
        await call(make(code), snapshot, workdir, report=Reports(scope.cancel))
    assert (workdir / "bye").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((workdir / "pid").read_text()), 0)
