"""`loopcore models`: which models a node has, and which one serves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from loopcore.cli.console import Console
from loopcore.cli.where import Json, Where, place

if TYPE_CHECKING:
    from loopcore.abc import Control

T = TypeVar("T")
_ID_CHARACTERS = 12

models = typer.Typer(
    help="Look at the models of a node, and choose the one that serves.",
    epilog="WHERE is the node's TOML file or its data folder. A running node is asked; without one, only list works.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@models.command("list")
def list_models(where: Where, as_json: Json = False) -> None:
    """The models that are here, the last that came first; which one serves, and what is to serve."""
    found = _ask(where, lambda control: control.call("models"))
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    columns = ("name", "version", "format", "id", "state")
    rows = [(*(row[key] for key in columns[:3]), row["id"][:_ID_CHARACTERS], row["state"]) for row in found["models"]]
    if rows:
        console.table(columns, rows)
    else:
        console.print("There are no models here.")
    if found["choice"]:
        console.print(f"Chosen: {found['choice']}.{' Updates are held.' if found['held'] else ''}")
    for rollout in found["rollouts"]:
        console.print(_told(rollout))


@models.command()
def use(
    where: Where,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, or the first 8 digits of an id.")],
) -> None:
    """Let this version serve, and stay with it. What is not here is fetched from the platform of the rollout."""
    _choose(where, version)


@models.command()
def follow(where: Where) -> None:
    """Let serve what the platform of the rollout wants."""
    _choose(where, "follow")


@models.command()
def pause(where: Where) -> None:
    """Stay with what serves now, whatever a platform wants."""
    _choose(where, "pause")


@models.command()
def back(where: Where) -> None:
    """Let the model serve that served before this one, and stay with it."""
    _change(where, lambda control: control.call("previous_model"))


@models.command()
def forget(where: Where) -> None:
    """Try models again that were refused, or could not be converted."""

    async def work(control: Control) -> int:
        status, count = await control.call("status"), 0
        for part, operation in (("rollouts", "forget_refused"), ("conversions", "forget_conversions")):
            if part in status:
                count += await control.call(operation)
        return count

    count = _ask(where, work)
    Console().print(f"{count} refusal{'' if count == 1 else 's'} forgotten.")


def _choose(where: Path, choice: str) -> None:
    _change(where, lambda control: control.call("set_model", choice=choice))


def _change(where: Path, work: Callable[[Control], Awaitable[object]]) -> None:
    async def changed(control: Control) -> Mapping[str, Any]:
        await work(control)
        status: Mapping[str, Any] = await control.call("status")
        return status

    status = _ask(where, changed)
    model = status["model"]
    serves = f"{model['name']} {model['version']} serves" if model else "No model serves yet"
    Console().print(f"{serves}; chosen: {status['model_choice']}.")


def _told(rollout: Mapping[str, Any]) -> str:
    target = rollout["target"]
    wants = f"wants {target['name']} {target['version']}" if target else "wants no model"
    why = f": {rollout['error']}" if rollout["error"] else ""
    return f"{rollout['from']} {wants} for {rollout['to']}; {rollout['state']}{why}."


def _ask(where: Path, work: Callable[[Control], Awaitable[T]]) -> T:
    import anyio

    from loopcore import node

    data_dir, config = place(where)

    async def reached() -> T:
        async with node.reach_models(data_dir, config) as control:
            return await work(control)

    return anyio.run(reached)
