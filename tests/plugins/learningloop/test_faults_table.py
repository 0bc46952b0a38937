"""Whatever a Loop answers to whichever call, no node hangs, and no sample and no training is lost.

Each cell of the table is a test; the table itself stands at the end of the report. Roles work side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import tracks
from anyio.from_thread import start_blocking_portal
from cells import ANSWERS

TRACKS = {track.role: track for track in (tracks.Detector,)}
CELLS = [(role, call, answer) for role, track in TRACKS.items() for call in track.calls for answer in ANSWERS]
TRACK_S = 200


class Playing:
    """The tracks at work, and what has come of each cell so far."""

    def __init__(self, folder: object) -> None:
        self.cells: dict[tuple[str, str, str], Future[None]] = {cell: Future() for cell in CELLS}
        self.ends: dict[str, Future[None]] = {}


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playing]:
    playing = Playing(None)

    async def play(role: str) -> None:
        async with TRACKS[role](tmp_path_factory.mktemp(role)) as track:
            for call in track.calls:
                for answer in ANSWERS:
                    future = playing.cells[role, call, answer]
                    try:
                        await track.cell(call, answer)
                    except Exception as exc:
                        future.set_exception(exc)
                    else:
                        future.set_result(None)
            await track.end()

    with start_blocking_portal() as portal:
        playing.ends = {role: portal.start_task_soon(play, role) for role in TRACKS}
        yield playing


@pytest.mark.timeout(TRACK_S)
@pytest.mark.parametrize(("role", "call", "answer"), CELLS)
def test_node_gets_over_an_answer(role: str, call: str, answer: str, playing: Playing) -> None:
    playing.cells[role, call, answer].result(TRACK_S)


@pytest.mark.timeout(TRACK_S)
@pytest.mark.parametrize("role", TRACKS)
def test_books_agree_in_the_end(role: str, playing: Playing) -> None:
    playing.ends[role].result(TRACK_S)
