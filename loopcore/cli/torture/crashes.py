"""The campaign of crash states: batches of histories, on all processors."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from time import monotonic
from typing import Self

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Struct, field

from loopcore.cli.torture.campaign import Finding, Progress, interrupts_held, scratch_folder
from loopcore.cli.torture.histories import History, Tally
from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.cli.torture.world import World
from loopcore.errors import LoopcoreError

_BATCH = 500
_HISTORIES = 10
_STEPS = 25
_MOST_BROKEN = 10
_BATCHES_A_PROCESS = 4
"""Each leaves some 100 MB behind that nothing frees."""
_ENDED = "a process that looks at crash states was ended from outside; was the memory full?"


class Batch(Struct):
    """What one batch has found.

    Attributes:
        tally: What was looked at.
        broken: Broken promises: kind and story.
    """

    tally: Tally = field(default_factory=Tally)
    broken: list[tuple[str, str]] = field(default_factory=list)


def run_batch(number: int, states: int, base: Path, world: World | None = None) -> Batch:
    """Explore histories until there are so many distinct states, or a promise is broken.

    Args:
        number: The seed.
        states: How many.
        base: Where to work.
        world: What the outbox is made of.
    """
    batch = Batch()
    told: list[str] = []
    known = {"tally": batch.tally, "base": base, "enough": states, "world": world or World(), "told": told}
    rounds = count()
    while len(batch.tally.states) < states and not batch.broken:
        turn = next(rounds)
        machine = seed(number * 1_000_003 + turn)(type("Histories", (History,), known))
        try:
            run_state_machine_as_test(machine, settings=_settings())
        except Exception as exc:  # noqa: BLE001 - whatever an outbox does here, it is told as a story
            kind = exc.kind if isinstance(exc, BrokenPromiseError) else "error"
            story = "\n".join([f"seed {number}, round {turn}", *told, f"{type(exc).__name__}: {exc}"])
            batch.broken.append((kind, story))
    return batch


def _settings() -> settings:
    return settings(
        max_examples=_HISTORIES,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )


def crash_states(states: int, number: int, progress: Progress = lambda _: None) -> Finding:
    """Look at so many distinct states.

    Args:
        states: How many.
        number: The seed.
        progress: Is told of states.

    Raises:
        LoopcoreError: A process that looks at some has ended.
    """
    begun = monotonic()
    finding = Finding(campaign="crash states", what="states")
    known: set[bytes] = set()
    looked = nested = histories = 0
    with scratch_folder() as base, closing(_batches(number, base)) as batches:
        for batch in batches:
            before = len(known)
            known |= batch.tally.states
            looked += batch.tally.looked
            nested += batch.tally.nested
            histories += batch.tally.histories
            progress(min(len(known), states) - min(before, states))
            for kind, story in batch.broken:
                finding.note(kind, story)
            if len(known) >= states or finding.broken.total() >= _MOST_BROKEN:
                break
    finding.count = len(known)
    finding.seconds = monotonic() - begun
    finding.detail = (
        f"{histories:,} histories, {looked:,} power cuts, {nested:,} of them while the outbox recovered from another;"
        " each state counted once"
    )
    return finding


def _batches(number: int, base: Path) -> Generator[Batch]:
    """As they are ready, one at a time on each processor in hand, for as long as somebody asks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = count(number << 24)
    ensure_running()  # starting it lets Ctrl-C in
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(base, numbers)) for _ in range(cores)]
        while True:
            ready = wait([worker.pipe for worker in workers])
            for worker in workers:
                if worker.pipe in ready:
                    yield worker.answer()


class _Worker:
    """A process that looks at batches, and ends with whoever asks it; a new one from time to time, for it grows.

    Args:
        base: Where to work.
        numbers: Of the batches.
    """

    def __init__(self, base: Path, numbers: Iterator[int]) -> None:
        self._base = base
        self._numbers = numbers

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        context = get_context("spawn")
        batches = [next(self._numbers) for _ in range(_BATCHES_A_PROCESS)]
        self._left = len(batches)
        with ExitStack() as stack, interrupts_held():
            self.pipe, there = context.Pipe(duplex=False)
            stack.enter_context(self.pipe)
            process = context.Process(target=_work, args=(there, self._base, batches), daemon=True)
            with there:
                process.start()
            stack.callback(process.join)
            stack.callback(process.kill)  # a batch takes seconds, and nobody waits for it
            self._stack = stack.pop_all()

    def answer(self) -> Batch:
        """What it has found in a batch; waits for it."""
        try:
            batch: Batch = self.pipe.recv()
        except (EOFError, OSError) as exc:
            raise LoopcoreError(_ENDED) from exc
        self._left -= 1
        if not self._left:
            self._stack.close()
            self._begin()
        return batch


def _work(pipe: Connection, base: Path, batches: Sequence[int]) -> None:
    set_hypothesis_home_dir(base)  # or it would leave a folder where the command was called
    gc.freeze()  # what was imported stays
    gc.set_threshold(100_000, 50, 100)
    logging.disable(logging.CRITICAL)  # an outbox that is hurt says so
    with suppress(BrokenPipeError):
        for number in batches:
            pipe.send(run_batch(number, _BATCH, base))
