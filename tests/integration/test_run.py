"""`loopcore run` as a process: it ends when it is told to, and what it has accepted outlives it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from loopcore.package import write_package
from loopcore.testing import make_jpeg
from loopcore.types import ModelInfo

PLUGIN = """
from collections.abc import Sequence
from loopcore import hookimpl
from loopcore.testing import AlwaysSelector, FixedBackend, MemorySink

class Fixed(FixedBackend):
    name = "fixed"

class Always(AlwaysSelector):
    name = "always"

@hookimpl
def loopcore_drivers():
    return [Fixed, Always]
"""

TOML = """
[node]
data_dir = "data"

[server]
port = 0

[plugins]
files = ["plugin.py"]

[backend]
driver = "fixed"
model = "./model"

[[selectors]]
driver = "always"

[[sinks]]
driver = "folder"
path = "samples"
"""

JPEG = {"Content-Type": "image/jpeg"}


class Process:
    """A node, and what it says."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        self.said = ""
        assert self.process.stderr
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"url=(\S+)", line):
                self.url = found[1]
                return
        raise AssertionError(self.said)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        self.said += said
        return self.process.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("weights")
    write_package(tmp_path / "model", ModelInfo(name="fixed", version="1", format="null"))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "loop.toml").write_text(TOML)
    return tmp_path


@contextmanager
def node(folder: Path) -> Iterator[Process]:
    running = Process(folder)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def delivered(folder: Path) -> set[str]:
    return {json.loads(path.read_text())["sample"]["id"] for path in (folder / "samples").rglob("*.json")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        select_nothing(0.02)


def select_nothing(seconds: float) -> None:
    """Let other processes run; the condition is asked again after that."""
    signal.sigtimedwait([], seconds)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_node_cleanly(folder: Path, number: int, code: int) -> None:
    with node(folder) as running:
        answer = httpx.post(f"{running.url}/predict", content=make_jpeg(1), headers=JPEG)
        assert answer.json()["sample_id"]
        assert running.end(number) == code
    assert "Traceback" not in running.said


def test_a_second_ctrl_c_does_not_cut_the_end_short(folder: Path) -> None:
    with node(folder) as running:
        port = int(running.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
            assert httpx.get(f"{running.url}/health").status_code == 200  # so it has heard of the other one as well
            running.process.send_signal(signal.SIGINT)
            wait_until(lambda: refuses(port))
            assert running.end(signal.SIGINT) == 130
            assert half.recv(100).startswith(b"HTTP/1.1 503 ")
    assert "The node is ending" in running.said
    assert "Traceback" not in running.said


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def test_what_was_answered_with_an_id_survives_kill_9_and_arrives(folder: Path) -> None:
    (folder / "loop.toml").write_text(TOML.replace('path = "samples"', 'path = "samples"\nbetween = "00:00-00:00"'))
    promised = set()
    for round in range(3):
        with node(folder) as running, httpx.Client(base_url=running.url) as client:
            for number in range(5):
                answer = client.post("/predict", content=make_jpeg(10 * round + number), headers=JPEG)
                promised.add(answer.json()["sample_id"])
            running.end(signal.SIGKILL)
    assert len(promised) == 15
    assert not delivered(folder)
    (folder / "loop.toml").write_text(TOML)
    with node(folder):
        wait_until(lambda: delivered(folder) >= promised)
    assert delivered(folder) == promised


def test_an_address_that_is_taken_ends_the_start_with_2_and_one_sentence(folder: Path) -> None:
    with node(folder) as running:
        port = running.url.rpartition(":")[2]
        other = folder / "other.toml"
        other.write_text(TOML.replace("port = 0", f"port = {port}").replace('"data"', '"other"'))
        command = [sys.executable, "-m", "loopcore", "run", str(other)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr
