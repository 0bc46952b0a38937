"""The campaign of real kills: SIGKILL under load, and the books of both sides compared."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import anyio

from loopcore.cli.torture.campaign import Finding, Progress, interrupts_held
from loopcore.cli.torture.worker import SINK, TABLE, image_of
from loopcore.collect.outbox import Outbox, Taker
from loopcore.errors import StorageError

_MOST_LINES = 120
_WHILE_IT_OPENS = 0.2


class Books:
    """What callers were told, and what a sink got."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.sent: set[str] = set()
        self.delivered: set[str] = set()

    def enter(self, line: str, finding: Finding) -> None:
        """A line of the worker."""
        word, _, name = line.strip().partition(" ")
        match word:
            case "accepted":
                self.accepted.add(name)
            case "sent":
                if name in self.delivered:
                    finding.note("again", f"{name} was delivered in an earlier round, and is sent again")
                self.sent.add(name)
            case "delivered":
                self.delivered.add(name)
            case "half":
                finding.note("half", f"{name} cannot be read, or is not what was accepted")
            case "opens":
                pass
            case _:
                finding.note("error", line.strip())


def kills(folder: Path, rounds: int, number: int, progress: Progress = lambda _: None) -> Finding:
    """Start a process that works with an outbox, kill it, and so on; then look at what is left.

    Args:
        folder: Where to make the outbox: a folder on the disk in question, that is not there or empty.
        rounds: How many kills.
        number: The seed.
        progress: Is told of rounds.

    Raises:
        StorageError: The process does not begin to work.
    """
    begun, rng = monotonic(), random.Random(number)
    finding, books = Finding(campaign="kills", what="rounds"), Books()
    for turn in range(rounds):
        lines = 1 if rng.random() < _WHILE_IT_OPENS else rng.randrange(1, _MOST_LINES)
        _kill_one(folder, turn * 1_000_000, lines, books, finding)
        finding.count += 1
        progress(1)
    anyio.run(_compare, folder, books, finding)
    finding.seconds = monotonic() - begun
    finding.detail = f"{len(books.accepted):,} accepted, {len(books.delivered):,} delivered before the last kill"
    return finding


def _kill_one(folder: Path, first: int, lines: int, books: Books, finding: Finding) -> None:
    command = [sys.executable, "-m", "loopcore.cli.torture.worker", str(folder), str(first)]
    with ExitStack() as stack:
        with interrupts_held():
            worker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603 - us
            stack.callback(worker.kill)
        assert worker.stdout
        for _ in range(lines):
            line = worker.stdout.readline()
            if not line:
                raise StorageError(f"the process that works with {folder} has ended with {worker.wait()}")
            books.enter(line, finding)
        worker.kill()
        for line in worker.stdout:
            if line.endswith("\n"):
                books.enter(line, finding)


async def _compare(folder: Path, books: Books, finding: Finding) -> None:
    async with Outbox(folder, TABLE, [Taker(name=SINK)]) as outbox:
        leases = await outbox.lease(SINK, max_count=1 << 30, max_bytes=1 << 60)
        waiting = set()
        for lease, sample in zip(leases, await outbox.read(leases), strict=True):
            if sample is None or sample.image != image_of(int(sample.info.source or 0)):
                finding.note("half", f"{lease.id} cannot be read, or is not what was accepted")
            else:
                waiting.add(lease.id)
    for name in sorted(books.accepted - books.sent - waiting):
        finding.note("lost", f"{name} was accepted, and is neither waiting nor sent")
    for name in sorted(books.delivered & waiting):
        finding.note("again", f"{name} was delivered, and still waits")
