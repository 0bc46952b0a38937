"""`loopcore demo`: a node at work on real pictures, with a model that is made on the spot."""

from __future__ import annotations

import signal
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from loopcore.errors import LoopcoreError


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to fill; an earlier demo in it is replaced.")] = (
        Path("loopcore-demo")
    ),
    scenes: Annotated[int, typer.Option(min=1, max=999, metavar="N", help="How many pictures to make.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures; the same, the same ones.")] = 0,
) -> None:
    """See it work: a detector looks at real pictures, the uncertain ones are picked and delivered.

    Handwritten digits are pasted into photographs, a small model is fitted to others of them, and a node runs: folder
    source, model, selectors, outbox, folder sink. DIR then holds all of it, and report.html shows what happened.
    """
    from loopcore import config, node
    from loopcore.cli.console import Console
    from loopcore.cli.demo.model import fit_model
    from loopcore.cli.demo.report import draw_pictures, write_report
    from loopcore.cli.demo.scenes import LABELS, load_material
    from loopcore.cli.demo.summary import summarize
    from loopcore.cli.demo.workspace import BAND, prepare, write_node, write_scenes

    console = Console()
    begun = monotonic()
    learned, unseen = load_material()
    prepare(out)
    console.print(f"Making {scenes} scenes: handwriting in photographs")
    write_scenes(out, unseen, count=scenes, seed=seed)
    console.print("Fitting a model to other handwriting")
    fit_model(learned, out / "model", seed=seed)
    console.print("Running the node: scenes → model → selectors → outbox → folder")
    caught = node.run_config(config.load(write_node(out)), until_done=True)
    if caught == signal.SIGINT:
        raise KeyboardInterrupt
    summary = summarize(out, LABELS, BAND)
    if caught or not summary.frames:
        raise LoopcoreError(f"the node ended before it had seen anything; loopcore run {out / 'loop.toml'} tells more")
    draw_pictures(out, summary)
    write_report(out, summary)
    summary.show(console)
    console.print(f"\nDone in {monotonic() - begun:.0f} s. Open {out / 'report.html'}")
