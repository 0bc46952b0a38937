"""The top of the command line: finds the command, and turns errors into one sentence and an exit code.

0: all is well. 1: the work failed. 2: the configuration or the usage is wrong. 130: interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from loopcore import __version__
from loopcore.cli.text import visible
from loopcore.errors import ConfigError, LoopcoreError, PluginError, first

COMMANDS = {
    "demo": "See it work: real pictures, a small model made on the spot, and a report.",
    "detect": "Run a model once over files, folders and clips.",
    "run": "Run the node that a TOML file configures.",
    "check": "Say what is wrong with a TOML file, without starting anything.",
    "models": "Look at the models of a node, and choose the one that serves.",
    "outbox": "Look at the queue of samples, mend it, and carry samples by hand.",
    "torture": "Try whether an outbox keeps its word on this machine and disk.",
    "plugins": "List what is installed: drivers, hooks and commands.",
}
"""The core's own commands: each is the function or app of that name, in the module of that name in this folder."""


class _Command(TyperCommand):
    """A command that is imported when it is called, so that listing it costs nothing."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        load = _own if self.name in COMMANDS else _foreign
        return load(str(self.name)).make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    """The core's commands and those that plugins announce."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._scanned = False
        for name, what in COMMANDS.items():
            self.add_command(_Command(name, help=what))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        self._scan()
        return [*COMMANDS, *sorted(set(self.commands) - set(COMMANDS))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        if cmd_name not in self.commands:
            self._scan()
        return self.commands.get(cmd_name)

    def _scan(self) -> None:
        from loopcore.installed import scan

        if self._scanned:
            return
        self._scanned = True
        for entry, _ in scan():
            if entry.kind == "command" and entry.name not in self.commands:
                self.add_command(_Command(entry.name, help=f"({visible(entry.package)})"))


app = typer.Typer(
    name="loopcore",
    cls=_Commands,
    help="The whole road of a learning camera: infer, collect, label, train, deploy. Begin with: loopcore demo",
    epilog="Exit codes: 0 all is well, 1 the work failed, 2 the configuration or the usage is wrong, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"loopcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="LOOPCORE_DEBUG", help="Show the traceback of an error.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    os.environ["LOOPCORE_DEBUG"] = "1" if debug else ""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _guarded(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        code = 1
    sys.exit(code)


def _guarded(args: Sequence[str] | None) -> int:
    try:
        get_command(app).main(args, prog_name="loopcore")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BrokenPipeError:
        raise
    except LoopcoreError as exc:
        _report(exc, str(exc))
        return 2 if isinstance(exc, ConfigError) else 1
    except Exception as exc:  # noqa: BLE001 - the top of the CLI: a person gets a sentence, and the rest if they ask
        error = first(exc)
        _report(exc, f"unexpected {type(error).__name__}: {error}; `loopcore --debug` in front shows where")
        return 1
    return 0


def _report(exc: Exception, sentence: str) -> None:
    if os.environ.get("LOOPCORE_DEBUG"):
        traceback.print_exception(exc)
    print(f"loopcore: {visible(' '.join(sentence.split()))}", file=sys.stderr)


def _own(name: str) -> Any:
    function = getattr(import_module(f"loopcore.cli.{name}"), name)
    if isinstance(function, typer.Typer):
        return get_command(function)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name)(function)
    return get_command(alone)


def _foreign(name: str) -> Any:
    from loopcore.cli.launcher import Launcher
    from loopcore.registry import Registry

    registry = Registry()
    make = registry.command(name)
    try:
        made = make(Launcher())
    except LoopcoreError:
        raise
    except Exception as exc:
        message = f"the command {name!r} of {registry.package('command', name)} cannot be made: {exc!r}"
        raise PluginError(message, plugin=name, package=registry.package("command", name)) from exc
    if not isinstance(made, typer.Typer):
        message = f"the command {name!r} answers {type(made).__name__}, expected a typer.Typer"
        raise PluginError(message, plugin=name, package=registry.package("command", name))
    return get_command(made)
