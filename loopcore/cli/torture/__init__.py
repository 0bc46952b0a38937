"""`loopcore torture`: an outbox is killed, its disk fails, its power is cut, and it has to keep its word."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loopcore.cli.console import Console
    from loopcore.cli.torture.campaign import Finding, Progress

_STATES, _LONG_STATES = 20_000, 500_000
_KILLS, _LONG_KILLS = 20, 1000


def torture(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Kill in this folder; by default in that of temporary files."),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help=f"{_LONG_STATES:,} states and {_LONG_KILLS:,} kills.")] = False,
    states: Annotated[
        int | None, typer.Option(min=0, metavar="N", help=f"How many crash states to look at; {_STATES:,} by default.")
    ] = None,
    kills: Annotated[int | None, typer.Option(min=0, metavar="N", help=f"How many kills; {_KILLS} by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, other histories.")] = 0,
) -> None:
    """Try whether an outbox keeps its word: power cuts, failing disks, flipped bits, real kills.

    Power cuts, failing disks and flipped bits are played on a disk in memory; the kills are real, on the disk of DIR,
    in a new folder that is removed afterwards. Your own outbox is not touched. Exit code 1: a sample was lost, sent in
    part, or sent again. Needs: pip install 'loopcore[torture]'
    """
    from loopcore.cli.console import Console
    from loopcore.errors import ConfigError

    try:
        from loopcore.cli.torture.campaign import scratch_folder
        from loopcore.cli.torture.crashes import crash_states
    except ModuleNotFoundError as exc:
        if exc.name != "hypothesis":
            raise
        raise ConfigError("loopcore torture needs hypothesis: pip install 'loopcore[torture]'") from exc
    from loopcore.cli.torture.faults import faults
    from loopcore.cli.torture.flips import flips
    from loopcore.cli.torture.kills import kills as kill

    states = states if states is not None else _LONG_STATES if long else _STATES
    kills = kills if kills is not None else _LONG_KILLS if long else _KILLS
    with _in_order(), scratch_folder(folder or Path(tempfile.gettempdir())) as place, _quiet():
        campaigns: list[tuple[str, int | None, Callable[[Progress], Finding]]] = [
            ("crash states", states, lambda progress: crash_states(states, seed, progress)),
            ("failing disk", None, faults),
            ("flipped bits", None, lambda progress: flips(seed, progress)),
            ("kills", kills, lambda progress: kill(place / "outbox", kills, seed, progress)),
        ]
        findings = []
        for name, total, run in campaigns:
            if total != 0:
                with _progress_bar(name, total) as progress:
                    findings.append(run(progress))
    _show(Console(), findings)
    if any(finding.broken for finding in findings):
        raise typer.Exit(1)


def _show(console: Console, findings: list[Finding]) -> None:
    console.table(
        ["campaign", "tried", "lost", "half", "sent again", "other", "seconds"], [finding.row for finding in findings]
    )
    console.print("")
    for finding in findings:
        console.print(f"{finding.campaign}: {finding.detail}")
        for story in finding.stories:
            console.print(f"\n{story}")


@contextmanager
def _in_order() -> Iterator[None]:
    """What ends the process from outside, such as `timeout`, does what Ctrl-C does: nothing is left behind."""
    import signal

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _quiet() -> Iterator[None]:
    """An outbox that is hurt says so, some thousand times."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _progress_bar(name: str, total: int | None) -> Iterator[Progress]:
    """A bar on stderr, where that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.advance(task, done)
