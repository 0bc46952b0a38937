"""The terminal. Where the output goes to a file or a pipe, it is plain: no colour, nothing cut off."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loopcore.cli.text import visible


class Console:
    """`loopcore.abc.Console`, on stdout and stderr."""

    def print(self, text: str) -> None:
        """A line, or several, of text."""
        print(visible(text, lines=True))

    def warn(self, text: str) -> None:
        """A sentence on stderr, beside the result."""
        print(f"warning: {visible(text)}", file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        """A table, with a head."""
        cells = [[visible(str(cell)) for cell in row] for row in rows]
        if sys.stdout.isatty():
            _draw(columns, cells, title)
            return
        if title:
            print(visible(title))
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in [columns, *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as Terminal
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title)) if title else None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Terminal().print(table)
