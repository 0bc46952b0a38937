"""`kill -9` at any moment: what the node has answered for arrives whole, and counts once."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from anyio.abc import Process

from loopcore.package import write_package
from loopcore.testing import LoopbackServer, Reply, Request, make_jpeg
from loopcore.testing.servers import Late, LoseAnswer, Reset, Serve, Step
from loopcore.types import ModelInfo, SampleInfo

pytestmark = pytest.mark.anyio

PLUGIN = """
from loopcore import hookimpl
from loopcore.testing import AlwaysSelector, FixedBackend

class Fixed(FixedBackend):
    name = "fixed"

class Always(AlwaysSelector):
    name = "always"

@hookimpl
def loopcore_drivers():
    return [Fixed, Always]
"""

TOML = """
node.data_dir = "data"
server.port = 0
plugins.files = ["plugin.py"]
outbox.min_free = "0 MB"

[backend]
driver = "fixed"
model = "./model"

[[selectors]]
driver = "always"

[[sinks]]
driver = "http"
url = "{url}"
headers = {{ X-Life = "{life}" }}

[[sinks]]
driver = "folder"
path = "samples"
when.cameras = ["door"]
"""

CALLERS = 6
CAMERAS = ("gate", "gate", "gate", "door")
LIMIT_S = 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("weights")
    write_package(tmp_path / "model", ModelInfo(name="fixed", version="1", format="null"))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return tmp_path


class Receiver:
    """The peer of the sink `http`, and its books.

    Attributes:
        keys: Under which idempotency keys each content came, by its SHA-256.
        times: How often each key came.
        wrong: What was not whole, or not what its JSON says.
        honest: The lives, one for each process of the node, in which it is told the truth each time.
        repeated: What came twice in such a life.
    """

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = defaultdict(set)
        self.times: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.repeated: list[str] = []
        self.honest: set[str] = set()
        self._came: set[tuple[str, str]] = set()

    def __call__(self, request: Request) -> Reply:
        key = request.headers["idempotency-key"]
        info, image = _parts(request)
        digest = sha256(image).hexdigest()
        if (info.id, info.image_id, info.image_bytes) != (key, digest, len(image)):
            self.wrong.append(key)
        self.times[key] += 1
        life = request.headers["x-life"]
        if life in self.honest and (life, key) in self._came:
            self.repeated.append(key)
        self._came.add((life, key))
        had_it = key in self.keys[digest]
        self.keys[digest].add(key)
        return Reply(status=409 if had_it else 201)

    @property
    def ids(self) -> set[str]:
        return set(self.times)


def _parts(request: Request) -> tuple[SampleInfo, bytes]:
    boundary = b"--" + request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'[ ;]name="(\w+)"', head)
        assert name
        found[name[1].decode()] = content.removesuffix(b"\r\n")
    return msgspec.json.decode(found["sample"], type=SampleInfo), found["image"]


class Pictures:
    """JPEGs that differ: one picture with a comment in it, mostly small, one in five of 60 KB."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._jpeg = make_jpeg(1)

    def next(self) -> bytes:
        comment = self._random.randbytes(60_000 if self._random.random() < 0.2 else 200)
        return self._jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + self._jpeg[2:]


class Books:
    """What the callers know.

    Attributes:
        handed: The SHA-256 of all that was ever sent.
        promised: The ids that were answered, with the SHA-256 and the camera of their picture.
        refused: Answers that were neither an id nor broken off.
    """

    def __init__(self) -> None:
        self.handed: set[str] = set()
        self.promised: dict[str, tuple[str, str]] = {}
        self.refused: list[str] = []


@asynccontextmanager
async def node(folder: Path) -> AsyncGenerator[Process]:
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
    async with await anyio.open_process(command, cwd=folder, stdin=None, stdout=None) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                await end(process)


async def end(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)  # `process.kill` may take its exit code from whoever waits for it
    await process.wait()


async def url_of(process: Process) -> str:
    """Wait until it says where it listens."""
    assert process.stderr
    said = ""
    async for part in process.stderr:
        said += part.decode()
        if found := re.search(r"The node is up url=(\S+)\n", said):
            return found[1]
    raise AssertionError(said)


async def swallow(process: Process) -> None:
    """Keep the pipe empty, so that the node never waits for a reader of its log."""
    assert process.stderr
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        async for _ in process.stderr:
            pass


async def call(url: str, books: Books, pictures: Pictures, random: Random) -> None:
    """Send pictures one after the other until the node is gone, and note what it answers for."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT_S) as client:
        while True:
            picture, camera = pictures.next(), random.choice(CAMERAS)
            digest = sha256(picture).hexdigest()
            books.handed.add(digest)
            try:
                answer = await client.post(
                    f"/predict?camera={camera}", content=picture, headers={"Content-Type": "image/jpeg"}
                )
            except httpx.TransportError:
                return
            if answer.status_code != 200 or not answer.json()["sample_id"]:
                books.refused.append(answer.text)
                return
            books.promised[answer.json()["sample_id"]] = (digest, camera)


async def load_and_kill(folder: Path, books: Books, random: Random) -> None:
    """A node under load, killed after 50 to 300 ms of it."""
    async with node(folder) as process:
        url = await url_of(process)
        pictures = Pictures(random)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(swallow, process)
            for _ in range(CALLERS):
                tasks.start_soon(call, url, books, pictures, random)
            await anyio.sleep(random.uniform(0.05, 0.3))
            await end(process)


async def kill_while_it_starts(folder: Path, random: Random) -> None:
    """From before it has opened anything to a moment after it has begun to send."""
    async with node(folder) as process, anyio.create_task_group() as tasks:
        tasks.start_soon(swallow, process)
        await anyio.sleep(random.uniform(0.1, 0.4))
        await end(process)


def answers(random: Random, *, honest: bool) -> list[Step]:
    """How the receiver answers: often a little late, and where it is not honest, now and then not at all."""
    sound: list[Step] = [Serve(), *[Late(seconds=random.uniform(0, 0.03)) for _ in range(4)]]
    lies: list[Step] = [LoseAnswer(), LoseAnswer(sent=12), Reset(received=200), Reply(status=503)]
    share = 0 if honest else 0.03
    return [random.choice(lies if random.random() < share else sound) for _ in range(2000)]


async def drained(url: str) -> dict[str, Any]:
    """The last status, when nothing waits any more."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT_S) as client:
        while True:
            status: dict[str, Any] = (await client.get("/status")).json()
            if not any(sink["waiting"] for sink in status["sinks"].values()):
                return status
            await anyio.sleep(0.02)


def in_folder(folder: Path) -> dict[str, str]:
    """What the sink `folder` has, by id: the SHA-256 of the picture; anything half fails."""
    found = {}
    for record in (folder / "samples").rglob("*.json"):
        stored = json.loads(record.read_bytes())
        found[stored["sample"]["id"]] = sha256((record.parent / stored["image"]).read_bytes()).hexdigest()
    return found


async def campaign(folder: Path, rounds: int, seed: int) -> str:
    """Kill, restart, again; then let it finish, and compare the books. Returns a line of figures."""
    random, books, receiver = Random(seed), Books(), Receiver()
    lives = count()
    async with LoopbackServer(receiver) as server:

        def begin(*, honest: bool) -> None:
            life = str(next(lives))
            receiver.honest |= {life} if honest else set()
            (folder / "loop.toml").write_text(TOML.format(url=server.url, life=life))

        for _ in range(rounds):
            honest = random.random() < 0.5
            server.script(*answers(random, honest=honest))
            with anyio.fail_after(LIMIT_S):
                if random.random() < 0.25:
                    begin(honest=honest)
                    await kill_while_it_starts(folder, random)
                begin(honest=honest)
                await load_and_kill(folder, books, random)
            server.requests.clear()
        server.script()
        begin(honest=True)
        async with node(folder) as process, anyio.create_task_group() as tasks:
            with anyio.fail_after(LIMIT_S + rounds):
                url = await url_of(process)
                tasks.start_soon(swallow, process)
                status = await drained(url)
            tasks.cancel_scope.cancel()
    check(folder, books, receiver, status)
    more = len(receiver.ids - books.promised.keys())
    again = sum(receiver.times.values()) - len(receiver.times)
    figures = f"{len(books.promised)} promised, {more} arrived unpromised, {again} came again"
    return f"{rounds} kills: {figures}, 0 lost, 0 doubled"


def check(folder: Path, books: Books, receiver: Receiver, status: dict[str, Any]) -> None:
    assert not books.refused
    assert not receiver.wrong
    assert not receiver.repeated
    assert not books.promised.keys() - receiver.ids
    assert receiver.keys.keys() <= books.handed
    assert all(len(keys) == 1 for keys in receiver.keys.values())
    assert all(id_ in receiver.keys[digest] for id_, (digest, _) in books.promised.items())
    stored = in_folder(folder)
    assert set(stored.values()) <= books.handed
    assert {
        id_: digest for id_, (digest, camera) in books.promised.items() if camera == "door"
    }.items() <= stored.items()
    assert (status["outbox"]["quarantined"], status["outbox"]["drops"], status["outbox"]["count"]) == (0, {}, 0)
    assert [sink["rejected"] for sink in status["sinks"].values()] == [0, 0]
    left = [path for path in (folder / "data" / "outbox").rglob("*.seg") if path.stat().st_size]
    assert len(left) <= 1


@pytest.mark.parametrize(
    "rounds", [pytest.param(40, marks=pytest.mark.timeout(240)), pytest.param(1000, marks=pytest.mark.long)]
)
async def test_nothing_promised_is_lost_and_nothing_arrives_half_or_twice(folder: Path, rounds: int) -> None:
    print(await campaign(folder, rounds, seed=rounds))
