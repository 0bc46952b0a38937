"""`loopcore run`: the node."""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from loopcore import config, node
from loopcore.cli.check import doubts
from loopcore.cli.log import VisibleFormatter

_log = logging.getLogger(__name__)
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file that configures the node.")],
    until_done: Annotated[
        bool,
        typer.Option(
            "--until-done",
            help="End once the sources have ended and the sinks have everything; wait for those that fail.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Run a node: server, sources, backend, selectors, outbox and sinks, as FILE says.

    Ctrl-C or SIGTERM ends it; nothing that was accepted is lost.
    """
    level = logging.DEBUG if verbose else logging.INFO
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(VisibleFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[terminal])
    for noisy in ("httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for anyones in ("uvicorn.error", "python_multipart"):  # a warning for each bad request, and anyone can send those
        logging.getLogger(anyones).setLevel(logging.ERROR)
    loaded = config.load(file)
    caught = node.run_config(loaded, until_done=until_done, up=partial(_up, loaded))
    _log.info("The node has ended")
    if caught == signal.SIGINT:
        raise KeyboardInterrupt


def _up(loaded: config.Config, url: str) -> None:
    for warning in (*loaded.warnings, *doubts(loaded)):
        _log.warning("%s", warning)
    _log.info("The node is up url=%s", url)
