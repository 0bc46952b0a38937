"""`loopcore learningloop …` starts a node from the environment alone, or says what it would start."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from loop import LoopServer, Report
from loopcore_learningloop.commands import overlaid
from loopcore_learningloop.environment import Choices, Role, configure
from peers.processes import Program, free_port

from loopcore.cli import main
from loopcore.testing import make_jpeg

WHOSE = {"LOOP_ORGANIZATION": "zoo", "LOOP_PROJECT": "penguins"}
FOREIGN = ("LOOP", "NODE_", "HOST", "USERNAME", "PASSWORD", "ORGANIZATION", "PROJECT", "DATA_FOLDER")

PLUGIN = """
from loopcore import hookimpl
from loopcore.testing import FixedBackend


class Mocked(FixedBackend):
    name = "mocked"
    formats = ("mocked",)


@hookimpl
def loopcore_drivers():
    return [Mocked]
"""

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `loopcore learningloop …` here with these variables: the exit code, and what went to stdout and stderr."""

    def run(*args: str, **variables: str) -> tuple[int, str, str]:
        for name in list(os.environ):
            if name.startswith(FOREIGN):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main(["learningloop", *args])
        captured = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run


def test_the_printed_toml_says_what_would_run(call: Call) -> None:
    variables = {**WHOSE, "LOOP_HOST": "loop.local", "LOOP_USERNAME": "me", "LOOP_PASSWORD": "k3y", "NODE_PORT": "8004"}
    code, out, err = call("detector", "--print-toml", **variables)
    made = configure(variables, Role.DETECTOR, Choices())
    assert (code, err) == (0, "")
    assert tomllib.loads(out) == made.table
    assert [line for line in out.splitlines() if line.startswith("#")] == [f"# {warning}" for warning in made.warnings]
    assert "k3y" not in out


@pytest.mark.parametrize("role", ["trainer", "annotator"])
def test_each_role_prints_its_own_table(call: Call, role: str) -> None:
    code, out, _ = call(role, "--print-toml", f"--{role}", "mine", LOOP_HOST="localhost:8080")
    assert code == 0
    assert tomllib.loads(out)[role]["driver"] == "mine"


def test_what_no_variable_says_is_said_in_toml(call: Call) -> None:
    more = 'backend.threads = 1\nplugins.files = ["mine.py"]'
    args = ("--backend", "mine", "--set", "inference.threads = 2", "--set", 'node.name = "gate-3"')
    code, out, _ = call("detector", "--print-toml", *args, LOOPCORE_SET=more, **WHOSE)
    table = tomllib.loads(out)
    assert code == 0
    assert table["backend"] == {"driver": "mine", "model": "follow", "threads": 1}
    assert table["inference"] == {"threads": 2}
    assert table["plugins"] == {"files": ["mine.py"]}
    assert table["node"] == {"name": "gate-3", "data_dir": "/data"}


def test_our_own_variables_choose_the_drivers(call: Call) -> None:
    _, out, _ = call("converter", "--print-toml", LOOPCORE_CONVERT="format_a-to-format_b", LOOPCORE_NAME="mill")
    assert tomllib.loads(out)["conversions"][0]["to"] == "format_b"
    assert tomllib.loads(out)["node"]["name"] == "mill"


@pytest.mark.parametrize(
    ("args", "variables", "sentence"),
    [
        (["detector"], {}, "LOOP_ORGANIZATION: a detector needs the id of its organization"),
        (["detector"], {**WHOSE, "NODE_PORT": "x"}, "NODE_PORT: expected a whole number from 0 to 65535, got 'x'"),
        (["detector", "--set", "backend"], WHOSE, "--set: expected TOML, such as 'inference.threads = 2'"),
        (["detector", "--backend", "onx"], WHOSE, "backend.driver: no backend 'onx' is installed"),
        (["trainer"], {}, "--trainer: say what trains: --trainer NAME, or --set 'trainer.command"),
        (["converter"], {}, "--convert: expected what to convert, such as yolov5_wts-to-onnx"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    call: Call, tmp_path: Path, args: list[str], variables: dict[str, str], sentence: str
) -> None:
    code, _, err = call(*args, DATA_FOLDER=str(tmp_path), **variables)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"loopcore: {sentence}")


def test_tables_come_together_and_all_else_is_replaced() -> None:
    below: dict[str, Any] = {"a": {"x": 1, "y": {"z": 1}}, "b": [1], "c": {"x": 1}}
    above: dict[str, Any] = {"a": {"y": {"w": 2}, "x": 3}, "b": [2], "c": 4, "d": {}}
    assert overlaid(below, above) == {"a": {"x": 3, "y": {"z": 1, "w": 2}}, "b": [2], "c": 4, "d": {}}


# A real process: nothing but the environment that a node of the reference has, and the driver of its own code


@pytest.fixture
def anyio_backend() -> str:
    """The node is a process of its own; whoever waits for it may as well be asyncio."""
    return "asyncio"


@asynccontextmanager
async def detector(loop: LoopServer, folder: Path, **more: str) -> AsyncGenerator[tuple[Program, httpx.AsyncClient]]:
    folder.mkdir(exist_ok=True)
    (folder / "mocked.py").write_text(PLUGIN)
    port = free_port()
    environment = {
        "LOOP_HOST": loop.host,
        "LOOP_USERNAME": "ranger",
        "LOOP_PASSWORD": "krill",
        "LOOP_ORGANIZATION": "zauberzeug",
        "LOOP_PROJECT": "demo",
        "DATA_FOLDER": str(folder / "data"),
        "NODE_HOST": "127.0.0.1",
        "NODE_PORT": str(port),
        "LOOPCORE_BACKEND": "mocked",
        "LOOPCORE_SET": 'plugins.files = ["mocked.py"]\noutbox.min_free = 0',
        "PYTHONWARNINGS": "error",
        **more,
    }
    command = [sys.executable, "-m", "loopcore", "learningloop", "detector"]
    async with Program(command, environment, folder) as running:
        await running.says("The node is up")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield running, client


def runs(version: str) -> Callable[[Report], bool]:
    return lambda report: report.body["current_model"] == version


def leave(outbox: Path, seed: int, queue: str) -> None:
    """What 0.27.0 has not sent."""
    name = f"2026-11-20_10:11:12.{seed:06}"
    (outbox / queue / name).mkdir(parents=True)
    (outbox / queue / name / f"image_{name}.jpg").write_bytes(make_jpeg(seed))
    (outbox / queue / name / f"image_{name}.json").write_text('{"tags": ["left"]}')


@pytest.mark.anyio
async def test_a_detector_moves_over_by_its_environment_and_its_data_folder(loop: LoopServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "uuids.json").write_text('{"my_detector": "3b241101-e2bb-4255-8caf-4136c566a962"}')
    leave(data / "outbox", 1, "normal")
    leave(data / "outbox", 2, "priority")
    async with detector(loop, tmp_path) as (running, client):
        report = await loop.detectors.until(runs("1.1"))
        assert report.body["uuid"] == "3b241101-e2bb-4255-8caf-4136c566a962"
        about = (await client.get("/about", headers={"Host": "detector.lan"})).json()
        assert about["model_info"]["version"] == "1.1"
        assert about["version_control"] == "follow_loop"
        headers = {"autoupload": "all", "tags": "new"}
        answer = await client.post("/detect", files={"file": make_jpeg(3)}, headers=headers)
        assert answer.status_code == 200
        uploads = await loop.uploads.wait(3)
        assert sorted(upload.metadata["tags"][0] for upload in uploads) == ["left", "left", "new"]
        await running.says("taken over count=2")
        assert await running.end() == 0
    assert "krill" not in running.said
    assert not list((data / "outbox").glob("*/*/image_*"))


@pytest.mark.anyio
async def test_the_default_of_the_environment_wins_at_each_start_and_else_the_last_choice_is_kept(
    loop: LoopServer, tmp_path: Path
) -> None:
    async def mode(client: httpx.AsyncClient) -> str:
        return str((await client.get("/model_version")).json()["version_control"])

    async with detector(loop, tmp_path, VERSION_CONTROL_DEFAULT="PAUSE") as (_, client):
        assert await mode(client) == "pause"
        assert (await client.put("/model_version", content="follow_loop")).status_code == 200
        assert await mode(client) == "follow_loop"
    async with detector(loop, tmp_path, VERSION_CONTROL_DEFAULT="PAUSE") as (_, client):
        assert await mode(client) == "pause"
    async with detector(loop, tmp_path) as (_, client):
        assert await mode(client) == "follow_loop"
        await client.put("/model_version", content="pause")
    async with detector(loop, tmp_path) as (_, client):
        assert await mode(client) == "pause"
