"""How fast the pictures of a data set come from a Learning Loop, and what each of them costs.

    python -m benchmarks.download [--rounds 5] [--pictures 2000] [--reference 300]

Compared in turns, each in a process of its own: `ImageStore.fetch` of the plugin, which asks what is known of each
picture, checks it and writes it atomically; plain concurrent clients, which do nothing but write what comes; and the
released reference (learning-loop-node 0.27.0, in its own environment from `tests/peers`), with `jpeginfo` if that is
installed. The Loop is here, answers at once or after 20 ms, and knows just enough HTTP. CPU is that of the client with
its children.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any, cast
from urllib.parse import unquote

import numpy as np
import uvloop

from loopcore.imaging import encode_jpeg
from tests.peers import PROGRAMS, PeerUnavailable, python_of

LATENCIES_MS = (0, 20)
SIZE = 60_000
GOAL_OF_PLAIN = 0.75
GOAL_OF_REFERENCE = 20
GOAL_CPU = 0.15
LIMIT_S = 300
PEER = "learning-loop-node-0.27.0"
REFERENCE = PROGRAMS / "download.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), help="a folder on the disk in question")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--reference", type=int, default=300, help="pictures for the reference; 0 leaves it out")
    parser.add_argument("--client", nargs=3, metavar=("KIND", "PORT", "PICTURES"), help=argparse.SUPPRESS)
    parser.add_argument("--loop", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop is not None:
        uvloop.run(_serve(options.loop))
    elif options.client:
        kind, port, count = options.client
        print(json.dumps(_client(kind, int(port), int(count), options.dir)))
    else:
        compare(options.dir, options.rounds, options.pictures, options.reference)


def compare(base: Path, rounds: int, pictures: int, reference: int) -> None:
    clients = {"loopcore": pictures, "aiohttp 16": pictures, "aiohttp 64": pictures, "httpx 16": pictures}
    python = _reference_python() if reference else None
    if python:
        clients["reference"] = reference
    print("| the Loop answers after | client | pictures a second | CPU a picture |\n|---|---|---|---|")
    for latency_ms in LATENCIES_MS:
        figures: dict[str, list[tuple[float, float]]] = {client: [] for client in clients}
        with _loop(latency_ms / 1000) as port:
            for number in range(rounds):
                for client, count in clients.items():
                    if client != "reference" or number < 2:  # its pace is a sleep, which does not vary
                        figures[client].append(_measure(client, port, count, base, python))
        _show(latency_ms, figures)


def _show(latency_ms: int, figures: dict[str, list[tuple[float, float]]]) -> None:
    rates = {client: median(rate for rate, _ in each) for client, each in figures.items()}
    costs = {client: median(cpu for _, cpu in each) for client, each in figures.items()}
    for client in figures:
        print(f"| {latency_ms} ms | {client} | {rates[client]:.0f} | {costs[client]:.2f} ms |")
    # Neighbours come and go within a run: of each round the ratio, of the ratios the median.
    plain = [figures[client] for client in figures if client not in {"loopcore", "reference"}]
    best = [max(rate for rate, _ in turns) for turns in zip(*plain, strict=True)]
    ratio = median(rate / other for (rate, _), other in zip(figures["loopcore"], best, strict=True))
    print(f"| {latency_ms} ms | to the best plain client of each round | {ratio:.2f} (goal {GOAL_OF_PLAIN}) | |")
    if "reference" in figures:
        times = rates["loopcore"] / rates["reference"]
        share = costs["loopcore"] / costs["reference"]
        against = f"{times:.0f} times (goal {GOAL_OF_REFERENCE}) | {share:.2f} (goal {GOAL_CPU})"
        print(f"| {latency_ms} ms | to the reference | {against} |")


def _measure(client: str, port: int, count: int, base: Path, python: Path | None) -> tuple[float, float]:
    """Pictures a second, and CPU in milliseconds a picture."""
    command = [sys.executable, "-m", "benchmarks.download", str(base), "--client", client, str(port), str(count)]
    if client == "reference":
        command = [str(python), str(REFERENCE), str(port), str(count), str(base)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    if figures["files"] != count:
        raise SystemExit(f"{client} brought {figures['files']} of {count} pictures")
    return count / figures["s"], figures["cpu"] / count * 1000


def _reference_python() -> Path | None:
    try:
        return python_of(PEER)
    except PeerUnavailable as exc:
        print(f"without the reference: {exc}", file=sys.stderr)
        return None


# The clients


def _client(kind: str, port: int, count: int, base: Path) -> dict[str, float]:
    name, _, connections = kind.partition(" ")
    run = {"loopcore": _by_loopcore, "aiohttp": _by_aiohttp, "httpx": _by_httpx}[name]
    with tempfile.TemporaryDirectory(prefix="download", dir=base) as folder:
        url = f"http://127.0.0.1:{port}"
        took, cpu = uvloop.run(run(url, _ids(count), Path(folder), int(connections or 0)))
        return {"s": took, "cpu": cpu, "files": len(list(Path(folder).iterdir()))}


async def _by_loopcore(url: str, ids: Sequence[str], into: Path, _: int) -> tuple[float, float]:
    import aiohttp  # noqa: F401 - what is imported late is imported now, as for the others
    import httpx_aiohttp  # noqa: F401
    from loopcore_learningloop.platform import Platform

    from loopcore.abc import ImageStore, StoredImage
    from loopcore.options import Secret

    platform = Platform(Platform.Options(url=url, organization="o", project="p", username="u", password=Secret("p")))
    got: list[StoredImage] = []
    async with platform:
        store = await platform.capability(ImageStore)
        if store is None:
            raise SystemExit("the platform keeps no images")
        started = _now()
        await store.fetch(ids, into, got.append)
    if not all(image.file for image in got):
        raise SystemExit(f"{sum(not image.file for image in got)} pictures are missing")
    return _since(started)


async def _by_aiohttp(url: str, ids: Sequence[str], into: Path, connections: int) -> tuple[float, float]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def fetch(path: str) -> bytes:
            async with session.get(url + path) as answer:
                return await answer.read()

        return await _all(fetch, ids, into, connections)


async def _by_httpx(url: str, ids: Sequence[str], into: Path, connections: int) -> tuple[float, float]:
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=60) as session:

        async def fetch(path: str) -> bytes:
            return (await session.get(url + path)).content

        return await _all(fetch, ids, into, connections)


async def _all(
    fetch: Callable[[str], Awaitable[bytes]], ids: Sequence[str], into: Path, connections: int
) -> tuple[float, float]:
    waiting = iter(ids)

    async def work() -> None:
        for image in waiting:
            (into / f"{image}.jpg").write_bytes(await fetch(f"/api/o/projects/p/images/{image}/main"))

    started = _now()
    await asyncio.gather(*(work() for _ in range(connections)))
    return _since(started)


def _ids(count: int) -> list[str]:
    return [f"{number:08x}-0000-4000-8000-000000000000" for number in range(count)]


def _now() -> tuple[float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def _since(started: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - started[0], now[1] - started[1]


# The Loop


class Loop(asyncio.Protocol):
    """Just enough of one, with one request at a time on each connection."""

    def __init__(self, picture: bytes, latency_s: float) -> None:
        self._latency_s = latency_s
        self._picture = _answer(picture, "image/jpeg")
        self._waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        head, end, body = self._waiting.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length or 0):
            return
        self._waiting = b""
        answer = self._answered(head.split(b" ", 2)[1].decode())
        if self._latency_s:
            asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, answer)
        else:
            self._transport.write(answer)

    def _answered(self, target: str) -> bytes:
        if target.endswith("/main"):
            return self._picture
        if target.endswith("/login"):
            return _answer(b"{}", "application/json", "set-cookie: session=it; Path=/")
        told: dict[str, Any] = {"categories": [{"id": "c", "name": "box", "type": "box"}]}
        if "/images?ids=" in target:
            told = {"images": [_told(image) for image in unquote(target.partition("ids=")[2]).split(",")]}
        return _answer(json.dumps(told).encode(), "application/json")


def _told(image: str) -> dict[str, Any]:
    box = {"category_id": "c", "x": 1, "y": 2, "width": 30, "height": 40}
    return {"id": image, "set": "train", "state": "complete", "tags": [], "box_annotations": [box] * 3}


def _answer(body: bytes, media: str, *more: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-type: {media}", f"content-length: {len(body)}", *more]
    return "\r\n".join((*lines, "", "")).encode() + body


@contextmanager
def _loop(latency_s: float) -> Iterator[int]:
    """The Loop, in a process of its own; its port."""
    command = [sys.executable, "-m", "benchmarks.download", "--loop", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield int(cast("IO[bytes]", process.stdout).readline())
        finally:
            process.terminate()


async def _serve(latency_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(partial(Loop, _picture(), latency_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _picture() -> bytes:
    """Noise, at the quality that makes it as large as a camera's picture of 640 × 480."""
    noise = np.random.default_rng(1).normal(128, 18, (480, 640, 3)).clip(0, 255).astype(np.uint8)
    return min((encode_jpeg(noise, quality) for quality in range(40, 96)), key=lambda one: abs(len(one) - SIZE))


if __name__ == "__main__":
    main()
