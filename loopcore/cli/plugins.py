"""`loopcore plugins`: what is installed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from loopcore.cli.console import Console
from loopcore.installed import scan


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Load each of them, and say which are broken and why.")
    ] = False,
) -> None:
    """List drivers, hooks and commands of all installed distributions, without importing them."""
    rows = [entry._asdict() for entry in sorted(entry for entry, _ in scan())]
    broken = 0
    if check:
        from loopcore.registry import Registry

        causes = {one.entry: one.cause for one in Registry().check_all()}
        broken = len(causes)
        for row in rows:
            row["problem"] = next((cause for entry, cause in causes.items() if entry._asdict() == row), None)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _show(rows, check=check)
    if broken:
        raise typer.Exit(1)


def _show(rows: list[dict[str, str]], *, check: bool) -> None:
    console = Console()
    columns = ["kind", "name", "package", "version"]
    console.table(columns, [[row[column] for column in columns] for row in rows])
    if not check:
        return
    problems = [row["problem"] for row in rows if row["problem"]]
    for problem in problems:
        console.print(f"broken: {problem}")
    console.print(f"{len(rows) - len(problems)} of {len(rows)} can be used.")
