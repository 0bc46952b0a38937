"""What the tests of the Learning Loop's plugin share."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite("acceptance", "tracks")

import cells  # noqa: E402
import peers  # noqa: E402
from loop import LoopServer  # noqa: E402


@pytest.fixture
async def loop(anyio_backend: str) -> AsyncGenerator[LoopServer]:
    """A Loop with the projects of 14.3, and the account `ranger` with the password `krill`."""
    async with LoopServer() as server:
        yield server


@pytest.fixture(scope="session")
def peer() -> Callable[[str], Path]:
    """The interpreter of a released program's own environment, by the name of its file in `tests/peers`.

    Where the environment cannot be made, tests are skipped, but not in the checks before a merge (`CI` is set).
    """

    def find(name: str) -> Path:
        try:
            return peers.python_of(name)
        except peers.PeerUnavailable as exc:
            report = pytest.fail if os.environ.get("CI") else pytest.skip
            report(f"{name} cannot be installed here: {exc}")

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the table of calls and answers, if it was made."""
    if table := cells.lines():
        terminalreporter.write_sep("=", f"{len(cells.TABLE)} cells: what came of each answer to each call; seconds")
        for line in table:
            terminalreporter.write_line(line)
