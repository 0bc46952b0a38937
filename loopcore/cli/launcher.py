"""What the commands of plugins get of loopcore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcore.cli.console import Console

if TYPE_CHECKING:
    from loopcore.abc import Control


class Launcher:
    """`loopcore.abc.Launcher`."""

    def __init__(self) -> None:
        self._console = Console()

    @property
    def console(self) -> Console:
        return self._console

    def run_node(self, table: Mapping[str, Any]) -> None:
        """Run a node with this configuration until it is told to stop, and log as `loopcore run` does."""
        from loopcore import config
        from loopcore.cli.log import log_to_terminal
        from loopcore.cli.run import run_until_stopped

        log_to_terminal()
        run_until_stopped(config.parse(table))

    def control(self, data_dir: Path) -> Control:
        """The control of the node that owns this data folder."""
        from loopcore import node

        return node.control(data_dir)
