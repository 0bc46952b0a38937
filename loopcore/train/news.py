"""Who is told that a job has come further: queues that wait for a change, and hooks."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import anyio
from anyio import Event

from loopcore.abc import JobState, JobStep
from loopcore.train.work import Work

EVERY_S = 1.0
"""How often hooks hear of progress within a step; of a step's beginning and end they always hear."""

_MAX_WAITING = 64

_DONE = {
    JobStep.ACCEPTED: 0.0,
    JobStep.COLLECTING: 0.1,
    JobStep.FETCHING: 0.15,
    JobStep.TRAINING: 0.8,
    JobStep.SCORING: 0.82,
    JobStep.PUBLISHING: 0.9,
    JobStep.PREDICTING: 0.97,
    JobStep.REPORTING: 1.0,
    JobStep.ENDED: 1.0,
}
"""How much of the whole job is done when a step is; a guess, for people."""


class Told(Protocol):
    """Hears of a job: its id, its step, 0 to 1 of the whole of it, and the trainer's newest figures."""

    async def __call__(self, job: str, state: str, progress: float, metrics: dict[str, float]) -> None: ...


class News:
    """Passes changes on."""

    def __init__(self, told: Told | None) -> None:
        self._told = told
        self._changed = Event()
        self._facts: deque[tuple[JobState, dict[str, float]]] = deque(maxlen=_MAX_WAITING)
        self._last: JobState | None = None

    def tell(self, work: Work | None) -> None:
        """Something has changed."""
        if work is not None and self._told is not None:
            self._keep(work.state(), dict(work.metrics))
        self._changed.set()
        self._changed = Event()

    async def next(self) -> None:
        """Wait for a change."""
        await self._changed.wait()

    async def run(self) -> None:
        """Tell hooks, until cancelled."""
        if self._told is None:
            return
        while True:
            if not self._facts:
                await self.next()
            while self._facts:
                state, metrics = self._facts.popleft()
                await self._told(state.job.id, state.step.value, share(state), metrics)
            await anyio.sleep(EVERY_S)

    def _keep(self, state: JobState, metrics: dict[str, float]) -> None:
        """What waits to be told is one entry for each step's beginning and end, the last of them brought up to date."""
        last, self._last = self._last, state
        if self._facts and last is not None and _place(last) == _place(state):
            self._facts.pop()
        self._facts.append((state, metrics))


def share(state: JobState) -> float:
    """How much of the whole job is done, 0 to 1."""
    steps = list(JobStep)
    before = _DONE[steps[max(0, steps.index(state.step) - 1)]]
    done = 1.0 if state.finished else state.progress or 0.0
    return before + (_DONE[state.step] - before) * done


def _place(state: JobState) -> tuple[str, JobStep, bool]:
    return state.job.id, state.step, state.finished
