"""`loopcore run`: the node."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from loopcore import config, node

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file that configures the node.")],
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End once the sources have ended and the sinks have everything.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Run a node: server, sources, backend, selectors, outbox and sinks, as FILE says.

    Ctrl-C or SIGTERM ends it; nothing that was accepted is lost.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format=FORMAT, stream=sys.stderr)
    for noisy in ("httpcore", "httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    loaded = config.load(file)
    caught = node.run_config(loaded, until_done=until_done, up=_up)
    if caught == signal.SIGINT:
        raise KeyboardInterrupt


def _up(url: str) -> None:
    logging.getLogger(__name__).info("The node is up url=%s", url)
