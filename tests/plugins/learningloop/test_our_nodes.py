"""Our nodes, started from the environment of a released one, do what a released one does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import acceptance
import pytest
from acceptance import SCENARIO_S

HERE = Path(__file__).parent
DRIVERS = HERE / "programs" / "drivers.py"


class Ours:
    """`loopcore learningloop …`"""

    ready = "url=http"

    def command(self, role: str, port: int, *args: str) -> Sequence[str | Path]:
        more = [f"plugins.files = [{str(DRIVERS)!r}]", "outbox.min_free = 0"]
        options = {"detector": ["--backend", "mocked"], "trainer": [], "annotator": []}[role]
        command = [sys.executable, "-m", "loopcore", "learningloop", role, *options]
        return [
            *command,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *(word for one in more for word in ("--set", one)),
        ]


SCENARIOS = {scenario.__name__: scenario for scenario in (*acceptance.DETECTOR, *acceptance.ANNOTATOR_ROLE)}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    with acceptance.played(SCENARIOS, tmp_path_factory.mktemp("ours"), Ours()) as scenarios:
        yield scenarios


@pytest.mark.timeout(SCENARIO_S + 60)
@pytest.mark.parametrize("fact", SCENARIOS)
def test_node(fact: str, played: dict[str, Future[None]]) -> None:
    played[fact].result(SCENARIO_S + 10)
