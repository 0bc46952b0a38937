"""How fast a node with default settings delivers over HTTP to a receiver that answers after 50 ms, and what it costs.

    python -m benchmarks.delivery [--rounds 3] [--count 1000] [--long 10000]

A full outbox is made, then `loopcore run` is started on it in a process of its own; the receiver is here. The time goes
from the first request to the last answer. CPU is that of the node in this time; PSS is the node's own memory and its
share of what it shares, after a tenth of the long run and at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import anyio
import uvloop

from benchmarks.memory import cpu_s, pss_mb
from benchmarks.outbox import sample
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable

DELAY_S = 0.05
LIMIT_S = 100.0
GOAL_RATE = 300
GOAL_S = 5.0
TOML = """
node = {{ data_dir = "data" }}
server = {{ port = 0 }}
outbox = {{ min_free = 0 }}
sinks = [{{ driver = "http", url = "{url}" }}]
"""


class Receiver(asyncio.Protocol):
    """Just enough HTTP/1.1 to count requests; one for each connection.

    Attributes:
        count: Requests in all, of all connections.
        wanted: At how many `reached` is set.
        times: When the first request and the last answer were.
    """

    count = 0
    wanted = 0
    times = (0.0, 0.0)
    reached: asyncio.Event

    def __init__(self) -> None:
        self._missing = 0
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._head, self._missing, data = b"", int(length), rest
            Receiver.times = (Receiver.times[0] or time.perf_counter(), 0.0)
        self._missing -= len(data)
        if not self._missing:
            asyncio.get_running_loop().call_later(DELAY_S, self._answer)

    def _answer(self) -> None:
        self._transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        Receiver.count += 1
        if Receiver.count >= Receiver.wanted:
            Receiver.times = (Receiver.times[0], time.perf_counter())
            Receiver.reached.set()

    @classmethod
    async def reach(cls, count: int) -> None:
        """Wait for so many requests."""
        cls.wanted, cls.reached = count, asyncio.Event()
        if cls.count < count:
            await asyncio.wait_for(cls.reached.wait(), LIMIT_S)


@dataclass
class Figures:
    seconds: float
    rate: float
    cpu_ms: float
    early_mb: float
    late_mb: float


async def fill(folder: Path, count: int) -> None:
    async with Outbox(folder, OutboxTable(), [Taker(name="http")]) as outbox:
        for first in range(0, count, 50):
            async with anyio.create_task_group() as group:
                for number in range(first, min(first + 50, count)):
                    group.start_soon(outbox.accept, *sample(number))


@asynccontextmanager
async def node(folder: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "loopcore", "run", "loop.toml"]
    running = await asyncio.create_subprocess_exec(*command, cwd=folder, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.terminate()
        await running.wait()


async def deliver(folder: Path, count: int) -> Figures:
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    (folder / "loop.toml").write_text(TOML.format(url=url))
    await fill(folder / "data" / "outbox", count)
    Receiver.count, Receiver.times = 0, (0.0, 0.0)
    async with node(folder) as running:
        await Receiver.reach(1)
        used = cpu_s(running.pid)
        await Receiver.reach(count // 10)
        early = pss_mb(running.pid)
        await Receiver.reach(count)
        cpu, late = cpu_s(running.pid) - used, pss_mb(running.pid)
    server.close()
    took = Receiver.times[1] - Receiver.times[0]
    return Figures(took, count / took, cpu / count * 1e3, early, late)


def measure(base: Path, count: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="delivery", dir=base) as folder:
        return uvloop.run(deliver(Path(folder), count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), help="a folder on the disk in question")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--long", type=int, default=10_000, help="samples of the long run; 0 leaves it out")
    options = parser.parse_args()
    rounds = [measure(options.dir, options.count) for _ in range(options.rounds)]
    took, rate, cpu = (median(getattr(one, name) for one in rounds) for name in ("seconds", "rate", "cpu_ms"))
    print("| | measured | goal |")
    print("|---|---|---|")
    print(f"| {options.count} waiting samples of 60 KB are gone in | {took:.1f} s | {GOAL_S:.0f} s |")
    print(f"| images a second | {rate:.0f} | {GOAL_RATE} |")
    print(f"| CPU an image | {cpu:.2f} ms | |")
    if options.long:
        one = measure(options.dir, options.long)
        memory = f"{one.early_mb:.0f} and {one.late_mb:.0f} MB"
        print(f"| PSS after {options.long // 10} and {options.long} | {memory} | flat |")
        print(f"| images a second in that run | {one.rate:.0f} | {GOAL_RATE} |")


if __name__ == "__main__":
    main()
