"""Our nodes, started from the environment of a released one, do what a released one does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import acceptance
import httpx
import pytest
from acceptance import SCENARIO_S, Stage
from loop import DEMO, zipped

HERE = Path(__file__).parent
DRIVERS = HERE / "programs" / "drivers.py"
TRAIN = HERE / "programs" / "train.py"


class Ours:
    """`loopcore learningloop …`"""

    ready = "url=http"

    def command(self, role: str, port: int, *args: str) -> Sequence[str | Path]:
        more = [f"plugins.files = [{str(DRIVERS)!r}]", "outbox.min_free = 0"]
        if role == "trainer":
            more.append(f"trainer.command = {[sys.executable, str(TRAIN), *args]!r}")
            more += ["trainer.formats = ['mocked', 'mocked_2']", "trainer.stop = 'file'"]
        options = {"detector": ["--backend", "mocked"], "converter": ["--convert", "format_a-to-format_b"]}.get(
            role, []
        )
        command = [sys.executable, "-m", "loopcore", "learningloop", role, *options]
        return [
            *command,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *(word for one in more for word in ("--set", one)),
        ]


async def converter_makes_the_format_that_is_missing(stage: Stage) -> None:
    """The operability test of the reference's README: upload `format_a`, see `format_b` appear (11)."""
    loop = stage.loop
    listing = f"/api/{DEMO.replace('/', '/projects/')}/models"
    async with httpx.AsyncClient(base_url=loop.url, verify=False) as person:
        await person.post("/api/login", data={"username": "ranger", "password": "krill"})
        zip_file = zipped({"file_1.txt": b"abc", "model.json": b'{"resolution": 320}'})
        uploaded = await person.post(listing.replace("/models", "/format_a"), files={"files": ("model.zip", zip_file)})

        async def listed(format: str) -> list[str]:
            answer = await person.get(listing, params={"format": format})
            return [model["id"] for model in answer.json()["models"]]

        model_id = uploaded.json()["id"]
        assert (await listed("format_a"), await listed("format_b")) == ([model_id], [])
        async with stage.run("converter"):
            made = await loop.model_uploads.until(lambda upload: upload.format == "format_b")
        assert (await listed("format_a"), await listed("format_b")) == ([model_id], [model_id])
    assert made.files["file_1.txt"] == b"cba"
    told = json.loads(made.files["model.json"])
    assert told["resolution"] == 320
    assert [one["id"] for one in told["categories"]] == [one["id"] for one in loop.store[DEMO].categories]


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        *acceptance.TRAINER,
        *acceptance.DETECTOR,
        *acceptance.ANNOTATOR_ROLE,
        converter_makes_the_format_that_is_missing,
    )
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    with acceptance.played(SCENARIOS, tmp_path_factory.mktemp("ours"), Ours()) as scenarios:
        yield scenarios


@pytest.mark.timeout(SCENARIO_S + 60)
@pytest.mark.parametrize("fact", SCENARIOS)
def test_node(fact: str, played: dict[str, Future[None]]) -> None:
    played[fact].result(SCENARIO_S + 10)
