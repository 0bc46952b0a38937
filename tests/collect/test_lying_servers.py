"""What delivery makes of a peer that is slow, wrong, lying, full or gone: with a real outbox, sink and connection.

| the peer, each time | to one sample among good ones | to all |
|---|---|---|
| 400 | rejected | paused |
| 401 | paused | paused |
| 403 | paused or waits | paused or waits |
| 404 | waits | waits |
| 405 | waits | waits |
| 408 | waits | waits |
| 409 | arrives | arrives |
| 413 | rejected | paused |
| 421 | waits | waits |
| 422 | rejected | paused |
| 425 | waits | waits |
| 429 with Retry-After | waits | waits |
| 500 | waits | waits |
| 503 | waits | waits |
| 503 with Retry-After | waits | waits |
| reset in the body | waits | waits |
| answer lost | waits | waits |
| answer cut | waits | waits |
| stall | waits | waits |

*rejected*: it lies in `rejected/` with the peer's answer, after another sample was accepted. *waits*: it stays and is
tried again, after all others. *paused*: all stay, and nothing is sent until a person has looked; refusals pause a sink
after ten in a row. *arrives*: 409 means that the peer has had it before. Where a sink may choose, both are named.

`HttpSinkSuite` runs every row for the built-in sink `http` and for every sink that a plugin brings; here is what lies
below HTTP, and the sink `folder`, whose peer is a disk.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from loopcore.drivers.folder_sink import FolderSink, FolderSinkOptions
from loopcore.drivers.http_sink import HttpSink, HttpSinkOptions
from loopcore.files import Disk
from loopcore.testing import LoopbackServer, Reply, Request, make_sample
from loopcore.testing.delivering import delivering
from loopcore.testing.faults import FAULTS, OF_ALL, OF_ONE, STALL, Fate, Fault
from loopcore.types import Receipt, Sample

pytestmark = pytest.mark.anyio

LIMIT_S = 20
SAMPLES = [make_sample(seed) for seed in range(12)]
IDS = [sample.info.id for sample in SAMPLES]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_table_above_is_what_the_suite_holds_sinks_to() -> None:
    def cell(fault: Fault, fates: dict[Any, Fate]) -> str:
        return " or ".join(sorted({fates[outcome] for outcome in fault.outcomes}))

    rows = [f"| {fault.name} | {cell(fault, OF_ONE)} | {cell(fault, OF_ALL)} |" for fault in (*FAULTS, STALL)]
    assert [line for line in (__doc__ or "").splitlines() if line.startswith("|")][2:] == rows


class Receiver:
    """A receiver that knows what it has by its id, and answers 409 to what comes again."""

    def __init__(self) -> None:
        self.has: list[str] = []

    def __call__(self, request: Request) -> Reply:
        key = request.headers["idempotency-key"]
        if key in self.has:
            return Reply(status=409)
        self.has.append(key)
        return Reply(status=201)


class TryingSink(HttpSink):
    """Lets a test wait for so many calls that failed."""

    def __init__(self, options: HttpSinkOptions) -> None:
        super().__init__(options)
        self.failed = 0
        self._changed = anyio.Event()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        try:
            return await super().send(samples)
        except Exception:
            self.failed += 1
            self._changed.set()
            self._changed = anyio.Event()
            raise

    async def has_failed(self, times: int) -> None:
        while self.failed < times:
            await self._changed.wait()


class Authority:
    """Certificates for loopback, good ones and others."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def server(self, name: str = "127.0.0.1", not_after: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        begin = datetime(2020, 1, 1, tzinfo=UTC) if not_after else None
        self._ca.issue_cert(name, not_before=begin, not_after=not_after).configure_cert(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def expired(authority: Authority) -> ssl.SSLContext:
    return authority.server(not_after=datetime(2021, 1, 1, tzinfo=UTC))


def another_name(authority: Authority) -> ssl.SSLContext:
    return authority.server(name="example.org")


def another_authority(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [(expired, "expired"), (another_name, "mismatch"), (another_authority, "verify failed")],
)
async def test_peer_whose_certificate_is_no_good_gets_nothing_and_costs_nothing(
    tmp_path: Path, authority: Authority, spoilt: Callable[[Authority], ssl.SSLContext], words: str
) -> None:
    receiver = Receiver()
    with anyio.fail_after(LIMIT_S):
        async with LoopbackServer(receiver, tls=spoilt(authority)) as server:
            sink = TryingSink(HttpSinkOptions(url=server.url.replace("http:", "https:"), ca=authority.file))
            async with delivering(sink, tmp_path / "outbox") as road:
                await road.keep(*SAMPLES)
                await sink.has_failed(2 * len(SAMPLES))
                assert (road.state, road.rejected, await road.waiting()) == ("retrying", {}, IDS)
                assert words in road.delivery.status()["last_error"]
            assert (server.requests, receiver.has) == ([], [])
        async with LoopbackServer(receiver, tls=authority.server()) as server:
            sink = TryingSink(HttpSinkOptions(url=server.url, ca=authority.file))
            async with delivering(sink, tmp_path / "outbox") as road:
                await road.arrives(SAMPLES)
    assert sorted(receiver.has) == sorted(IDS)


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://nobody.invalid/", "nobody.invalid"), ("http://127.0.0.1:9/", "127.0.0.1"), ("http://[::1]:9/", "::1")],
    ids=["name that is not known", "port that is closed", "address without a route"],
)
async def test_peer_that_is_not_there_costs_nothing(tmp_path: Path, url: str, words: str) -> None:
    receiver = Receiver()
    with anyio.fail_after(LIMIT_S):
        sink = TryingSink(HttpSinkOptions(url=url))
        async with delivering(sink, tmp_path / "outbox") as road:
            await road.keep(*SAMPLES)
            await sink.has_failed(len(SAMPLES))
            assert (road.state, road.rejected, await road.waiting()) == ("retrying", {}, IDS)
            assert words in road.delivery.status()["last_error"]
        async with (
            LoopbackServer(receiver) as server,
            delivering(HttpSink(HttpSinkOptions(url=server.url)), tmp_path / "outbox") as road,
        ):
            await road.arrives(SAMPLES)
    assert sorted(receiver.has) == sorted(IDS)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(status=302, headers={"location": "http://login.invalid/"}),
        Reply(status=307, headers={"location": "http://127.0.0.1:9/"}),
        Reply(headers={"content-type": "text/html"}, body=b"<html>Please log in"),
        Reply(status=511),
        Reply(status=200, headers={"content-length": "1000"}, body=b'{"id": "cut'),
        Reply(status=404, headers={"content-type": "text/html"}, body=b"<html>" + bytes(2_000_000)),
    ],
    ids=["sent elsewhere", "sent to another host", "portal", "login wanted", "shorter than it says", "endless page"],
)
async def test_wrong_url_or_a_network_that_wants_a_login_empties_nothing(tmp_path: Path, answer: Reply) -> None:
    receiver = Receiver()
    with anyio.fail_after(LIMIT_S):
        async with LoopbackServer(receiver) as server:
            server.treat(lambda _: answer)
            sink = TryingSink(HttpSinkOptions(url=server.url))
            sink.timeout_s = 0.5  # one of them never ends
            async with delivering(sink, tmp_path / "outbox") as road:
                await road.keep(*SAMPLES)
                await server.arrived(len(SAMPLES))
                assert (road.rejected, road.delivered, await road.waiting()) == ({}, [], IDS)
                server.treat(None)
                await road.arrives(SAMPLES)
    assert sorted(receiver.has) == sorted(IDS)


class FailingDisk(Disk):
    """Fails at one step, while it is told to, and lets a test wait for that."""

    def __init__(self) -> None:
        self.step = ""
        self.code = 0
        self.failed = 0

    def _maybe(self, step: str) -> None:
        if step == self.step:
            self.failed += 1
            raise OSError(self.code, os.strerror(self.code))

    def open(self, path: Path, *, append: bool = False) -> int:
        self._maybe("open")
        return super().open(path, append=append)

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        if self.step == "write":
            super().write(descriptor, [b"".join(parts)[:10]])
        self._maybe("write")
        super().write(descriptor, parts)

    def sync(self, descriptor: int) -> None:
        self._maybe("sync")
        super().sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._maybe("rename")
        super().rename(old, new)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._maybe("mkdir")
        super().mkdir(path, mode)


class TryingFolder(FolderSink):
    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(FolderSinkOptions(path=path), disk=disk)
        self.failed = anyio.Event()
        self._failures = 0

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        try:
            return await super().send(samples)
        except Exception:
            self._failures += 1
            if self._failures == 6:
                self.failed.set()
            raise


def stored(folder: Path) -> list[str]:
    """The ids of what is in the folder, each with its picture whole."""
    found = []
    for record in folder.rglob("*.json"):
        said = json.loads(record.read_bytes())
        assert (record.parent / said["image"]).stat().st_size == said["sample"]["image_bytes"]
        found.append(said["sample"]["id"])
    return sorted(found)


@pytest.mark.parametrize("step", ["open", "write", "sync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
async def test_disk_that_refuses_the_folder_sink_costs_nothing(tmp_path: Path, step: str, code: int) -> None:
    disk = FailingDisk()
    disk.step, disk.code = step, code
    sink = TryingFolder(tmp_path / "samples", disk)
    with anyio.fail_after(LIMIT_S):
        async with delivering(sink, tmp_path / "outbox") as road:
            await road.keep(*SAMPLES)
            await sink.failed.wait()
            assert (road.state, road.rejected, road.delivered) == ("retrying", {}, [])
            assert os.strerror(code) in road.delivery.status()["last_error"]
            assert stored(tmp_path / "samples") == []
            disk.step = ""
            await road.arrives(SAMPLES)
    assert stored(tmp_path / "samples") == sorted(IDS)
    assert not list((tmp_path / "samples").rglob("*.tmp"))


async def test_one_sample_that_a_folder_cannot_take_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    sink = FolderSink(FolderSinkOptions(path=folder))
    bad = SAMPLES[3].info
    (folder / "gate" / "2024-05-17" / f"{bad.id}.jpg" / "in the way").mkdir(parents=True)
    with anyio.fail_after(LIMIT_S):
        async with delivering(sink, tmp_path / "outbox") as road:
            await road.keep(*SAMPLES)
            await road.arrives([sample for sample in SAMPLES if sample.info is not bad])
            assert (road.rejected, await road.waiting()) == ({}, [bad.id])
            (folder / "gate" / "2024-05-17" / f"{bad.id}.jpg" / "in the way").rmdir()
            (folder / "gate" / "2024-05-17" / f"{bad.id}.jpg").rmdir()
            await road.arrives(SAMPLES)
    assert stored(folder) == sorted(IDS)
