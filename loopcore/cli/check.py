"""`loopcore check`: what is wrong with a configuration, before anything is started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loopcore.cli.console import Console
from loopcore.config import Config, load
from loopcore.errors import ConfigError, LoopcoreError, PluginError
from loopcore.package import open_model
from loopcore.plan import Part, Plan, resolve
from loopcore.registry import Registry, nearest
from loopcore.types import Model, Problem

LIMIT_S = 30.0
"""How long a peer may take to answer."""


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file.")],
    online: Annotated[bool, typer.Option("--online", help="Ask the platforms and sinks, too.")] = False,
) -> None:
    """Check a TOML file: the keys, the drivers and their options, the plugins and the model. Nothing is started."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="loopcore-") as scratch:
        config = load(file)
        plan = resolve(config, Registry())
        plan.hooks.mounts(_NoService(), plan.drivers())
        model = plan.open_model(lambda path: open_model(path, Path(scratch) / "model"))
        for warning in (*config.warnings, *doubts(config)):
            console.warn(warning)
        problems = _ask_all(plan, model) if online else []
    for part, problem in problems:
        console.print(f"{part}: {'' if problem.fatal else 'warning: '}{problem.message}")
    if any(problem.fatal for _, problem in problems):
        raise typer.Exit(1)
    console.print(f"{file} is good: {', '.join(_summary(config, model))}.")


def doubts(config: Config) -> Sequence[str]:
    """What is allowed, since a plugin may give reasons of its own, and yet is most likely a slip of the finger."""
    names = [selector.name for selector in config.selectors]
    return [
        str(config.error(f"sinks[{index}].when.reasons", f"no selector is named {reason!r}; did you mean {near!r}?"))
        for index, sink in enumerate(config.sinks)
        for reason in (sink.when.reasons if sink.when else None) or ()
        if reason not in names and (near := nearest(reason, names))
    ]


class _NoService:
    """A service before the node is there: applications may hold it, but not use it yet."""

    def __getattr__(self, name: str) -> Any:
        raise PluginError(f"'{name}' of the service was used before the node has started")


def _summary(config: Config, model: Model | None) -> Iterator[str]:
    yield f"node {config.node.name!r}"
    if config.backend:
        what = f"{model.info.name} {model.info.version}" if model else config.backend.model
        yield f"backend {config.backend.driver} with model {what!r}"
    for word in ("sources", "selectors", "sinks", "platforms", "rollouts", "conversions"):
        if tables := getattr(config, word):
            names = [getattr(table, "name", None) or f"{table.source} to {table.target}" for table in tables]
            yield f"{len(tables)} {word if len(tables) > 1 else word[:-1]} ({', '.join(names)})"
    for word in ("trainer", "annotator"):
        if table := getattr(config, word):
            yield f"{word} {table.driver}"
    yield f"server at {config.server.host}:{config.server.port}"


def _ask_all(plan: Plan, model: Model | None) -> Sequence[tuple[str, Problem]]:
    import anyio

    return anyio.run(_answers, plan, model)


async def _answers(plan: Plan, model: Model | None) -> list[tuple[str, Problem]]:
    singles = [part for part in (plan.trainer, plan.annotator) if part]
    parts: list[Part[Any, Any]] = [*plan.platforms, *plan.sources, *plan.selectors, *plan.sinks, *singles]
    if plan.backend and model:
        parts.append(plan.backend.part(model))
    return [
        (f"{part.table.key} {part.table.name!r}", problem) for part in parts for problem in await _answer(plan, part)
    ]


async def _answer(plan: Plan, part: Part[Any, Any]) -> Sequence[Problem]:
    import anyio

    try:
        with anyio.fail_after(LIMIT_S), plan.starting(part):
            async with part.driver as driver:
                problems: Sequence[Problem] = await driver.check()
                return problems
    except ConfigError:
        raise
    except LoopcoreError as exc:
        return [Problem(message=str(exc))]
    except TimeoutError:
        return [Problem(message=f"no answer within {LIMIT_S:.0f} s")]
