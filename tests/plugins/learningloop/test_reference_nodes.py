"""The released nodes work against the server that judges ours: so it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import acceptance
import peers
import pytest
from acceptance import SCENARIO_S, Stage, runs
from loop import DEMO, picture

NEW, OLD = "learning-loop-node-0.27.0", "learning-loop-node-0.11.1"
PROGRAMS = {
    "detector": (NEW, "detector_new.py"),
    "trainer": (NEW, "trainer.py"),
    "annotator": (NEW, "annotator.py"),
    "old detector": (OLD, "detector_old.py"),
}


@dataclass
class Released:
    """Nodes of the released packages, each in its package's own environment."""

    pythons: dict[str, Path]
    ready: str = "Uvicorn running on"

    def command(self, role: str, port: int, *args: str) -> Sequence[str | Path]:
        peer, program = PROGRAMS[role]
        return [self.pythons[peer], peers.PROGRAMS / program, str(port), *args]


async def detector_works_as_it_did_when_it_was_written(stage: Stage) -> None:
    await acceptance.detector_follows_the_target_and_the_mode(stage)
    assert [call.name for call in stage.loop.calls][:5] == ["login", "detectors", "target", "download", "detectors"]
    assert str((stage.folder / "current_model").readlink()) == "models/1.2"


async def old_detector_works_over_its_socket_without_a_cookie(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("old detector") as (_, client):
        await loop.detectors.until(runs("1.1"))
        assert [(node.kind, node.account) for node in loop.connections] == [("detector", None)]
        for seed in (1, 2, 3):
            await stage.detect(client, seed, f"tag {seed}")
        loop.store[DEMO].target = loop.store[DEMO].model("1.2").id
        await loop.uploads.wait(3)
        tags = {upload.jpeg: upload.metadata["tags"] for upload in loop.uploads}
        assert all(f"tag {seed}" in tags[picture(seed)] for seed in (1, 2, 3))
        await loop.detectors.until(runs("1.2"))
        assert {call.account for call in loop.calls} == {None}


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        *acceptance.TRAINER,
        detector_works_as_it_did_when_it_was_written,
        acceptance.detector_delivers_each_picture_but_the_refused_one,
        *acceptance.ANNOTATOR_ROLE,
        old_detector_works_over_its_socket_without_a_cookie,
    )
}


@pytest.fixture(scope="module")
def played(peer: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    nodes = Released({name: peer(name) for name in (NEW, OLD)})
    with acceptance.played(SCENARIOS, tmp_path_factory.mktemp("reference"), nodes) as scenarios:
        yield scenarios


@pytest.mark.timeout(SCENARIO_S + 60)
@pytest.mark.parametrize("fact", SCENARIOS)
def test_released_node(fact: str, played: dict[str, Future[None]]) -> None:
    played[fact].result(SCENARIO_S + 10)
