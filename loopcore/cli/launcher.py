"""What the commands of plugins get of loopcore."""

from __future__ import annotations

import signal
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
        """Run a node with this configuration until it is told to stop."""
        from loopcore import config, node

        if node.run_config(config.parse(table)) == signal.SIGINT:
            raise KeyboardInterrupt

    def control(self, data_dir: Path) -> Control:
        """The control of the node that owns this data folder."""
        from loopcore import node

        return node.control(data_dir)
