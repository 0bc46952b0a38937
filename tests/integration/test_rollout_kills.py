"""`kill -9` while a model comes: the old one or the new one serves after the restart, and a deadly one is given up."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import fail_after
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from loopcore.deploy.modelstore import ModelStore
from loopcore.node import control
from loopcore.testing import make_model

pytestmark = pytest.mark.anyio

PLUGIN = """
import os
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path

from loopcore import hookimpl
from loopcore.abc import DeploymentTarget, ModelRegistry, Platform
from loopcore.errors import ModelError
from loopcore.files import Disk
from loopcore.package import open_folder
from loopcore.testing import FixedBackend

THERE = Path(__file__).parent / "there"
steps = int(os.environ.get("STEPS", "-1"))


def counted(method):
    def call(self, path, *rest, **named):
        global steps
        if "models" in str(path):
            steps -= 1
            if steps == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return method(self, path, *rest, **named)

    return call


for name in ("open", "rename", "mkdir", "sync_folder"):
    setattr(Disk, name, counted(getattr(Disk, name)))


class Shelf(ModelRegistry, DeploymentTarget):
    async def list(self):
        return [open_folder(path).info for path in THERE.iterdir() if path.is_dir()]

    async def fetch(self, info, format, into):
        shutil.copytree(THERE / info.version, into, dirs_exist_ok=True)

    async def publish(self, package, job=None):
        raise ModelError("no")

    async def target(self):
        return open_folder(THERE / (THERE / "target").read_text()).info

    async def assign(self, model):
        raise ModelError("no")

    async def report(self, status):
        pass


class Acme(Platform):
    name = "acme"

    async def capability(self, kind):
        return Shelf() if issubclass(Shelf, kind) else None


class Fixed(FixedBackend):
    name = "fixed"

    @asynccontextmanager
    async def __asynccontextmanager__(self):
        if self.model.info.version == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        yield self


@hookimpl
def loopcore_drivers():
    return [Fixed, Acme]
"""
TOML = """
node.data_dir = "data"
server.port = 0
plugins.files = ["plugin.py"]
outbox.min_free = 0
backend.driver = "fixed"

[[platforms]]
driver = "acme"

[[rollouts]]
from = "acme"
every = "100 ms"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node on which the model 1 serves, and a platform that has `2` and `deadly`, too."""
    (tmp_path / "loop.toml").write_text(TOML)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    for version in ("1", "2", "deadly"):
        make_model(tmp_path / "there" / version, name="gate", version=version, content=version.encode())
    (tmp_path / "data").mkdir()
    store = ModelStore(tmp_path / "data" / "models")
    store.activate(store.stage(tmp_path / "there" / "1"))
    return tmp_path


@asynccontextmanager
async def node(folder: Path, steps: int = -1) -> AsyncGenerator[Process]:
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
    env = {"STEPS": str(steps), "PATH": "/usr/bin:/bin"}
    async with await anyio.open_process(command, cwd=folder, env=env, stdout=None) as process:
        assert process.stderr
        try:
            with suppress(anyio.EndOfStream, anyio.IncompleteRead):  # it has died before
                await BufferedByteReceiveStream(process.stderr).receive_until(b"The node is up", 100_000)
            yield process
        finally:
            if process.returncode is None:
                process.terminate()


async def until(folder: Path, state: str) -> Mapping[str, Any]:
    """The node's status once its rollout stands so."""
    while True:
        status: Mapping[str, Any] = await control(folder / "data").call("status")
        if status["rollouts"][0]["state"] == state:
            return status


# Of the 13 steps into the store and into service: a file, its folder, the move to its place, the record.
@pytest.mark.parametrize("steps", [3, 8, 10, 12])
async def test_a_model_whose_way_was_cut_off_comes_after_the_restart(folder: Path, steps: int) -> None:
    (folder / "there" / "target").write_text("2")
    with fail_after(60):
        async with node(folder, steps) as process:
            assert await process.wait() == -signal.SIGKILL
        active = ModelStore(folder / "data" / "models").active()
        assert active is not None
        assert active.info.version in ("1", "2")
        async with node(folder):
            status = await until(folder, "current")
    assert status["model"]["version"] == "2"
    left = [path.name for path in (folder / "data" / "models").iterdir() if path.name.startswith((".draft", ".arr"))]
    assert left == []


async def test_a_model_that_kills_the_node_is_tried_twice_and_then_refused(folder: Path) -> None:
    (folder / "there" / "target").write_text("deadly")
    with fail_after(60):
        for _ in range(2):
            async with node(folder) as process:
                assert await process.wait() == -signal.SIGKILL
        async with node(folder):
            status = await until(folder, "refused")
            assert status["model"]["version"] == "1"
            assert "has died 2 times in a row" in status["rollouts"][0]["error"]
            (folder / "there" / "target").write_text("2")
            status = await until(folder, "current")
    assert status["model"]["version"] == "2"
