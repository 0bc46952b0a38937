"""Promises of TRAINING, PUBLISHING, PREDICTING and REPORTING where a trainer, a model or an image is at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from train.world import CAT

from loopcore.abc import Backend
from loopcore.errors import BackendError, ModelError, PluginError, RetryableError
from loopcore.package import write_package
from loopcore.testing import FixedBackend, make_jpeg
from loopcore.testing.drivers import FixedBackendOptions
from loopcore.train.training import MAX_FAILURES
from loopcore.types import Frame, Model, ModelInfo, Prediction

from .conftest import Bench, Looking, offered, until, until_over

pytestmark = pytest.mark.anyio


async def run(bench: Bench, **changes: object) -> str | None:
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(**changes))
        state = await until_over(desk)
        return state.error if state else None


# TRAINING


async def test_trainer_that_fails_too_often_ends_the_job(bench: Bench) -> None:
    bench.world.faults["step"] = [PluginError("killed by SIGKILL") for _ in range(MAX_FAILURES)]
    assert await run(bench) == f"the trainer has failed {MAX_FAILURES} times in a row; the last time: killed by SIGKILL"


async def test_trainer_that_comes_further_may_fail_as_often_as_it_likes(bench: Bench) -> None:
    bench.world.steps = 2 * MAX_FAILURES
    turns = iter([False, True] * bench.world.steps)

    async def fail_each_second_time(name: str) -> None:
        if name == "step" and next(turns, False):
            raise PluginError("killed by SIGKILL")

    bench.world.always = fail_each_second_time
    assert await run(bench) is None
    assert bench.world.trained == 2 * MAX_FAILURES


async def test_other_errors_are_not_counted_as_the_trainer_s(bench: Bench) -> None:
    bench.world.faults["step"] = [RetryableError("no") for _ in range(2 * MAX_FAILURES)]
    assert await run(bench) is None


def leaving(bench: Bench, leave: Callable[[Path], Path]) -> None:
    """The trainer leaves this in its folder."""

    async def train(
        snapshot: Path, base: Any, parameters: Any, workdir: Path, report: Any, stop: Any, log: Any
    ) -> Path:
        return leave(workdir)

    bench.world.train = train  # type: ignore[method-assign]


def package(folder: Path, format: str = "null", **given: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_text(format)
    write_package(folder, ModelInfo(name=given.pop("name", "made"), version="0", format=format, **given))
    return folder


def damaged(folder: Path) -> Path:
    (package(folder) / "model.bin").write_text("")
    return folder


async def test_one_package_is_published(bench: Bench) -> None:
    leaving(bench, lambda workdir: package(workdir))
    assert await run(bench) is None
    assert list(bench.world.published) == ["null"]


async def test_packages_are_published_best_format_first(bench: Bench) -> None:
    leaving(bench, lambda workdir: package(workdir / "a", "other").parent and package(workdir / "b").parent)
    assert await run(bench) is None
    assert list(bench.world.published) == ["null", "other"]


@pytest.mark.parametrize(
    ("leave", "sentence"),
    [
        (lambda workdir: workdir, "there is no package in"),
        (lambda workdir: workdir / "nowhere", "there is no package in"),
        (damaged, "model.bin of made 0 has another size than promised"),
        (lambda workdir: package(workdir, "foreign"), "is 'foreign', expected null or other"),
        (lambda workdir: package(workdir, labels=("dog", "cat")), "a model of dog, cat, expected cat, dog"),
        (lambda workdir: package(workdir / "a").parent and package(workdir / "b").parent, "have one format"),
        (
            lambda workdir: package(workdir / "a").parent and package(workdir / "b", "other", name="x").parent,
            "different models",
        ),
    ],
)
async def test_model_that_cannot_be_used_ends_the_job(
    bench: Bench, leave: Callable[[Path], Path], sentence: str
) -> None:
    leaving(bench, leave)
    error = await run(bench)
    assert error is not None
    assert sentence in error
    assert not bench.world.published


async def test_model_outside_its_folder_is_the_trainer_s_fault(bench: Bench, tmp_path: Path) -> None:
    leaving(bench, lambda workdir: package(tmp_path / "elsewhere"))
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        await until(desk, lambda: (state := desk.state()) is not None and "outside its folder" in (state.error or ""))


async def test_training_without_a_score_needs_none(bench: Bench) -> None:
    leaving(bench, lambda workdir: package(workdir))
    assert await run(bench) is None
    assert bench.world.scores == []


# PUBLISHING


async def test_model_that_is_damaged_after_the_training_is_not_published(bench: Bench) -> None:
    async def damage() -> None:
        (bench.job_folder() / "work" / "out" / "other" / "model.bin").write_text("")
        raise RetryableError("lost")

    bench.world.faults["publish null"] = [damage]
    error = await run(bench)
    assert error is not None
    assert "cannot be published" in error
    assert not bench.world.published


async def test_format_that_the_platform_has_is_not_handed_over_again(bench: Bench) -> None:
    bench.world.faults["publish other"] = [RetryableError("lost"), RetryableError("lost")]
    assert await run(bench) is None
    assert bench.world.calls.count("publish null") == 1
    assert bench.world.calls.count("publish other") == 3


# PREDICTING


class Odd(FixedBackend):
    """Fails on frames that are as wide as a picture of `bad` is, and in the way that a test wants."""

    max_batch = 4
    calls: ClassVar[list[int]] = []
    how: Callable[[Sequence[Frame]], Sequence[Prediction]] | None = None

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        type(self).calls.append(len(frames))
        if any(frame.info.width == 80 for frame in frames):
            raise BackendError("a frame of 80 pixels")
        return type(self).how(frames) if type(self).how else super().infer(frames)


class OddEyes(Looking):
    def open(self, model: Model) -> Backend:
        self.models.append(model)
        return self.backend(FixedBackendOptions(), model)

    backend: type[Backend] = Odd


def with_backend(bench: Bench, backend: type[Backend]) -> OddEyes:
    bench.eyes = eyes = OddEyes(bench.world)
    eyes.backend = backend
    return eyes


async def test_new_model_looks_at_all_images_under_the_platform_s_name_for_it(bench: Bench) -> None:
    assert await run(bench) is None
    assert bench.eyes is not None
    (model,) = bench.eyes.models
    assert (model.info.format, model.info.version) == ("null", "1.1")
    assert model.info.extra == {"platform": {"id": "id-of-job-1"}}
    box = bench.world.seen["image-5"].detections[0]
    assert (box.x, box.width) == (16, 32)  # type: ignore[union-attr]


async def test_images_come_in_batches_of_the_wished_size_and_no_larger_than_the_backend_takes(bench: Bench) -> None:
    class Counting(Odd):
        calls: ClassVar[list[int]] = []

    with_backend(bench, Counting)
    assert await run(bench) is None
    assert Counting.calls == [2, 2, 2]


async def test_image_on_which_the_model_fails_is_left_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with_backend(bench, Odd)
    bench.world.images_of["image-2"] = (make_jpeg(2, 80, 60), "train", "complete", (CAT,))
    assert await run(bench) is None
    assert set(bench.world.seen) == {f"image-{number}" for number in (0, 1, 3, 4, 5)}
    assert "The new model fails on an image job=job-1 image=image-2" in caplog.text


async def test_model_that_fails_on_all_images_is_tried_again(bench: Bench) -> None:
    left = [3]

    class Recovering(Odd):
        @staticmethod
        def how(frames: Sequence[Frame]) -> Sequence[Prediction]:
            left[0] -= 1
            if left[0] >= 0:
                raise BackendError("the card has gone")
            return [Prediction() for _ in frames]

    with_backend(bench, Recovering)
    assert await run(bench) is None
    assert len(bench.world.seen) == 6


@pytest.mark.parametrize("answer", [[], [Prediction(infer_ms=float("nan"))] * 3])
async def test_backend_that_breaks_its_contract_is_told(bench: Bench, answer: list[Prediction]) -> None:
    class Broken(Odd):
        @staticmethod
        def how(frames: Sequence[Frame]) -> Sequence[Prediction]:
            return answer

    with_backend(bench, Broken)
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        await until(desk, lambda: "the backend gave" in (((state := desk.state()) and state.error) or ""))


async def test_unforeseen_error_of_a_backend_is_told(bench: Bench) -> None:
    class Raising(Odd):
        @staticmethod
        def how(frames: Sequence[Frame]) -> Sequence[Prediction]:
            raise ZeroDivisionError

    with_backend(bench, Raising)
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        await until(desk, lambda: "the backend failed" in (((state := desk.state()) and state.error) or ""))


async def test_model_that_the_backend_cannot_load_ends_the_job(bench: Bench) -> None:
    class Closed(Odd):
        def __asynccontextmanager__(self) -> Any:
            raise ModelError("the head is not understood")

    with_backend(bench, Closed)
    error = await run(bench)
    assert error is not None
    assert "cannot look at the platform's images: the head is not understood" in error
    assert set(bench.world.published) == {"null", "other"}


@pytest.mark.parametrize("eyes", ["none", "of other formats"])
async def test_node_without_a_backend_for_the_model_looks_at_nothing(bench: Bench, eyes: str) -> None:
    if eyes == "none":
        bench.eyes = None
    else:
        assert bench.eyes is not None
        bench.eyes.formats = ("foreign",)
    assert await run(bench) is None
    assert set(bench.world.published) == {"null", "other"}
    assert bench.world.seen == {}
    assert "images of all states" not in bench.world.calls


async def test_images_that_the_platform_has_lost_are_left_out(bench: Bench) -> None:
    rows = bench.world.images_of
    rows["image-5"] = (None, *rows["image-5"][1:])
    rows["image-4"] = (b"no picture", *rows["image-4"][1:])
    assert await run(bench) is None
    assert set(bench.world.seen) == {f"image-{number}" for number in range(4)}


async def test_pictures_that_the_platform_does_not_have_any_more_are_removed(bench: Bench) -> None:
    assert await run(bench) is None
    (images,) = (bench.folder / "images").iterdir()
    assert len(list(images.iterdir())) == 6
    del bench.world.images_of["image-5"]
    assert await run(bench, id="job-2") is None
    assert len(list(images.iterdir())) == 5


# REPORTING


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.train.predicting.CHUNK", 2)


@pytest.mark.usefixtures("small_chunks")
async def test_predictions_are_told_in_portions_and_no_portion_twice(bench: Bench) -> None:
    bench.world.faults["predictions"] = [noop, RetryableError("lost"), noop, RetryableError("lost")]
    assert await run(bench) is None
    assert bench.world.calls.count("predictions") == 5
    assert len(bench.world.seen) == 6


@pytest.mark.usefixtures("small_chunks")
async def test_portion_that_was_looked_at_is_not_looked_at_again(bench: Bench) -> None:
    class Counting(Odd):
        calls: ClassVar[list[int]] = []

    async def fail_after_two() -> None:
        while len(list((bench.job_folder() / "predictions").glob("*.json"))) < 2:
            await desk.changed()
        raise RetryableError("lost")

    with_backend(bench, Counting)
    bench.world.faults["fetch images"] = [noop, noop, noop, fail_after_two]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
    assert Counting.calls == [2, 2, 2]
    assert bench.world.calls.count("images of all states") == 1
    assert len(bench.world.seen) == 6


async def noop() -> None:
    pass


async def test_predictions_are_gone_when_the_job_is_done(bench: Bench) -> None:
    assert await run(bench) is None
    assert not (bench.job_folder() / "predictions").exists()
    assert (bench.job_folder() / "work").exists()


async def test_damaged_predictions_end_the_job(bench: Bench) -> None:
    async def damage() -> None:
        (file,) = (bench.job_folder() / "predictions").glob("*.json")
        file.write_text(json.dumps({"image-0": {"detections": [{"kind": "blob"}]}}))
        raise RetryableError("lost")

    bench.world.faults["predictions"] = [damage]
    error = await run(bench)
    assert error is not None
    assert "what the model found is damaged" in error
