"""A worker that does as a test says, and the trainings that it is given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
from loop import DEMO
from loopcore_learningloop.trainings import job_of
from msgspec.structs import replace

from loopcore.abc import Accepted, Declined, Job, JobState, TrainerInfo

ORGANIZATION, _, PROJECT = DEMO.partition("/")
BEGUN = datetime(2026, 11, 21, 8, tzinfo=UTC)
SEAL = {"id": "5ea1", "name": "seal", "type": "box"}
FLOE = {"id": "f10e", "name": "floe", "type": "segmentation", "color": "#ffffff"}
MODEL = "00000000-0000-0000-0000-000000000011"
INFO = TrainerInfo(architecture="tiny", formats=("mocked",), pretrained=("small", "large"), node="gate-3")
NEW = {
    "categories": [SEAL, FLOE],
    "hyperparameters": {"epochs": 3, "nested": {"a": [1, None]}},
    "training_number": 7,
    "model_variant": "small",
    "base_model_uuid": None,
}
OLD = {"id": MODEL, "categories": [SEAL], "training_number": 7, "resolution": 640, "flip_rl": True, "flip_ud": False}


class ScriptedWorker:
    """A worker whose state a test sets; it takes one job at a time and does nothing with it.

    Attributes:
        seen: Set once somebody has looked at the newest state, and waits for the next.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_blocked = False
        self.answer: Accepted | Declined | Exception = Accepted()
        self._state: JobState | None = None
        self._changed = anyio.Event()
        self.seen = anyio.Event()

    def set(self, state: JobState | None) -> None:
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()
        self.seen = anyio.Event()

    async def offer(self, job: Job) -> Accepted | Declined:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self._state is not None:
            return Declined(why=f"the training {self._state.job.id} is going on")
        if isinstance(self.answer, Accepted):
            self.set(JobState(job=job))
        return self.answer

    async def stop(self, job: str) -> None:
        self.told.append(f"stop {job}")

    async def abort(self, job: str) -> None:
        self.told.append(f"abort {job}")
        self.set(None)

    def state(self) -> JobState | None:
        return self._state

    def blocked(self) -> bool:
        return self.is_blocked

    def describe(self) -> TrainerInfo:
        return INFO

    async def changed(self) -> None:
        self.seen.set()
        await self._changed.wait()


def job(**more: Any) -> Job:
    made = job_of(ORGANIZATION, PROJECT, NEW, pretrained=INFO.pretrained, begun=BEGUN)
    return replace(made, **more)
