"""`loopcore learningloop …`: start a node from the environment of a node of the reference."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer

from loopcore.abc import Launcher
from loopcore.errors import ConfigError
from loopcore_learningloop.environment import Choices, Role, configure

DEFAULTS = Choices()

Name: TypeAlias = Annotated[
    str | None, typer.Option("--name", envvar="LOOPCORE_NAME", help="The node's name; by default the machine's.")
]
Host: TypeAlias = Annotated[str | None, typer.Option("--host", help="The address to listen on, not NODE_HOST.")]
Port: TypeAlias = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="The port to listen on, not NODE_PORT.")
]
Backend: TypeAlias = Annotated[
    str, typer.Option("--backend", envvar="LOOPCORE_BACKEND", help="The driver that runs models.")
]
Trainer: TypeAlias = Annotated[
    str, typer.Option("--trainer", envvar="LOOPCORE_TRAINER", help="The driver that trains models.")
]
Annotator: TypeAlias = Annotated[
    str, typer.Option("--annotator", envvar="LOOPCORE_ANNOTATOR", help="The driver that proposes outlines.")
]
Edge: TypeAlias = Annotated[
    str | None,
    typer.Option("--convert", envvar="LOOPCORE_CONVERT", metavar="FROM-to-TO", help="The formats: yolov5_wts-to-onnx."),
]
More: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TOML",
        help="What no variable says, as in a TOML file: 'inference.threads = 2'; also in LOOPCORE_SET.",
    ),
]
PrintToml: TypeAlias = Annotated[
    bool, typer.Option("--print-toml", help="Print the TOML that says the same, without secrets, and start nothing.")
]


def command(launcher: Launcher) -> typer.Typer:
    """`loopcore learningloop`."""
    app = typer.Typer(
        help="Start a node from the environment of a node of the reference library (LOOP_HOST, DATA_FOLDER …).",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.command()
    def detector(
        name: Name = None,
        host: Host = None,
        port: Port = None,
        backend: Backend = DEFAULTS.backend,
        more: More = None,
        print_toml: PrintToml = False,
    ) -> None:
        """Run the Loop's models on pictures, and send it those worth labelling."""
        choices = Choices(name=name, host=host, port=port, backend=backend)
        _start(launcher, Role.DETECTOR, choices, more, print_toml)

    @app.command()
    def trainer(
        name: Name = None,
        host: Host = None,
        port: Port = None,
        trainer: Trainer = DEFAULTS.trainer,
        more: More = None,
        print_toml: PrintToml = False,
    ) -> None:
        """Train models when the Loop asks for it."""
        choices = Choices(name=name, host=host, port=port, trainer=trainer)
        _start(launcher, Role.TRAINER, choices, more, print_toml)

    @app.command()
    def annotator(
        name: Name = None,
        host: Host = None,
        port: Port = None,
        annotator: Annotator = DEFAULTS.annotator,
        more: More = None,
        print_toml: PrintToml = False,
    ) -> None:
        """Propose outlines to people who annotate at the Loop."""
        choices = Choices(name=name, host=host, port=port, annotator=annotator)
        _start(launcher, Role.ANNOTATOR, choices, more, print_toml)

    @app.command()
    def converter(
        name: Name = None,
        host: Host = None,
        port: Port = None,
        edge: Edge = None,
        more: More = None,
        print_toml: PrintToml = False,
    ) -> None:
        """Give the Loop's models a format that they lack."""
        choices = Choices(name=name, host=host, port=port, edge=edge)
        _start(launcher, Role.CONVERTER, choices, more, print_toml)

    return app


def _start(launcher: Launcher, role: Role, choices: Choices, more: list[str] | None, print_toml: bool) -> None:
    configured = configure(os.environ, role, choices)
    table = overlaid(configured.table, _read(os.environ.get("LOOPCORE_SET", ""), *(more or [])))
    if print_toml:
        launcher.console.print(as_toml(table, configured.warnings))
        return
    if table.get("trainer", {}).get("driver") == "command" and "command" not in table["trainer"]:
        what = """say what trains: --trainer NAME, or --set 'trainer.command = ["python", "train.py"]'"""
        raise ConfigError(what, key="--trainer")
    for warning in configured.warnings:
        launcher.console.warn(warning)
    launcher.run_node(table)


def _read(*texts: str) -> dict[str, Any]:
    try:
        return tomllib.loads("\n".join(texts))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"expected TOML, such as 'inference.threads = 2': {exc}", key="--set") from None


def overlaid(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Tables come together key by key; of all else, the other's counts."""
    result = dict(table)
    for key, value in other.items():
        match result.get(key), value:
            case Mapping() as below, Mapping():
                result[key] = overlaid(below, value)
            case _:
                result[key] = value
    return result


def as_toml(table: Mapping[str, Any], comments: tuple[str, ...] = ()) -> str:
    """The tables as an operator would write them."""
    import tomlkit

    document = tomlkit.document()
    for comment in comments:
        document.add(tomlkit.comment(comment))
    for name, value in table.items():
        if isinstance(value, list):
            tables = tomlkit.aot()
            for row in value:
                tables.append(_as_table(row))
            document.append(name, tables)
        else:
            document.append(name, _as_table(value))
    return tomlkit.dumps(document).strip()


def _as_table(row: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.table()
    for key, value in row.items():
        if isinstance(value, Mapping):
            inline = tomlkit.inline_table()
            inline.update(value)
            table.append(key, inline)
        else:
            table.append(key, value)
    return table
