"""A training on a whole node that is killed, again and again: it is carried through, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loopcore.testing import make_jpeg

PLATFORM = '''
import json, os, signal
from pathlib import Path

import anyio

from loopcore import Options, hookimpl
from loopcore.abc import Accepted, ImageStore, Job, JobQueue, ModelRegistry, Platform, StoredImage
from loopcore.drivers.command_trainer import CommandTrainer
from loopcore.testing import NullBackend
from loopcore.types import Box

HERE = Path(__file__).parent


def point(name):
    """Here the node may be killed, once for each time that the test says so."""
    fate = HERE / "kill"
    if fate.exists() and fate.read_text() == name:
        fate.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def keep(name, content):
    (HERE / name).parent.mkdir(exist_ok=True)
    (HERE / name).write_text(json.dumps(content))


class Images(ImageStore):
    async def images(self, states=()):
        return sorted(path.stem for path in (HERE / "images").iterdir())

    async def fetch(self, images, into, got):
        for number, name in enumerate(images):
            if number == 1:
                point("fetch images")
            file = into / f"{name}.jpg"
            if not file.exists():
                data = (HERE / "images" / file.name).read_bytes()
                file.with_suffix(".part").write_bytes(data)
                file.with_suffix(".part").rename(file)
            box = Box(label="cat", x=1, y=1, width=9, height=9)
            got(StoredImage(id=name, file=file.name, annotations=(box,), set="train"))

    async def add(self, image, annotations):
        raise NotImplementedError

    async def predictions(self, predictions, model):
        keep("told/predictions", sorted(predictions))
        point("predictions")


class Models(ModelRegistry):
    async def list(self):
        return []

    async def fetch(self, info, format, into):
        raise NotImplementedError

    async def publish(self, package, job=None):
        file = HERE / "told" / "published"
        known = json.loads(file.read_text()) if file.exists() else []
        keep("told/published", sorted({*known, package.info.id}))
        point("published")
        return package.info


class Queue(JobQueue):
    def __init__(self):
        self._images, self._models = Images(), Models()

    async def serve(self, worker, *, task_status):
        task_status.started()
        if not (HERE / "accepted").exists():
            assert await worker.offer(Job(id="job-1", labels=("cat",))) == Accepted()
            (HERE / "accepted").touch()
            point("accepted")
        await anyio.sleep_forever()

    def images(self, job):
        return self._images

    def models(self, job):
        return self._models

    async def score(self, state):
        point(f"score of epoch {state.score.epoch}")
        keep("told/score", state.score.epoch)


class Shelf(Platform):
    name = "shelf"

    def __init__(self, options):
        super().__init__(options)
        self._queue = Queue()

    async def capability(self, kind):
        return self._queue if kind is JobQueue else None


class Counting(CommandTrainer):
    name = "counting"


class Blind(NullBackend):
    name = "blind"


@hookimpl
def loopcore_drivers():
    return [Shelf, Counting, Blind]
'''

PROGRAM = """
import json, os, sys, time
from pathlib import Path
work, package = Path(os.environ["LOOPCORE_WORKDIR"]), Path(os.environ["LOOPCORE_PACKAGE"])
with (work / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
book = work / "epochs"
for epoch in range(int(book.read_text()) + 1 if book.exists() else 1, 4):
    (package / "model.null").write_text(f"epoch {epoch}")
    book.write_text(str(epoch))
    print(json.dumps({"progress": epoch / 3, "score": {"epoch": epoch}}), flush=True)
    if epoch == 2 and not (work / "been here").exists():
        (work / "been here").touch()
        time.sleep(60)  # the node is killed meanwhile
"""

TOML = """
[node]
name = "gate-3"
data_dir = "data"
[server]
port = 0
[plugins]
files = ["shelf.py"]
[[platforms]]
driver = "shelf"
[trainer]
driver = "counting"
command = [{python!r}, "-I", "-S", "program.py"]
folder = "."
formats = ["null"]
exit_after = true
"""

KILLS = ["accepted", "fetch images", "score of epoch 1", "published", "predictions"]


def run(folder: Path) -> int:
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
    with (folder / "log").open("ab") as log:
        return subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=50, check=False).returncode


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what a killed node leaves behind is not known so well")
def test_training_survives_kills_in_every_step_and_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "shelf.py").write_text(PLATFORM)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "loop.toml").write_text(TOML.format(python=sys.executable))
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(make_jpeg(number))
    for kill in KILLS:
        (tmp_path / "kill").write_text(kill)
        assert run(tmp_path) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert run(tmp_path) == 0, (tmp_path / "log").read_text()
    told = {path.name: json.loads(path.read_text()) for path in (tmp_path / "told").iterdir()}
    assert len(told.pop("published")) == 1
    assert told == {"score": 3, "predictions": ["0", "1", "2", "3"]}
    job = tmp_path / "data" / "train" / "jobs" / "job-1"
    assert (job / "work" / "package" / "model.null").read_text() == "epoch 3"
    assert not (tmp_path / "data" / "train" / "job.json").exists()
    pids = [int(line) for line in (job / "work" / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
