"""What a power cut may leave of an outbox: nothing accepted is missing, nothing half is sent, nothing is sent again.

The campaign is that of `loopcore torture`. It is only worth what it finds, so outboxes with a flaw each have to be
found out by it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loopcore.cli.torture.campaign import scratch_folder
from loopcore.cli.torture.crashes import crash_states, run_batch
from loopcore.cli.torture.faults import faults
from loopcore.cli.torture.flips import flips
from loopcore.cli.torture.recording import RecordingDisk
from loopcore.cli.torture.world import World
from loopcore.collect.outbox import records, recovery, rejects
from loopcore.collect.outbox.index import Index
from loopcore.collect.outbox.rejects import Refusal, Rejects
from loopcore.collect.outbox.rows import Row
from loopcore.collect.outbox.segments import Segments
from loopcore.collect.outbox.store import Store
from loopcore.collect.outbox.turns import Job
from loopcore.files import Disk

pytestmark = pytest.mark.usefixtures("silence")

STATES = 20_000
ENOUGH_TO_FIND_A_FLAW = 4_000


@pytest.fixture
def silence() -> Iterator[None]:
    """An outbox that is hurt says so, some thousand times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(900)
def test_no_state_after_a_power_cut_breaks_a_promise() -> None:
    finding = crash_states(STATES, 0)
    print(*finding.row, finding.detail)
    assert not finding.stories, finding.stories[0]
    assert finding.count >= STATES


def test_states_after_a_power_cut_during_recovery_are_among_them() -> None:
    with scratch_folder() as base:
        tally = run_batch(0, 300, base).tally
    assert tally.nested > 50


# Disks that lie


class NoSync(RecordingDisk):
    """Says that it has synced, and has not."""

    def sync(self, descriptor: int) -> None:
        pass


class NoFolderSync(RecordingDisk):
    def sync_folder(self, path: Path) -> None:
        pass


class NoIndexSync(RecordingDisk):
    def database(self, path: Path) -> sqlite3.Connection:
        connection = super().database(path)
        connection.committed = lambda _: None  # type: ignore[attr-defined]
        return connection


# Outboxes that are made wrong


class UnlinksFirst(Store):
    """Removes a file before it is durable that nothing in it is needed."""

    def _end(self, *, commit: bool) -> None:
        for segment in self._index._dead:
            self._segments.unlink(segment)
        super()._end(commit=commit)


class LooksAhead(Store):
    """The index says that it knows more of a segment than it does."""

    def _end(self, *, commit: bool) -> None:
        if self._index.state.segment == self._segments.active:
            self._index.state.offset = self._segments.size + 4000
        super()._end(commit=commit)


class AnswersFirst(Store):
    """A settlement is believed before it is in the index."""

    def turn(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.durable = False
        super().turn(jobs)


class DropsInSilence(Store):
    def _assemble(self) -> None:
        super()._assemble()
        self._room.drop = self._drop

    def _drop(self, row: Row, _: str) -> None:
        self._index.remove(row)


class RejectsLater(Store):
    """The place in the queue goes before the file in `rejected/` is there."""

    def _assemble(self) -> None:
        super()._assemble()
        self.sending._rejects = LateRejects(self.folder, self._disk, self._later)


class LateRejects(Rejects):
    def __init__(self, folder: Path, disk: Disk, later: list[Callable[[], None]]) -> None:
        super().__init__(folder, disk)
        self._later = later

    def add(self, refusal: Refusal, image: bytes) -> int:
        self._later.append(lambda: super(LateRejects, self).add(refusal, image) and None)
        return len(image)


MADE_WRONG: dict[type[RecordingDisk | Store], set[str]] = {
    NoSync: {"lost"},
    NoFolderSync: {"lost"},
    NoIndexSync: {"lost", "again"},
    UnlinksFirst: {"lost"},
    LooksAhead: {"lost", "half"},
    AnswersFirst: {"again"},
    DropsInSilence: {"lost", "again"},
    RejectsLater: {"lost"},
}


def found_out(world: World, number: int = 0) -> str:
    """Which promise was broken first."""
    with scratch_folder() as base:
        batch = run_batch(number, ENOUGH_TO_FIND_A_FLAW, base, world)
    assert batch.broken, f"nothing was found in {len(batch.tally.states)} states"
    print(len(batch.tally.states), "states,", batch.broken[0][1])
    return batch.broken[0][0]


@pytest.mark.parametrize("part", MADE_WRONG, ids=lambda part: part.__name__)
def test_flaw_is_found(part: type[Any]) -> None:
    world = World(disk=part) if issubclass(part, Disk) else World(store=part)
    assert found_out(world) in MADE_WRONG[part]


# Parts of an outbox that are made wrong


def test_recovery_that_trusts_what_a_killed_run_has_not_synced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments, "sync", lambda *_: None)
    assert found_out(World()) in {"lost", "counts"}


def test_recovery_that_commits_before_it_has_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a second power cut, before the second commit, shows it."""
    catch_up = recovery.catch_up

    def hasty(index: Index, segments: Segments, refused: Rejects) -> None:
        known = (index.state.segment, index.state.offset)
        for number in segments.numbers():
            index.reach(number, max(0, segments.path(number).stat().st_size))
        index.commit()
        index.begin(0)
        index.state.segment, index.state.offset = known
        catch_up(index, segments, refused)

    monkeypatch.setattr(recovery, "catch_up", hasty)
    assert found_out(World()) in {"lost", "again"}


def test_index_that_is_made_anew_in_two_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut between them nobody knows that it is new."""
    open_index = recovery.open_index

    def in_steps(path: Path, disk: Disk) -> Index:
        index = open_index(path, disk)
        if index.fresh:
            index.commit()
        return index

    monkeypatch.setattr(recovery, "open_index", in_steps)
    assert found_out(World()) in {"lost", "again"}


def test_records_that_nobody_checks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_sound", lambda *_: True)
    monkeypatch.setattr(records, "image_of", lambda data, entry: data[len(data) - entry.info.image_bytes :])
    assert found_out(World()) == "half"


def test_rejected_samples_that_are_not_synced_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "write_atomic", lambda path, data, *, disk: path.write_bytes(data))
    assert found_out(World()) == "lost"


# What the other campaigns are worth


class SyncsAgain(RecordingDisk):
    """Takes a sync that has failed for good once another one does not fail."""

    def sync(self, descriptor: int) -> None:
        with suppress(OSError):
            super().sync(descriptor)
            return
        super().sync(descriptor)


def test_sync_that_is_repeated_until_it_succeeds_is_found() -> None:
    finding = faults(kinds=["sync"], world=World(disk=SyncsAgain))
    assert finding.broken["lost"]


def test_bits_that_nobody_checks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_sound", lambda *_: True)
    monkeypatch.setattr(records, "image_of", lambda data, entry: data[len(data) - entry.info.image_bytes :])
    assert flips(0).broken["half"] > 100
