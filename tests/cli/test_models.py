"""`loopcore models`: what a person types, reads and gets as an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import fail_after, to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from loopcore.cli import main
from loopcore.deploy.modelstore import ModelStore
from loopcore.testing import make_model

pytestmark = pytest.mark.anyio

PLUGIN = """
from loopcore import hookimpl
from loopcore.testing import FixedBackend

class Fixed(FixedBackend):
    name = "fixed"

@hookimpl
def loopcore_drivers():
    return [Fixed]
"""
TOML = """
node.data_dir = "data"
server.port = 0
plugins.files = ["plugin.py"]
outbox.min_free = 0
backend.driver = "fixed"
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's folder with the models 1 and 2, of which 2 is active and 1 was before."""
    monkeypatch.setenv("LOOPCORE_DEBUG", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.toml").write_text(TOML)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "data").mkdir()
    store = ModelStore(tmp_path / "data" / "models")
    for version in "12":
        made = make_model(tmp_path / "made" / version, name="gate", version=version, content=version.encode())
        store.activate(store.stage(made.path))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["models", *args])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[None]:
    """A real node in a process of its own."""
    with fail_after(60):
        command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
        async with await anyio.open_process(command, cwd=folder, stdout=None) as process:
            assert process.stderr
            await BufferedByteReceiveStream(process.stderr).receive_until(b"The node is up", 100_000)
            try:
                yield
            finally:
                process.terminate()
    assert process.returncode == 0


def states(out: str) -> dict[str, str]:
    return {row["version"]: row["state"] for row in json.loads(out)["models"]}


@pytest.mark.parametrize("where", ["loop.toml", "data"])
def test_without_a_node_the_models_are_listed_from_the_files(run: Run, folder: Path, where: str) -> None:
    code, out, _ = run("list", where, "--json")
    assert (code, states(out)) == (0, {"2": "served last", "1": "served before"})


def test_a_list_is_a_table_and_says_what_is_chosen(run: Run, folder: Path) -> None:
    _, out, _ = run("list", "loop.toml")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "version", "format", "id", "state"]
    assert lines[1].split()[:3] == ["gate", "2", "null"]
    assert lines[-1] == "Chosen: follow."


@pytest.mark.parametrize(
    "command", [["use", "loop.toml", "1"], ["pause", "data"], ["back", "data"], ["forget", "data"]]
)
def test_without_a_node_nothing_is_changed(run: Run, folder: Path, command: list[str]) -> None:
    code, _, err = run(*command)
    assert code == 1
    assert "no node runs on" in err
    assert not (folder / "data" / "state.json").exists()


def test_a_folder_that_is_not_there_is_not_made(run: Run, folder: Path) -> None:
    (folder / "loop.toml").write_text(TOML.replace('"data"', '"nowhere"'))
    code, _, err = run("list", "loop.toml")
    assert code == 1
    assert "there is no data folder" in err
    assert not (folder / "nowhere").exists()


async def test_a_person_chooses_goes_back_and_follows_again(run: Run, folder: Path) -> None:
    steps: list[tuple[list[str], str]] = [
        (["use", "loop.toml", "1"], "gate 1 serves; chosen: 1.\n"),
        (["back", "loop.toml"], "gate 2 serves; chosen: pause.\n"),
        (["follow", "data"], "gate 2 serves; chosen: follow.\n"),
        (["pause", "data"], "gate 2 serves; chosen: pause.\n"),
        (["forget", "data"], "0 refusals forgotten.\n"),
    ]
    async with node(folder):
        for args, said in steps:
            assert await to_thread.run_sync(run, *args) == (0, said, "")
        code, _, err = await to_thread.run_sync(run, "use", "loop.toml", "9")
        assert code == 1
        assert "no model of version '9' is in the store (there: gate 2, gate 1)" in err
        _, out, _ = await to_thread.run_sync(run, "list", "data", "--json")
    assert json.loads(out)["choice"] == "pause"
    assert states(out) == {"2": "serves", "1": "served before"}
