"""Whatever a Loop answers to whichever call, no node hangs, and no sample and no training is lost.

Each cell of the table is a test; the table itself stands at the end of the report. `by hand` means that a person had to
come, because an account or a model was refused. Nodes work side by side, and only on the cells that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

import pytest
from anyio.from_thread import start_blocking_portal
from cells import ANSWERS, MORE
from tracks import Annotator, Converter, Detector, OldDetector, Talker, Track, Trainer

Crew: TypeAlias = tuple[type[Track], tuple[str, ...]]

CREWS: dict[str, Crew] = {
    "detector, first half": (Detector, Detector.calls[:4]),
    "detector, second half": (Detector, Detector.calls[4:]),
    "detector at an old Loop": (OldDetector, OldDetector.calls),
    "converter, first half": (Converter, Converter.calls[:4]),
    "converter, second half": (Converter, Converter.calls[4:]),
    "annotator": (Annotator, Annotator.calls),
    "trainer without work": (Talker, Talker.calls),
    "trainer": (Trainer, Trainer.calls),
}
TRACK_S = 240.0


CELLS = [
    pytest.param(crew, call, answer, marks=[pytest.mark.long] if answer in MORE else [])
    for crew, (_, calls) in CREWS.items()
    for answer in ANSWERS
    for call in calls
]


class Playing:
    """The crews at work.

    Attributes:
        cells: What has come of a cell.
        ends: What has come of a crew, when all its cells were done: do the books agree?
    """

    def __init__(self, wanted: set[tuple[str, str, str]], folder: Path) -> None:
        self.cells: dict[tuple[str, str, str], Future[None]] = {cell: Future() for cell in wanted}
        self.folder = folder
        self.ends: dict[str, Future[None]] = {}

    async def play(self, crew: str) -> None:
        try:
            await self._play(crew)
        except Exception as exc:
            for cell, future in self.cells.items():
                if cell[0] == crew and not future.done():
                    future.set_exception(exc)
            raise

    async def _play(self, crew: str) -> None:
        make, calls = CREWS[crew]
        async with make(self.folder / crew.replace(" ", "-")) as track:
            for answer in ANSWERS:
                wanted = [call for call in calls if (crew, call, answer) in self.cells]
                async for call, error in track.meet(answer, wanted):
                    cell = self.cells[crew, call, answer]
                    cell.set_exception(error) if error else cell.set_result(None)
            await track.end()
            assert list(track.loop.complaints) == []


@pytest.fixture(scope="module")
def playing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playing]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    chosen = [item.callspec.params for item in items]
    wanted = {(one["crew"], one["call"], one["answer"]) for one in chosen if {"crew", "call", "answer"} <= set(one)}
    playing = Playing(wanted, tmp_path_factory.mktemp("faults"))
    with start_blocking_portal() as portal:
        crews = dict.fromkeys(crew for crew, _, _ in sorted(wanted))
        playing.ends = {crew: portal.start_task_soon(playing.play, crew) for crew in crews}
        yield playing


@pytest.mark.timeout(TRACK_S)
@pytest.mark.parametrize(("crew", "call", "answer"), CELLS)
def test_node_gets_over_an_answer(crew: str, call: str, answer: str, playing: Playing) -> None:
    playing.cells[crew, call, answer].result(TRACK_S)


@pytest.mark.timeout(TRACK_S)
@pytest.mark.parametrize("crew", [*CREWS, *(pytest.param(crew, marks=pytest.mark.long) for crew in CREWS)])
def test_books_agree_in_the_end(crew: str, playing: Playing) -> None:
    if crew not in playing.ends:
        pytest.skip("none of its cells was asked for")
    playing.ends[crew].result(TRACK_S)
