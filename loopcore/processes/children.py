"""A program as a supervised child: it, and all that it starts, ends with the block."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from tempfile import mkdtemp

import anyio
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, create_task_group, to_thread
from anyio.abc import Process

from loopcore.errors import first
from loopcore.processes.limits import Limits, environment
from loopcore.processes.lines import Lines, Log

_log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long a child may take to end after SIGTERM; then comes SIGKILL."""

KILL_S = 10.0
"""How long the kernel may take to end what was killed: what hangs in a driver cannot be killed at all."""

START_S = 30.0
"""How long the start may take; a machine that swaps takes seconds."""

_SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))


class Child:
    """A running program.

    Attributes:
        tail: The last lines that it wrote, for people.
    """

    def __init__(self, process: Process, line: socket.socket, grace_s: float) -> None:
        self.tail: deque[str] = deque(maxlen=20)
        self._process = process
        self._line = line
        self._grace_s = grace_s
        self._ended = anyio.Event()

    async def wait(self) -> int:
        """Wait until it, and all that it has started, has ended.

        Returns:
            Its exit code; if a signal has ended it, the signal's number, negative.
        """
        await self._ended.wait()
        return self._process.returncode or 0

    async def stop(self, grace_s: float | None = None) -> int:
        """SIGTERM for it and its process group, SIGKILL for all that is left after the grace; then as `wait`."""
        await self._terminate(self._grace_s if grace_s is None else grace_s)
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL for it and all that it has started; nothing happens if it has ended."""
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    async def _started(self) -> None:
        with anyio.fail_after(START_S):
            await anyio.wait_readable(self._line)
        said = self._line.recv(1000)
        if said == b"+":
            return
        number, _, _ = said.decode(errors="replace").removeprefix("-").partition(" ")
        code = int(number) if number.isdigit() else 0
        raise OSError(code, os.strerror(code) if code else "the supervisor has ended")

    async def _terminate(self, grace_s: float) -> None:
        with suppress(OSError):
            self._line.send(b"t")
        with anyio.move_on_after(grace_s):
            await self._process.wait()
        self.kill()
        await self._process.wait()

    async def _run(self, stdin: bytes, heard: Callable[[str], None] | None, log: Log | None) -> None:
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._feed, stdin)
                await self._listen(heard, log)
                await self._process.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def _feed(self, stdin: bytes) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenResourceError, ClosedResourceError):  # it need not read
                await self._process.stdin.send(stdin)
            await self._process.stdin.aclose()

    async def _listen(self, heard: Callable[[str], None] | None, log: Log | None) -> None:
        lines = Lines()
        out = self._process.stdout
        with suppress(EndOfStream, BrokenResourceError, ClosedResourceError):
            while out is not None:
                data = await out.receive()
                if log is not None:
                    await to_thread.run_sync(log.write, data)
                self._hear(lines.feed(data), heard)
        self._hear(lines.finish(), heard)

    def _hear(self, lines: Sequence[str], heard: Callable[[str], None] | None) -> None:
        self.tail.extend(lines)
        if heard is not None:
            for line in lines:
                heard(line)

    async def _end(self) -> None:
        with CancelScope(shield=True):
            with anyio.move_on_after(self._grace_s + KILL_S):
                await self._terminate(self._grace_s)
                await self._ended.wait()
                return
            _log.error("A child cannot be killed and is left behind pid=%s", self._process.pid)
            with suppress(ProcessLookupError):
                self._process.kill()


@asynccontextmanager
async def child(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    stdin: bytes = b"",
    fds: Sequence[int] = (),
    log: Path | None = None,
    heard: Callable[[str], None] | None = None,
    grace_s: float = GRACE_S,
) -> AsyncGenerator[Child]:
    """Run a program for the length of the block.

    It has a session and a process group of its own, no new privileges, a temporary folder of its own, and of the
    environment what programs need to run at all. When the block ends, or this process dies, so does the program with
    all that it has started.

    Args:
        command: The program and its arguments, which everybody on the machine can read.
        cwd: Its working folder.
        env: More environment, likewise not for secrets: the program's children inherit it.
        limits: What it may use.
        stdin: What it reads.
        fds: Further descriptors that it gets, under the same numbers.
        log: What it writes is appended to this file.
        heard: Called with each line that it writes to stdout or stderr, in the event loop's thread.
        grace_s: How long it may take to end after SIGTERM.

    Raises:
        OSError: It cannot be started.
        TimeoutError: The machine is too busy to start it.
    """
    limits = limits or Limits()
    temporary = Path(await to_thread.run_sync(partial(mkdtemp, prefix="loopcore-")))
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        plan = {"line": theirs.fileno(), "fds": list(fds), "limits": limits.as_resources()}
        process = await anyio.open_process(
            [sys.executable, "-I", "-S", _SUPERVISOR, json.dumps(plan), *command],
            stdin=PIPE if stdin else DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=cwd,
            env=environment(env or {}, temporary),
            start_new_session=True,
            pass_fds=(theirs.fileno(), *fds),
        )
        theirs.close()
        error: Exception | None = None
        try:
            async with create_task_group() as tasks:
                one = Child(process, ours, grace_s)
                tasks.start_soon(one._run, stdin, heard, Log(log) if log else None)
                try:
                    await one._started()
                    yield one
                finally:
                    await one._end()
                    tasks.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001 - raised below, out of its group
            error = first(group)
        finally:
            with CancelScope(shield=True):
                await process.aclose()
        if error is not None:
            raise error
    finally:
        theirs.close()
        ours.close()
        with CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, temporary, ignore_errors=True))


def ending(returncode: int) -> str:
    """How a program ended, in words that follow its name: `ended with exit code 3`, `was killed by SIGSEGV`."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    number = -returncode
    name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
    reasons: dict[int, str] = {
        signal.SIGKILL: ", perhaps because memory ran out",
        signal.SIGXCPU: ", because it has used up its time of computing",
        signal.SIGXFSZ: ", because it has written too large a file",
    }
    return f"was killed by {name}{reasons.get(number, '')}"
