"""The trainer `mock` takes its time, goes on where it was, stops when it is told to, and leaves a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from loopcore_mock_trainer import MockOptions, MockTrainer

from loopcore import Duration
from loopcore.abc import Score
from loopcore.datasets import Picture, SnapshotWriter
from loopcore.errors import TrainingError
from loopcore.package import open_model
from loopcore.testing import TrainerSuite, make_jpeg
from loopcore.types import Box


class TestMockTrainer(TrainerSuite):
    driver = MockTrainer

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        return {"takes": 0.2, "every": 0.1}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Four pictures with a lamp each."""
    writer = SnapshotWriter(tmp_path / "snapshot", ["lamp", "leaf"])
    writer.begin()
    for seed in range(4):
        picture = tmp_path / f"{seed}.jpg"
        picture.write_bytes(make_jpeg(seed))
        lamp = Box(label="lamp", x=1, y=1, width=5, height=5)
        writer.add(Picture(path=picture, id=str(seed), media="image/jpeg", width=64, height=48, annotations=(lamp,)))
    writer.finish()
    return tmp_path / "snapshot"


class Listener:
    """Hears reports, and stops after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.progress: list[float] = []
        self.scores: list[Score] = []
        self._most = most

    def __call__(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        assert message
        assert not metrics
        self.progress.append(progress)
        if score is not None:
            self.scores.append(score)

    def stop(self) -> bool:
        return len(self.progress) >= self._most


def train(snapshot: Path, listener: Listener, **options: Any) -> Path:
    work = snapshot.parent / "work"
    work.mkdir(exist_ok=True)
    trainer = MockTrainer(MockOptions(**{"takes": Duration(0.05), "every": Duration(0.02)} | options))
    return trainer.train(snapshot, None, {}, work, listener, listener.stop)


def test_training_gets_better_and_leaves_a_model(snapshot: Path) -> None:
    listener = Listener()
    model = open_model(train(snapshot, listener), snapshot.parent)
    assert (model.info.format, model.info.labels) == ("mocked", ("lamp", "leaf"))
    assert listener.progress == sorted(listener.progress)
    assert listener.progress[-1] == 1
    first, *_, last = listener.scores
    assert first.confusion["lamp"][0] < last.confusion["lamp"][0]
    assert last.confusion == {"lamp": (4, 0, 0), "leaf": (0, 0, 0)}


def test_training_goes_on_where_it_was(snapshot: Path) -> None:
    begun, resumed = Listener(most=5), Listener()
    train(snapshot, begun)
    train(snapshot, resumed)
    assert 0.2 < begun.progress[-2] < 0.8
    assert resumed.progress[0] > begun.progress[-2]


def test_model_may_come_in_several_formats(snapshot: Path) -> None:
    folder = train(snapshot, Listener(), formats=("mocked", "mocked_2"))
    formats: Iterator[str] = (open_model(path, snapshot.parent).info.format for path in sorted(folder.iterdir()))
    assert list(formats) == ["mocked", "mocked_2"]


def test_training_may_fail(snapshot: Path) -> None:
    with pytest.raises(TrainingError, match="the options say"):
        train(snapshot, Listener(), fails="told")
