"""The commands; each asks the node that owns the data folder or, where none runs, the files."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from loopcore.cli.console import Console
from loopcore.cli.outbox import showing
from loopcore.cli.where import Json, Where, place
from loopcore.errors import ConfigError
from loopcore.files import write_atomic
from loopcore.options import parse_duration

if TYPE_CHECKING:
    from loopcore.abc import Control

T = TypeVar("T")
_PAGE = 500

outbox = typer.Typer(
    help="Look at the queue of samples, mend it, and carry samples by hand.",
    epilog="WHERE is the node's TOML file or its data folder. A running node is asked; else the files are opened.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
OneSink = Annotated[str | None, typer.Option("--sink", metavar="NAME", help="Only what waits for this sink.")]


@outbox.command()
def status(where: Where, as_json: Json = False) -> None:
    """What waits for whom, what was delivered, rejected and dropped, and why a sink does not send."""
    found = _ask(where, lambda control: control.call("outbox_status"))
    if as_json:
        _print_json(found)
    else:
        showing.show_status(Console(), found)


@outbox.command("list")
def list_samples(
    where: Where,
    sink: OneSink = None,
    rejected: Annotated[bool, typer.Option("--rejected", help="What was refused for good, and why.")] = False,
    drops: Annotated[bool, typer.Option("--drops", help="What was dropped by a rule, newest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many lines at most; 0 for all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """The samples that wait, in order of arrival; or what was rejected or dropped."""
    if rejected and drops:
        raise ConfigError("--rejected and --drops are two lists; ask for one")
    kind = showing.REJECTED if rejected else showing.DROPS if drops else showing.WAITING

    async def read(control: Control) -> list[dict[str, Any]]:
        if drops:
            rows = await control.call("outbox_drops")
            return [row for row in rows if sink in (None, row["sink"])][: limit or None]
        rows, after = [], 0
        while limit == 0 or len(rows) < limit:
            count = min(_PAGE, limit - len(rows)) if limit else _PAGE
            page = await control.call(kind.operation, after=after, limit=count, sink=sink)
            rows += page
            if len(page) < count:
                break
            after = len(rows) if rejected else page[-1]["seq"]
        return rows

    rows = _ask(where, read)
    if as_json:
        for row in rows:
            _print_json(row)
    else:
        showing.show_rows(Console(), kind, rows)


@outbox.command()
def show(
    where: Where,
    sample: Annotated[str, typer.Argument(metavar="ID", help="The sample's id, or the first digits of it.")],
    image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="Write its image there.")] = None,
    as_json: Json = False,
) -> None:
    """All that is known of one sample, waiting or rejected."""
    if image is not None and image.exists():
        raise ConfigError(f"{image} is there already; name another file")

    async def read(control: Control) -> tuple[dict[str, Any], bytes]:
        found, data = await control.call("outbox_show", id=sample), b""
        while image is not None and (
            piece := await control.call("outbox_image", id=found["info"]["id"], offset=len(data))
        ):
            data += b64decode(piece["data"])
            if len(data) >= piece["size"] or not piece["data"]:
                break
        return found, data

    found, data = _ask(where, read)
    if image is not None:
        write_atomic(image, data)
    if as_json:
        _print_json(found)
    else:
        showing.show_sample(Console(), found)


@outbox.command()
def retry(
    where: Where,
    sink: Annotated[str, typer.Argument(metavar="SINK", help="The sink's name.")],
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Rejected samples, by id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that this sink has rejected.")] = False,
) -> None:
    """Give rejected samples another try; without ids, let a sink that was paused by failures go on.

    The samples go back into the queue of that sink. A running node then tries at once.
    """
    if ids and everything:
        raise ConfigError("ids and --all together; give one of them")
    chosen = None if everything else ids or []
    found = _ask(where, lambda control: control.call("outbox_retry", sink=sink, ids=chosen))
    console = Console()
    if chosen is None or chosen:
        console.print(f"{showing.samples(found['moved'])} went back into the queue of {sink}.")
    if found["resumed"]:
        console.print(f"The node lets {sink} try now.")
    if chosen and not found["moved"]:
        raise typer.Exit(1)


@outbox.command()
def forget(
    where: Where,
    sink: Annotated[str, typer.Argument(metavar="SINK", help="The sink's name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give up all places of a sink. Samples that wait for no other sink leave; what it has rejected stays."""
    console = Console()

    async def read(control: Control) -> None:
        outlook = await control.call("outbox_outlook", name=sink)
        console.print(showing.outlook(sink, outlook))
        if not yes and not _agreed():
            raise typer.Exit(1)
        found = await control.call("outbox_forget", name=sink)
        console.print(f"{sink} is forgotten; {found['places']} places were given up.")

    _ask(where, read)


@outbox.command("export")
def export_bundle(
    where: Where,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The file to write, such as stick.loopcore.")],
    sink: OneSink = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only what was kept then or later.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only what was kept before.")] = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", help="Only with this reason; may be repeated.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take the samples out, once the bundle was read back whole.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write samples into one file, to be carried by hand. If it is interrupted, the same command goes on.

    Nothing leaves the outbox, unless with --move. A TIME is as in 2026-05-04 or 2026-05-04T12:00+02:00.
    """
    asked = {"file": str(bundle.absolute()), "sink": sink, "reasons": reason or [], "move": move}
    times = {"since": _time(since), "until": _time(until)}
    found = _ask(where, lambda control: control.call("outbox_export", **asked, **times), label="exporting")
    if as_json:
        _print_json(found)
    else:
        showing.show_export(Console(), bundle, found)
    if found.get("quarantined") or found.get("left_out"):
        raise typer.Exit(1)


@outbox.command("import")
def import_bundle(
    where: Where,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The file to read.")],
    as_json: Json = False,
) -> None:
    """Take in the samples of a bundle, for the sinks that want them. If it is interrupted, the same command goes on.

    What is in the outbox already is not taken twice. What is damaged is named, and the rest is taken.
    """
    file = str(bundle.absolute())
    found = _ask(where, lambda control: control.call("outbox_import", file=file), use="TAKE", label="importing")
    if as_json:
        _print_json(found)
    else:
        showing.show_import(Console(), bundle, found)
    if not found["whole"] or found["refused"]:
        raise typer.Exit(1)


@outbox.command()
def fsck(
    where: Where,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what is wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Read all that is needed and compare it with its hashes, and the index with itself; mend what can be mended.

    Damaged samples go to quarantine/, wrong totals are counted anew, a damaged index is made anew from the segments.
    Also on a running node. Exit code 1: something was wrong.
    """
    found = _ask(where, lambda control: control.call("outbox_fsck", mend=not dry_run), label="reading")
    if as_json:
        _print_json(found)
    else:
        showing.show_fsck(Console(), found)
    if showing.is_wrong(found):
        raise typer.Exit(1)


@outbox.command()
def drain(
    where: Where,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Such as '90 s', '15 min'.")] = None,
    as_json: Json = False,
) -> None:
    """Wait until everything has been sent. Where no node runs, send it.

    Exit code 1: something is left; it says what, and why. Without --timeout a sink that is down is waited for.
    """
    try:
        limit = None if timeout is None else float(parse_duration(timeout))
    except ValueError as exc:
        raise ConfigError(f"--timeout: {exc}") from exc
    found = _ask(where, lambda control: control.call("outbox_drain", timeout_s=limit), use="SEND", label="sending")
    if as_json:
        _print_json(found)
    else:
        showing.show_left(Console(), found)
    if any(sink["waiting"] for sink in found["sinks"].values()):
        raise typer.Exit(1)


def _ask(where: Path, work: Callable[[Control], Awaitable[T]], *, use: str = "LOOK", label: str = "") -> T:
    """Do this with the control of the data folder."""
    import anyio

    from loopcore import node

    data_dir, config = place(where)
    showing.log_to_terminal()
    ticker = showing.Ticker(label)

    async def reached() -> T:
        async with node.reach(data_dir, config, node.Use[use], ticker.tell) as control:
            return await work(control)

    try:
        return anyio.run(reached)
    finally:
        ticker.end()


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()  # without an offset it is this place's time
    except (ValueError, OverflowError) as exc:
        raise ConfigError(f"{text!r} is no time, expected such as 2026-05-04 or 2026-05-04T12:00+02:00") from exc


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is here to be asked; say --yes")
    return typer.confirm("Go on?")


def _print_json(found: object) -> None:
    print(json.dumps(found))
