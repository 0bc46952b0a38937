"""`loopcore run`: the node."""

from __future__ import annotations

import logging
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from loopcore import config, node
from loopcore.cli.check import doubts
from loopcore.cli.log import log_to_terminal

_log = logging.getLogger(__name__)


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
    log_to_terminal(verbose=verbose)
    run_until_stopped(config.load(file), until_done=until_done)


def run_until_stopped(loaded: config.Config, *, until_done: bool = False) -> None:
    """Run a node, and log what should be otherwise about its configuration.

    Raises:
        LoopcoreError: It could not start, or could not go on.
        KeyboardInterrupt: Ctrl-C ended it, in good order.
    """
    caught = node.run_config(loaded, until_done=until_done, up=partial(_up, loaded))
    _log.info("The node has ended")
    if caught == signal.SIGINT:
        raise KeyboardInterrupt


def _up(loaded: config.Config, url: str) -> None:
    for warning in (*loaded.warnings, *doubts(loaded)):
        _log.warning("%s", warning)
    _log.info("The node is up url=%s", url)
