"""The campaign of crash states: batches of histories in processes of their own."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Struct, field

from loopcore.cli.torture.campaign import Finding, Progress, scratch_folder
from loopcore.cli.torture.histories import History, Tally
from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.cli.torture.rig import World

_BATCH = 1000
_HISTORIES = 20
_STEPS = 25
_MOST_BROKEN = 10


class Batch(Struct):
    """What one batch has found.

    Attributes:
        states: The digests of the states.
        looked: How many points of histories and states there were.
        histories: How many histories.
        broken: Broken promises: kind and story.
    """

    states: set[bytes] = field(default_factory=set)
    looked: int = 0
    histories: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


def run_batch(number: int, states: int, base: Path, world: World | None = None) -> Batch:
    """Explore histories until there are so many distinct states, or a promise is broken.

    Args:
        number: The seed.
        states: How many.
        base: Where to work.
        world: What the outbox is made of.
    """
    tally = Tally()
    batch = Batch(states=tally.states)
    told: list[str] = []
    known = {"tally": tally, "base": base, "enough": states, "world": world or World(), "told": told}
    rounds = 0
    while len(tally.states) < states and not batch.broken:
        machine = seed(number * 1_000_003 + rounds)(type("Histories", (History,), known))
        rounds += 1
        try:
            run_state_machine_as_test(machine, settings=_settings())
        except Exception as exc:  # noqa: BLE001 - whatever an outbox does here, it is told as a story
            kind = exc.kind if isinstance(exc, BrokenPromiseError) else "error"
            story = "\n".join([f"seed {number}, round {rounds}", *told, f"{type(exc).__name__}: {exc}"])
            batch.broken.append((kind, story))
    batch.looked, batch.histories = tally.looked, tally.histories
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
    """
    begun = monotonic()
    finding = Finding(campaign="crash states", what="states")
    known: set[bytes] = set()
    looked = histories = 0
    with scratch_folder() as base:
        for batch in _batches(number, base):
            before = len(known)
            known |= batch.states
            looked += batch.looked
            histories += batch.histories
            progress(min(len(known), states) - min(before, states))
            for kind, story in batch.broken:
                finding.note(kind, story)
            if len(known) >= states or finding.broken.total() >= _MOST_BROKEN:
                break
    finding.count = len(known)
    finding.seconds = monotonic() - begun
    finding.detail = f"{histories:,} histories, {looked:,} power cuts, each state counted once"
    return finding


def _batches(number: int, base: Path) -> Iterator[Batch]:
    """As they are ready, two for each processor in hand, for as long as somebody asks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_prepare_process) as pool:
        waiting: set[Future[Batch]] = set()
        following = number << 24
        try:
            while True:
                while len(waiting) < 2 * cores:
                    waiting.add(pool.submit(run_batch, following, _BATCH, base))
                    following += 1
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):  # a batch takes seconds, and nobody waits for it
                process.terminate()


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    gc.set_threshold(100_000, 50, 100)  # little of what is made here goes in circles
    logging.disable(logging.CRITICAL)  # an outbox that is hurt says so
