"""How commands about a node are told which one, and how it is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loopcore.config import Config

Where = Annotated[Path, typer.Argument(metavar="WHERE", help="The node's TOML file, or its data folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def place(where: Path) -> tuple[Path, Config | None]:
    """The data folder, and what the TOML says where that was named."""
    from loopcore.config import load

    if where.is_dir():
        return where, None
    config = load(where)
    return config.node.data_dir, config
