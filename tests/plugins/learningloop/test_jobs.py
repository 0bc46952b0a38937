"""The trainer's role at the Loop: jobs come, are refused, stopped and aborted, and the Loop sees how they go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from loop import DEMO, Answer, LoopServer, LoseAnswer, Nonsense
from loopcore_learningloop import jobs, sockets
from loopcore_learningloop.client import Loop
from loopcore_learningloop.deployment import node_id
from loopcore_learningloop.jobs import Trainings
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.trainings import STATES
from workers import ScriptedWorker, job

from loopcore import Secret
from loopcore.abc import (
    Declined,
    ImageStore,
    JobState,
    JobStep,
    ModelRegistry,
    Score,
)
from loopcore.errors import RetryableError, StorageError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "FIRST_S", 0.02)
    monkeypatch.setattr(sockets, "LEAST_UP_S", 0.0)
    monkeypatch.setattr(sockets, "CYCLE_S", 3600.0)
    monkeypatch.setattr(jobs, "LEAST_S", 0.0)


class Role:
    def __init__(self, queue: Trainings, worker: ScriptedWorker, ended: anyio.Event) -> None:
        self.queue = queue
        self.worker = worker
        self.ended = ended


@asynccontextmanager
async def trainer(loop: LoopServer, **more: Any) -> AsyncIterator[Role]:
    options = PlatformOptions(url=loop.url, username="ranger", password=Secret("krill"), **more)
    with fail_after(20):
        async with Loop(options) as client, create_task_group() as tasks:
            role = Role(Trainings(client, options), ScriptedWorker(), anyio.Event())

            async def serve(*, task_status: Any) -> None:
                await role.queue.serve(role.worker, task_status=task_status)
                role.ended.set()

            await tasks.start(serve)
            yield role
            tasks.cancel_scope.cancel()


# Over the socket


async def test_training_is_given_refused_while_busy_and_shown(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        assert await loop.sockets.begin_training(DEMO, 7) == {"success": True, "error_msg": None, "payload": None}
        await loop.trainers.until(lambda report: report.body["state"] == "initialized")
        again = await loop.sockets.begin_training(DEMO, 8)
        given = role.worker.state()
    assert again["payload"] == "refused"
    assert again["success"] is False
    assert "zauberzeug.demo.7" in again["error_msg"]
    assert given
    assert given.job.labels == tuple(category["name"] for category in loop.store[DEMO].categories)
    assert list(loop.complaints) == []


async def test_worker_that_cannot_now_says_why(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        role.worker.answer = Declined(why="the GPU is taken by trainer-2")
        ack = await loop.sockets.begin_training(DEMO, 7)
    assert ack == {"success": False, "error_msg": "the GPU is taken by trainer-2", "payload": "refused"}


async def test_worker_that_cannot_note_the_job_says_so(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        role.worker.answer = StorageError("the disk is full")
        ack = await loop.sockets.begin_training(DEMO, 7)
    assert ack == {"success": False, "error_msg": "the disk is full", "payload": None}


async def test_malformed_training_is_refused_over_the_wire(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        ack = await loop.sockets.begin_training(DEMO, 7, training_number=...)
        assert role.worker.state() is None
    assert ack["success"] is False
    assert ack["payload"] is None
    assert "training_number" in ack["error_msg"]


@pytest.mark.parametrize("wish", [{"base_model_uuid": "no\nuuid"}, {"model_variant": "huge"}], ids=str)
async def test_model_that_is_not_there_is_told_once_and_by_nobody_who_is_refused(
    loop: LoopServer, wish: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with trainer(loop):
        assert (await loop.sockets.begin_training(DEMO, 7, **wish))["success"] is True
        for _ in range(3):
            assert (await loop.sockets.begin_training(DEMO, 8, **wish))["payload"] == "refused"
    warnings = [one.getMessage() for one in caplog.records if "does not have" in one.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].isprintable()


async def test_training_is_stopped_and_aborted(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        for _ in range(2):
            assert (await loop.sockets.stop_training())["success"] is True
            assert (await loop.sockets.abort_training())["success"] is True
            await loop.sockets.begin_training(DEMO, 7)
        await loop.sockets.stop_training()
        await loop.sockets.abort_training()
        told = role.worker.told
    name = "zauberzeug.demo.7"
    assert told == [f"stop {name}", f"abort {name}"] * 2


async def test_each_change_is_told_without_delay(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        await loop.trainers.until(lambda report: report.body["state"] == "idle")
        for step in (JobStep.COLLECTING, JobStep.TRAINING, JobStep.PUBLISHING):
            role.worker.set(JobState(job=job(), step=step))
            await loop.trainers.until(lambda report, step=step: report.body["state"] == STATES[step][0])
        role.worker.is_blocked = True
        role.worker.set(None)
        await loop.trainers.until(lambda report: report.body["state"] == "blocked")


async def test_every_state_is_told_however_short_it_was(loop: LoopServer) -> None:
    steps = [step for step in JobStep if step is not JobStep.ENDED]
    async with trainer(loop) as role:
        await loop.trainers.wait(1)
        for step in steps:
            for finished in (False, True):
                role.worker.set(JobState(job=job(), step=step, finished=finished))
                await role.worker.seen.wait()
        role.worker.set(None)
        await loop.trainers.until(lambda report: report.body["state"] == "idle", after=1)
    told = [report.body["state"] for report in loop.trainers]
    assert list(dict.fromkeys(told[1:])) == list(
        dict.fromkeys([*(one for step in steps for one in STATES[step]), "idle"])
    )


async def test_error_that_ends_a_job_keeps_the_key_of_its_step(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        role.worker.set(JobState(job=job(), step=JobStep.PUBLISHING))
        await loop.trainers.until(lambda report: report.body["state"] == "train_model_uploading")
        role.worker.set(JobState(job=job(), step=JobStep.ENDED, finished=True, error="refused"))
        report = await loop.trainers.until(lambda report: bool(report.body["errors"]))
    assert (report.body["state"], report.body["errors"]) == ("idle", {"upload_model": "refused"})


async def test_status_has_the_same_id_after_a_restart_and_another_one_than_the_detector(loop: LoopServer) -> None:
    for _ in range(2):
        async with trainer(loop):
            seen = len(loop.trainers)
            await loop.trainers.wait(seen + 1)
    (told,) = {report.body["id"] for report in loop.trainers}
    assert told != node_id(PlatformOptions(url=loop.url), "gate-3")


async def test_loop_that_does_not_answer_in_objects_is_borne(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "CYCLE_S", 0.02)
    loop.faults.script("update_trainer", Nonsense(), Nonsense())
    async with trainer(loop):
        await loop.trainers.wait(2)
    assert len(loop.connections) == 1


async def test_muted_trainer_tells_nothing(loop: LoopServer) -> None:
    async with trainer(loop, muted=True):
        await anyio.wait_all_tasks_blocked()
    assert len(loop.calls) == 0


async def test_restart_ends_the_role(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        assert (await loop.sockets.call(await loop.sockets.node("trainer"), "restart"))["success"] is True
        await role.ended.wait()


# Figures


@pytest.fixture
def scored() -> Callable[..., JobState]:
    def scored(**more: Any) -> JobState:
        score = Score(confusion={"seal": (5, 1, 2), "unknown": (1, 1, 1), "floe": (0, 0, 3)}, epoch=4)
        images = {"train": 30, "val": 4, "test": 8, "missing": 2}
        return JobState(job=job(), step=JobStep.SCORING, score=score, images=images, **more)

    return scored


async def test_figures_are_told_by_the_ids_of_categories(loop: LoopServer, scored: Callable[..., JobState]) -> None:
    async with trainer(loop) as role:
        await loop.trainers.wait(1)
        await role.queue.score(scored())
    (report,) = loop.trainings
    assert report.project == DEMO
    assert report.body == {
        "trainer_id": loop.trainers[0].body["id"],
        "trainer_name": "gate-3",
        "confusion_matrix": {"5ea1": {"tp": 5, "fp": 1, "fn": 2}, "f10e": {"tp": 0, "fp": 0, "fn": 3}},
        "train_image_count": 34,
        "test_image_count": 8,
        "hyperparameters": {"epochs": 3, "nested": {"a": [1, None]}},
        "best_epoch": 4,
        "training_number": 7,
    }
    assert list(loop.complaints) == []


@pytest.mark.parametrize("fault", [Answer(500), Nonsense(), LoseAnswer()], ids=repr)
async def test_figures_that_do_not_arrive_come_again(
    loop: LoopServer, scored: Callable[..., JobState], fault: Any
) -> None:
    loop.faults.script("update_training", fault)
    async with trainer(loop) as role:
        await loop.trainers.wait(1)
        with pytest.raises(RetryableError):
            await role.queue.score(scored())
        seen = len(loop.trainers)
        if isinstance(fault, LoseAnswer):
            await loop.trainers.wait(seen + 1)
        await role.queue.score(scored())
    assert loop.trainings[-1].body["best_epoch"] == 4


async def test_figures_wait_for_a_connection(loop: LoopServer, scored: Callable[..., JobState]) -> None:
    options = PlatformOptions(url=loop.url)
    async with Loop(options) as client:
        with pytest.raises(RetryableError, match="no connection"):
            await Trainings(client, options).score(scored())


async def test_images_and_models_are_those_of_the_jobs_project(loop: LoopServer) -> None:
    async with trainer(loop) as role:
        images, models = role.queue.images(job()), role.queue.models(job())
        assert isinstance(images, ImageStore)
        assert isinstance(models, ModelRegistry)
        ids = await images.images(["complete"])
        listed = await models.list()
    assert set(ids) == {image.id for image in loop.store[DEMO].images.values() if image.state == "complete"}
    assert {info.version for info in listed} == {"1.0", "1.1", "1.2"}
