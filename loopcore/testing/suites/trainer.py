"""What a trainer promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from loopcore.abc import Driver, Score, Trainer
from loopcore.datasets import Snapshot, read_snapshot
from loopcore.errors import TrainingError
from loopcore.options import decode
from loopcore.package import MANIFEST, open_folder
from loopcore.processes import call_driver
from loopcore.testing.pictures import make_snapshot
from loopcore.testing.suites.driver import DriverSuite
from loopcore.types import Model

TRAINING_S = 300.0
"""No test of the suite waits longer for a training."""


class Heard:
    """What a trainer has reported; callable as a `Report`."""

    def __init__(self) -> None:
        self.progress: list[float] = []
        self.scores: list[Score] = []
        self.first = anyio.Event()

    def __call__(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        self.progress.append(progress)
        if score is not None:
            self.scores.append(score)
        self.first.set()


class TrainerSuite(DriverSuite):
    """A trainer makes a model of a snapshot in a process of its own, goes on after a crash, and stops when asked.

    Every training of the suite is a real one: choose options with which it takes seconds.

    ```python
    class TestAcmeTrainer(TrainerSuite):
        driver = AcmeTrainer

        @pytest.fixture
        def table(self):
            return {"epochs": 1}
    ```
    """

    driver: ClassVar[type[Driver]]

    @pytest.fixture
    def anyio_backend(self) -> str:
        """One is enough: what is under test runs in a process of its own."""
        return "asyncio"

    @pytest.fixture
    def snapshot(self, tmp_path: Path) -> Snapshot:
        """Eight made pictures of two labels. Override it where the trainer needs others to learn anything."""
        return make_snapshot(tmp_path / "snapshot")

    @pytest.fixture
    def parameters(self) -> Mapping[str, Any]:
        """The job's wishes. Override it to make the training short."""
        return {}

    @pytest.fixture
    def workdir(self, tmp_path: Path) -> Path:
        folder = tmp_path / "work"
        folder.mkdir()
        return folder

    def test_trainer_says_what_it_makes_and_what_one_may_start_from(self, table: Mapping[str, Any]) -> None:
        trainer = self._make(table)
        names = list(trainer.pretrained())
        assert trainer.formats
        assert len(set(trainer.formats)) == len(trainer.formats)
        assert len(set(names)) == len(names)

    async def test_model_is_a_package_of_the_snapshot_s_labels_inside_the_work_folder(
        self, table: Mapping[str, Any], snapshot: Snapshot, parameters: Mapping[str, Any], workdir: Path
    ) -> None:
        heard = Heard()
        left = await self._train(table, snapshot, parameters, workdir, heard)
        assert is_inside(left, workdir)
        models = open_models(left)
        assert {model.info.format for model in models} <= set(self._make(table).formats)
        assert len({model.info.format for model in models}) == len(models)
        assert all(model.info.labels == snapshot.labels for model in models)
        assert heard.progress
        assert all(0 <= progress <= 1 for progress in heard.progress)
        assert all(set(score.confusion) <= set(snapshot.labels) for score in heard.scores)

    async def test_same_snapshot_gives_the_same_model_and_stays_as_it_is(
        self,
        table: Mapping[str, Any],
        snapshot: Snapshot,
        parameters: Mapping[str, Any],
        workdir: Path,
        tmp_path: Path,
    ) -> None:
        (again := tmp_path / "again").mkdir()
        first = open_models(await self._train(table, snapshot, parameters, workdir, Heard()))
        second = open_models(await self._train(table, snapshot, parameters, again, Heard()))
        assert [model.info.id for model in first] == [model.info.id for model in second]
        assert read_snapshot(snapshot.path) == snapshot

    async def test_training_that_was_killed_goes_on(
        self, table: Mapping[str, Any], snapshot: Snapshot, parameters: Mapping[str, Any], workdir: Path
    ) -> None:
        killed = Heard()
        with anyio.fail_after(TRAINING_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._train_until_killed, table, snapshot, parameters, workdir, killed)
                await killed.first.wait()
                tasks.cancel_scope.cancel()
        heard = Heard()
        assert open_models(await self._train(table, snapshot, parameters, workdir, heard))
        assert bool(heard.scores) >= bool(killed.scores)

    async def test_finished_training_is_not_done_again_in_vain(
        self, table: Mapping[str, Any], snapshot: Snapshot, parameters: Mapping[str, Any], workdir: Path
    ) -> None:
        first = open_models(await self._train(table, snapshot, parameters, workdir, Heard()))
        ids = [model.info.id for model in first]
        second = open_models(await self._train(table, snapshot, parameters, workdir, Heard()))
        assert [model.info.id for model in second] == ids

    async def test_training_that_is_to_stop_keeps_its_best_model(
        self, table: Mapping[str, Any], snapshot: Snapshot, parameters: Mapping[str, Any], workdir: Path
    ) -> None:
        heard = Heard()
        left = await self._train(table, snapshot, parameters, workdir, heard, stop=heard.first)
        assert open_models(left)

    async def test_damaged_snapshot_is_a_training_error(
        self, table: Mapping[str, Any], snapshot: Snapshot, parameters: Mapping[str, Any], workdir: Path
    ) -> None:
        (snapshot.path / "snapshot.json").write_text("{}")
        with pytest.raises(TrainingError):
            await self._train(table, snapshot, parameters, workdir, Heard())

    def _make(self, table: Mapping[str, Any]) -> Trainer:
        assert issubclass(self.driver, Trainer)
        return self.driver(decode(table, self.driver.Options))

    async def _train(
        self,
        table: Mapping[str, Any],
        snapshot: Snapshot,
        parameters: Mapping[str, Any],
        workdir: Path,
        heard: Heard,
        *,
        stop: anyio.Event | None = None,
    ) -> Path:
        """As the node does it."""
        trainer = self._make(table)
        arguments = {
            "snapshot": snapshot.path,
            "base": None,
            "parameters": dict(parameters),
            "workdir": workdir,
        }
        with anyio.fail_after(TRAINING_S):
            left = await call_driver(
                type(trainer),
                trainer.options,
                "train",
                arguments,
                what="the trainer",
                cwd=workdir,
                report=heard,
                stop=stop,
                log=workdir.with_name("training.log"),
            )
        assert isinstance(left, Path)
        return left

    async def _train_until_killed(self, *arguments: Any) -> None:
        await self._train(*arguments)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether it lies there, whatever links say."""
    return path.resolve().is_relative_to(folder.resolve())


def open_models(left: Path) -> list[Model]:
    """The packages that a trainer has left, by format."""
    places = [left] if (left / MANIFEST).is_file() else sorted(path.parent for path in left.glob(f"*/{MANIFEST}"))
    return [open_folder(place) for place in places]
