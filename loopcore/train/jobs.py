"""The one worker of a node: takes a platform's job, works it off, and comes back to it after a crash.

What is known of the job lies in `job.json`, written before anybody is told. A step that is cut short is done again. A
job that has failed stays visible until the next one comes.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import CancelScope, Event, Lock, create_task_group, to_thread
from msgspec import Struct

from loopcore.abc import Accepted, Declined, Job, JobQueue, JobState, JobStep, TrainerInfo
from loopcore.errors import StorageError
from loopcore.train import record as records
from loopcore.train.news import News, Told
from loopcore.train.record import Record
from loopcore.train.slot import Slot
from loopcore.train.stepping import work_off
from loopcore.train.work import Kit, Work

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

SLOT_S = 1.0
"""How often the GPU slot is looked at: a lock cannot be waited for."""

_TRIES = 4
"""Others look at the slot too, and have it for a moment then."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Terms(Struct, frozen=True, kw_only=True):
    """How this node trains.

    Attributes:
        name: The node's name, for others on this machine.
        slot: The lock file of the GPU slot.
        exit_after: The worker ends when a job has ended.
        idle_exit: It ends after so many seconds without a job.
    """

    name: str = "node"
    slot: Path | None = None
    exit_after: bool = False
    idle_exit: float | None = None


class JobWorker:
    """Works for several queues, on one job at a time.

    Args:
        folder: Where all that belongs to trainings is kept; made if it is absent, in one that exists.
        kit: What jobs are done with.
        terms: How.
        told: Hears how far a job is.
    """

    def __init__(self, folder: Path, kit: Kit, terms: Terms, told: Told | None = None) -> None:
        self._folder = folder
        self._kit = kit
        self._terms = terms
        self._slot = Slot(terms.slot)
        self._queues: Mapping[str, JobQueue] = {}
        self._work: Work | None = None
        self._at_work: CancelScope | None = None
        self._taken = False
        self._is_open = False
        self._offers = Lock()
        self._arrived = Event()
        self._news = News(told)

    def states(self) -> dict[str, JobState]:
        """The job there is, by the name of its queue."""
        return {self._work.record.queue: self._work.state()} if self._work else {}

    async def run(self, queues: Mapping[str, JobQueue], *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled, or until the terms say that it is enough; a job that is cut short goes on next time.

        Args:
            queues: Where jobs come from, by name.
            task_status: To say that jobs can be offered.

        Raises:
            StorageError: The folder or the slot cannot be used, before anything has begun.
        """
        self._queues = queues
        await to_thread.run_sync(self._make_folder)
        self._taken = await to_thread.run_sync(self._slot.is_taken)
        await self._recall()
        async with create_task_group() as tasks:
            tasks.start_soon(self._news.run)
            if self._terms.slot is not None:
                tasks.start_soon(self._watch_slot)
            self._is_open = True
            task_status.started()
            try:
                await self._work_on()
            finally:
                self._is_open = False
            tasks.cancel_scope.cancel()

    async def offer(self, queue: str, job: Job) -> Accepted | Declined:
        """As `Worker.offer`."""
        async with self._offers:
            if not self._is_open:
                return Declined(why="the trainer is not at work")
            if self._work is not None and self._is_busy():
                return Declined(why=f"the trainer is busy with the job {self._work.job.id}")
            if not _ID.fullmatch(job.id):
                return Declined(why=f"{job.id!r} is not the name of a job, expected letters, digits, '.', '_' and '-'")
            try:
                if not await self._take_slot(job):
                    return Declined(why=f"the GPU is taken by {self._slot.holder()}")
                with CancelScope(shield=True):
                    await self._accept(queue, job)
            except StorageError as exc:
                return Declined(why=str(exc))
        _log.info("A job is accepted job=%s platform=%s", job.id, queue)
        return Accepted()

    async def stop(self, queue: str, job: str) -> None:
        """As `Worker.stop`."""
        work = self._find(queue, job)
        if work is None or work.state().step is not JobStep.TRAINING or work.record.step is JobStep.TRAINING:
            return
        work.stop.set()
        try:
            await work.note(stopping=True)
        except StorageError as exc:
            _log.warning("That a training is to stop is forgotten at a restart job=%s error=%s", job, exc)

    async def abort(self, queue: str, job: str) -> None:
        """As `Worker.abort`; durable on return, while the cleaning-up may still go on."""
        work = self._find(queue, job)
        if work is None:
            return
        try:
            await work.note(aborted=True)
        except StorageError as exc:
            _log.warning("That a job is aborted is forgotten at a restart job=%s error=%s", job, exc)
        work.aborting = True
        if work.record.step is JobStep.ENDED:
            await self._clear(work)
        elif self._at_work is not None:
            self._at_work.cancel()

    def state(self, queue: str) -> JobState | None:
        """As `Worker.state`."""
        return self.states().get(queue)

    def is_blocked(self, queue: str) -> bool:
        """As `Worker.blocked`; another queue's job is in the way too."""
        if self._work is not None and self._is_busy():
            return self._work.record.queue != queue
        return self._taken

    def describe(self) -> TrainerInfo:
        """As `Worker.describe`."""
        return self._kit.info

    async def changed(self) -> None:
        """As `Worker.changed`."""
        await self._news.next()

    def _is_busy(self) -> bool:
        return self._work is not None and self._work.record.step is not JobStep.ENDED

    def _find(self, queue: str, job: str) -> Work | None:
        work = self._work
        return work if work and (work.record.queue, work.job.id) == (queue, job) else None

    # A job begins

    async def _recall(self) -> None:
        record = await to_thread.run_sync(records.load, self._folder / records.FILE)
        if record is None:
            return
        if record.queue not in self._queues:
            _log.error(
                "A job cannot go on, because its platform is not in the TOML; it is kept until another job comes"
                " job=%s platform=%s",
                record.job.id,
                record.queue,
            )
            return
        self._work = self._make_work(record)
        if record.aborted or (record.step is JobStep.ENDED and record.error is None):
            await self._clear(self._work)

    async def _accept(self, queue: str, job: Job) -> None:
        record = Record(queue=queue, job=job)
        work = self._make_work(record)
        try:
            await to_thread.run_sync(_remove, work.folder)  # what an earlier job of this name has left
            await work.note()
        except BaseException:
            self._slot.release()
            raise
        self._work = work
        self._arrived.set()
        self._tell()

    async def _take_slot(self, job: Job) -> bool:
        for left in reversed(range(_TRIES)):
            if self._slot.take(f"{self._terms.name}, job {job.id}, process {os.getpid()}"):
                return True
            if left:
                await anyio.sleep(0.05)
        return False

    def _make_work(self, record: Record) -> Work:
        return Work(record, self._queues[record.queue], self._folder, self._kit, self._tell)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot make {self._folder}: {exc.strerror or exc}") from exc

    # A job at work

    async def _work_on(self) -> None:
        while True:
            with anyio.move_on_after(self._terms.idle_exit) as limit:
                while not self._is_busy():
                    await self._arrived.wait()
                    self._arrived = Event()
            if limit.cancelled_caught:
                async with self._offers:  # one that is on its way is heard to its end
                    self._is_open = self._is_busy()
                if not self._is_open:
                    _log.info("There has been no job for %s s, and the trainer ends", self._terms.idle_exit)
                    return
            if self._work is not None:
                await self._do(self._work)
            if self._terms.exit_after:
                return

    async def _do(self, work: Work) -> None:
        error: str | None = None
        try:
            with CancelScope() as self._at_work:
                if not work.is_aborted():
                    await self._wait_for_slot(work)
                    error = await work_off(work)
        finally:
            self._at_work = None
            self._slot.release()
        if error is not None and not work.is_aborted():
            _log.error("A job has failed job=%s error=%s", work.job.id, error)
            return
        _log.info("A job has been %s job=%s", "aborted" if work.is_aborted() else "done", work.job.id)
        await self._clear(work)

    async def _wait_for_slot(self, work: Work) -> None:
        """A new job has it already; one that goes on after a restart waits."""
        while not await self._take_slot(work.job):
            work.wait(True)
            await anyio.sleep(SLOT_S)
        work.wait(False)

    async def _clear(self, work: Work) -> None:
        """Forget a job; of one that was aborted nothing is left, of another its folder, until the next one comes."""
        with suppress(OSError):
            await work.run(_remove, work.folder if work.is_aborted() else work.predictions)
        try:
            await work.close()
        except StorageError as exc:
            _log.warning("A job that has ended is looked at again after a restart job=%s error=%s", work.job.id, exc)
        if self._work is work:
            self._work = None
        self._tell()

    async def _watch_slot(self) -> None:
        while True:
            await anyio.sleep(SLOT_S)
            if not self._is_busy():
                with suppress(StorageError):
                    taken = await to_thread.run_sync(self._slot.is_taken)
                    if taken is not self._taken:
                        self._taken = taken
                        self._tell()

    def _tell(self) -> None:
        self._news.tell(self._work)


def _remove(folder: Path) -> None:
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
    except OSError as exc:
        raise StorageError(f"cannot remove {folder}: {exc.strerror or exc}") from exc
