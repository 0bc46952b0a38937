"""A program that runs for the length of a block, and whose words are told when a test fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from socket import create_server
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import ByteReceiveStream, Process

GO_S = 10
"""How long a program may take to end when it is asked to; after that it is killed."""


class Program(AsyncContextManagerMixin):
    """A child process, entered when it runs; leaving kills it.

    Args:
        command: What to run.
        environment: All of it, apart from the search path.
        folder: Where it runs.

    Attributes:
        said: What it has written so far.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> None:
        self._command = [str(part) for part in command]
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
        self._folder = folder
        self.said = ""
        self._silent = False
        self._more = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as group:
            self._process: Process = await anyio.open_process(
                self._command, env=self._environment, cwd=self._folder, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
            )
            assert self._process.stdout is not None
            group.start_soon(self._listen, self._process.stdout)
            try:
                yield self
            except Exception as exc:
                exc.add_note(f"{' '.join(self._command)}\nsaid at last:\n{self.said[-4000:]}")
                raise
            finally:
                await self.kill()

    async def says(self, words: str, *, within: float = 60) -> None:
        """Wait until it has written this.

        Raises:
            TimeoutError: It did not, within so many seconds.
            EOFError: It has ended, or closed its output.
        """
        with anyio.fail_after(within):
            while words not in self.said:
                if self._silent:
                    raise EOFError(f"it ended before it said {words!r}")
                await self._more.wait()

    async def kill(self) -> None:
        """As a power cut does."""
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None and not self._silent:
                self._process.kill()
            await self._process.wait()

    async def end(self) -> int:
        """Ask it to end, and return how it did."""
        self._process.terminate()
        with anyio.fail_after(GO_S):
            return await self._process.wait()

    async def _listen(self, stream: ByteReceiveStream) -> None:
        async with stream:
            async for words in stream:
                self.said += words.decode(errors="replace")
                self._more.set()
                self._more = anyio.Event()
        self._silent = True
        self._more.set()


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
