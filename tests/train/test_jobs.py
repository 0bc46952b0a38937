"""Promises of the worker: a job that was accepted is carried through, or ends for a reason that is seen."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from loopcore.abc import Accepted, Declined, JobStep, Score
from loopcore.errors import (
    AuthError,
    PluginError,
    RejectedError,
    RetryableError,
    StorageError,
    TrainingError,
)
from loopcore.package import write_package
from loopcore.train import Desk, Terms
from loopcore.train.stepping import pause_s
from loopcore.types import ModelInfo

from .conftest import LIMIT_S, Bench, offered, until, until_over

pytestmark = pytest.mark.anyio

POINTS = [
    "images of complete",
    "fetch images",
    "download",
    "list models",
    "fetch model",
    "step",
    "trained",
    "score",
    "publish null",
    "published null",
    "publish other",
    "images of all states",
    "predictions",
]
"""Where a job deals with something that may fail, in order."""

BEFORE_PUBLISHING = POINTS[: POINTS.index("publish null")]


@pytest.fixture
def bench(bench: Bench, tmp_path: Path) -> Bench:
    """With a model to start from."""
    folder = tmp_path / "base model"
    folder.mkdir()
    (folder / "model.bin").write_text("base")
    info = write_package(folder, ModelInfo(name="old", version="1.0", format="null")).info
    bench.world.models_of = [(replace(info, extra={"platform": {"id": "uuid-of-1.0"}}), folder)]
    return bench


JOB_BASE = "uuid-of-1.0"


def check_done(bench: Bench) -> None:
    """Whatever has happened on the way, this is what a job comes to."""
    world = bench.world
    assert set(world.published) == {"null", "other"}
    assert set(world.seen) == {f"image-{number}" for number in range(6)}
    assert all(prediction.model_version == "1.1" for prediction in world.seen.values())
    assert world.scores[-1] == Score(confusion={"cat": (3, 0, 1), "dog": (3, 0, 1)}, epoch=3, metrics={"f1": 0.5})
    assert world.base == "1.0"
    assert not (bench.folder / "job.json").exists()


async def test_job_is_carried_through(bench: Bench) -> None:
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)
    assert bench.world.uploads == 2
    assert bench.world.trained == 3


async def test_job_is_on_disk_when_it_is_accepted(bench: Bench) -> None:
    async with bench.worker() as desk:
        job = bench.world.job(base=JOB_BASE, parameters={"epochs": 3}, labels=("dog", "cat"))
        await offered(desk, job)
        assert json.loads((bench.folder / "job.json").read_text())["job"]["context"] == {"number": 7}
    assert bench.world.calls == []
    bench.world.labels = ("dog", "cat")
    async with bench.worker() as desk:
        state = desk.state()
        assert state is not None
        assert state.job == job
        assert await until_over(desk) is None
    assert bench.world.parameters == {"epochs": 3}


async def test_worker_that_is_killed_at_every_point_goes_on(bench: Bench) -> None:
    for point in POINTS:
        reached = anyio.Event()

        async def hang(reached: anyio.Event = reached) -> None:
            reached.set()
            await anyio.sleep_forever()

        bench.world.faults[point] = [hang]
        with anyio.fail_after(LIMIT_S):
            async with bench.worker() as desk:
                if point == POINTS[0]:
                    await offered(desk, bench.world.job(base=JOB_BASE))
                await reached.wait()
    async with bench.worker() as desk:
        assert await until_over(desk) is None
    check_done(bench)
    assert bench.world.trained == 3  # the trainer has gone on where it was
    assert len(bench.world.downloads) == 6  # and no image came twice


async def test_step_that_fails_is_tried_again_and_says_why(bench: Bench) -> None:
    seen: list[tuple[str, str | None]] = []

    def looking(point: str) -> Callable[[], Awaitable[None]]:
        async def look() -> None:
            state = desk.state()
            seen.append((point, state and state.error))

        return look

    errors = [RetryableError("no route"), StorageError("disk full"), AuthError("who are you?"), PluginError("odd")]
    for point in POINTS:
        unforeseen = [] if point in {"step", "trained"} else [KeyError("a platform's bug"), TimeoutError(), OSError(5)]
        if unforeseen and not point.startswith("publish"):
            unforeseen.append(RejectedError("a proxy's whim", status=409))
        bench.world.faults[point] = [*unforeseen, *errors, looking(point)]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)
    assert dict(seen) == dict.fromkeys(POINTS, "odd") | {"score": dict(seen)["score"]}  # in vain, nobody minds that one


@pytest.mark.parametrize("point", [point for point in POINTS if point != "score"])
async def test_error_that_trying_cannot_mend_ends_the_job_and_stays_visible(bench: Bench, point: str) -> None:
    error = RejectedError("no", status=404) if point.startswith("publish") else TrainingError("no")
    bench.world.faults[point] = [error]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        state = await until_over(desk)
        assert state is not None
        assert (state.step, state.error) == (JobStep.ENDED, "no")
        assert not desk.blocked()
    calls = len(bench.world.calls)
    async with bench.worker() as desk:
        shown = desk.state()
        assert shown is not None
        assert (shown.step, shown.error) == (JobStep.ENDED, "no")
    assert len(bench.world.calls) == calls
    assert bool(bench.world.published) is (point not in BEFORE_PUBLISHING and point != "publish null")


async def test_failed_job_makes_way_for_the_next(bench: Bench) -> None:
    bench.world.faults["predictions"] = [TrainingError("no")]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is not None
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)


async def test_score_must_be_heard_once_the_training_is_over(bench: Bench) -> None:
    async def refuse_while_training(name: str) -> None:
        state = desk.state()
        if name == "score" and state is not None and state.step is JobStep.TRAINING:
            raise RejectedError("not now")

    bench.world.always = refuse_while_training
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    assert [score.epoch for score in bench.world.scores] == [3]


async def test_platform_hears_new_scores_during_the_training(bench: Bench) -> None:
    async def until_heard() -> None:
        while len(bench.world.scores) < 1:
            await desk.changed()

    bench.world.faults["trained"] = [until_heard]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    assert len(bench.world.scores) >= 2


async def abort_at(bench: Bench, point: str, *, kill: bool = False) -> None:
    reached = anyio.Event()

    async def hang() -> None:
        reached.set()
        await anyio.sleep_forever()

    bench.world.faults[point] = [hang]
    with anyio.fail_after(LIMIT_S):
        async with bench.worker() as desk:
            await offered(desk, bench.world.job(base=JOB_BASE))
            await reached.wait()
            await desk.abort("job-1")
            if not kill:
                assert await until_over(desk) is None
        if kill:
            async with bench.worker() as desk:
                assert await until_over(desk) is None
    assert not bench.job_folder().exists()
    assert not (bench.folder / "job.json").exists()


@pytest.mark.parametrize("point", POINTS)
async def test_aborted_job_leaves_nothing(bench: Bench, point: str) -> None:
    await abort_at(bench, point)
    assert bool(bench.world.published) is (point not in BEFORE_PUBLISHING and point != "publish null")


@pytest.mark.parametrize("point", ["fetch images", "step", "predictions"])
async def test_aborted_job_leaves_nothing_though_the_worker_is_killed(bench: Bench, point: str) -> None:
    await abort_at(bench, point, kill=True)
    bench.world.published.clear()
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)


async def test_abort_of_a_job_that_has_just_been_accepted(bench: Bench) -> None:
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        await desk.abort("job-1")
        assert await until_over(desk) is None
        await offered(desk, bench.world.job("job-2"))
        assert await until_over(desk) is None
    assert not bench.job_folder("job-1").exists()


async def test_abort_of_a_failed_job_takes_its_error_away(bench: Bench) -> None:
    bench.world.faults["step"] = [TrainingError("no")]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is not None
        await desk.abort("job-1")
        assert desk.state() is None
    async with bench.worker() as desk:
        assert desk.state() is None


async def test_abort_and_stop_of_another_job_change_nothing(bench: Bench) -> None:
    async def meddle() -> None:
        await desk.abort("job-2")
        await desk.stop("job-2")

    bench.world.faults["step"] = [meddle]
    async with bench.worker() as desk:
        await desk.abort("job-1")
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)


async def test_stopped_training_keeps_its_best_model(bench: Bench) -> None:
    async def stop() -> None:
        await desk.stop("job-1")

    bench.world.faults["step"] = [stop]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
    assert bench.world.trained == 1
    assert bench.world.published["null"] == {"model.bin": b"null of 1 steps"}


async def test_stopped_training_stays_stopped_after_a_restart(bench: Bench) -> None:
    stopped = anyio.Event()

    async def stop() -> None:
        await desk.stop("job-1")
        stopped.set()
        await anyio.sleep_forever()

    bench.world.faults["step"] = [stop]
    with anyio.fail_after(LIMIT_S):
        async with bench.worker() as desk:
            await offered(desk, bench.world.job())
            await stopped.wait()
        async with bench.worker() as desk:
            assert await until_over(desk) is None
    assert bench.world.trained == 0


async def test_stop_in_any_other_step_does_nothing(bench: Bench) -> None:
    async def stop() -> None:
        await desk.stop("job-1")

    for point in set(POINTS) - {"step", "trained", "score"}:
        bench.world.faults[point] = [stop]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(base=JOB_BASE))
        assert await until_over(desk) is None
    check_done(bench)
    assert bench.world.trained == 3


async def test_busy_worker_declines(bench: Bench) -> None:
    answers = []

    async def offer() -> None:
        answers.append(await desk.offer(bench.world.job()))
        answers.append(await desk.offer(bench.world.job("job-2")))

    bench.world.faults["step"] = [offer]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
    assert answers == [Declined(why="the trainer is busy with the job job-1")] * 2


@pytest.mark.parametrize("name", ["", "../x", ".", "..", "a/b", "a b", "x" * 129, "a\0", "-a"])
async def test_name_that_is_no_name_is_declined(bench: Bench, name: str) -> None:
    async with bench.worker() as desk:
        assert isinstance(await desk.offer(bench.world.job(name)), Declined)
        assert desk.state() is None


async def test_job_that_cannot_be_noted_is_declined(bench: Bench) -> None:
    async with bench.worker() as desk:
        (bench.folder / "job.json").mkdir()
        answer = await desk.offer(bench.world.job())
        assert isinstance(answer, Declined)
        assert "cannot write" in answer.why
        assert desk.state() is None
        (bench.folder / "job.json").rmdir()
        assert await desk.offer(bench.world.job()) == Accepted()


async def test_worker_that_is_not_running_declines(bench: Bench) -> None:
    assert isinstance(await Desk(bench.make(), "loop").offer(bench.world.job()), Declined)


async def test_another_platform_s_job_is_in_the_way_and_not_shown(bench: Bench) -> None:
    seen = []

    async def look() -> None:
        seen.append((second.state(), second.blocked(), desk.blocked(), await second.offer(bench.world.job("job-2"))))
        await second.abort("job-1")

    bench.world.faults["step"] = [look]
    async with bench.worker() as desk:
        second = Desk(desk._worker, "second")
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
        assert not second.blocked()
    state, blocked, own, answer = seen[0]
    assert (state, blocked, own) == (None, True, False)
    assert isinstance(answer, Declined)


async def test_job_of_a_platform_that_has_gone_is_kept_and_told_of(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
    async with anyio.create_task_group() as tasks:
        worker = bench.make()
        await tasks.start(worker.run, {"second": bench.world})
        assert worker.states() == {}
        tasks.cancel_scope.cancel()
    assert "its platform is not in the TOML" in caplog.text
    assert (bench.folder / "job.json").exists()


async def test_damaged_record_is_set_aside(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.folder.mkdir()
    (bench.folder / "job.json").write_text("{")
    async with bench.worker() as desk:
        assert desk.state() is None
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
    assert (bench.folder / "job.json.damaged").exists()
    assert "the job is lost" in caplog.text


@pytest.mark.parametrize("how", ["done", "failed", "aborted"])
async def test_worker_ends_after_a_job_if_it_is_to(bench: Bench, how: str) -> None:
    async def abort() -> None:
        await desk.abort("job-1")

    bench.terms = Terms(exit_after=True)
    if how != "done":
        bench.world.faults["step"] = [abort if how == "aborted" else TrainingError("no")]
    worker = bench.make()
    desk = Desk(worker, "loop")
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run, {"loop": bench.world})
            await offered(desk, bench.world.job())
        # the group has ended: so has the worker
        assert isinstance(await desk.offer(bench.world.job()), Declined)
        async with bench.worker() as again:  # and what it has to show does not end the next one
            assert (again.state() is not None) is (how == "failed")


async def test_idle_worker_ends_if_it_is_to(bench: Bench) -> None:
    bench.terms = Terms(idle_exit=0.01)
    worker = bench.make()
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run, {"loop": bench.world})


async def test_busy_worker_is_not_idle(bench: Bench) -> None:
    async def linger() -> None:
        with anyio.move_on_after(0.05):
            await anyio.sleep_forever()

    bench.terms = Terms(idle_exit=0.01)
    bench.world.faults["step"] = [linger]
    async with bench.worker() as desk:
        if await desk.offer(bench.world.job(base=JOB_BASE)) == Accepted():  # else it was idle for too long already
            assert await until_over(desk) is None
            check_done(bench)


async def test_hooks_hear_of_every_step_and_the_figures(bench: Bench) -> None:
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        assert await until_over(desk) is None
        await until(desk, lambda: True)
        with anyio.fail_after(LIMIT_S):
            while not bench.told or bench.told[-1][1] != "ended":
                await anyio.lowlevel.checkpoint()
    steps = list(dict.fromkeys(step for _, step, _, _ in bench.told))
    assert steps == [step.value for step in JobStep]
    shares = [share for _, _, share, _ in bench.told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert bench.told[-1][3] == {"loss": pytest.approx(1 / 4)}


def test_pauses_double_up_to_a_ceiling_and_heed_the_platform_s_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.train.stepping.RETRY_S", 5.0)
    monkeypatch.setattr("loopcore.train.stepping.MAX_RETRY_S", 300.0)
    for failures, expected in enumerate([5, 10, 20, 40, 80, 160, 300, 300], start=1):
        assert 0.8 * expected <= pause_s(StorageError(""), failures) <= 1.2 * expected
    assert pause_s(StorageError(""), 10_000) <= 360
    assert pause_s(RetryableError("", retry_after_s=100), 1) == 100
    assert pause_s(RetryableError("", retry_after_s=1e9), 1) == 300
