"""What the commands print for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from loopcore.cli.console import Console
from loopcore.cli.log import VisibleFormatter
from loopcore.cli.text import visible

_SHORT = 16
"""As many digits of an id as a line has room for; commands take them for the whole."""


class Kind(Struct, frozen=True):
    """A list: who is asked for it, its columns, and its cells by row."""

    operation: str
    columns: tuple[str, ...]
    cells: Callable[[Mapping[str, Any]], Sequence[object]]
    empty: str


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


WAITING = Kind(
    "outbox_list",
    ("id", "size", "age", "", "waits for"),
    lambda row: (
        row["id"][:_SHORT],
        size(row["bytes"]),
        age(row["age_s"]),
        "urgent" if row["urgent"] else "",
        ", ".join(row["sinks"]) or "nobody; export it",
    ),
    "Nothing waits.",
)
REJECTED = Kind(
    "outbox_rejected",
    ("id", "sink", "size", "at", "why"),
    lambda row: (row["id"][:_SHORT], row["sink"], size(row["bytes"]), row["at"][:19], row["why"]),
    "Nothing is rejected.",
)
DROPS = Kind(
    "outbox_drops",
    ("id", "rule", "sink", "size", "at"),
    lambda row: (row["id"][:_SHORT], row["rule"], row["sink"] or "all", size(row["bytes"]), row["at"][:19]),
    "Nothing was dropped.",
)


def show_rows(console: Console, kind: Kind, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        console.table(kind.columns, [kind.cells(row) for row in rows])
    else:
        console.print(kind.empty)


def show_status(console: Console, found: Mapping[str, Any]) -> None:
    sinks = found["sinks"]
    if sinks:
        columns = ("sink", "state", "waiting", "size", "oldest", "delivered", "rejected", "given up")
        console.table(columns, [_sink_row(name, sink) for name, sink in sinks.items()])
    oldest = f", the oldest for {age(found['oldest_s'])}" if found["count"] else ""
    console.print(f"{samples(found['count'])} in the outbox ({size(found['disk_bytes'])} on the disk){oldest}.")
    if found["fills"]:
        console.print(f"Most of it waits for {found['fills']}.")
    counted = {
        **{f"dropped by {rule}": count for rule, count in found["drops"].items()},
        "damaged, now in quarantine/": found["quarantined"],
        "removed by hand": found["operator_deleted"],
        "moved into bundles": found["moved_out"],
    }
    for what, count in counted.items():
        if count:
            console.print(f"{what}: {count}")
    for name, sink in sinks.items():
        if sink.get("last_error"):
            console.print(f"{name}: {sink['last_error']}")
        if sink["state"] == "not in the TOML":
            console.print(f"{name}: its place is kept until `loopcore outbox forget`")


def _sink_row(name: str, sink: Mapping[str, Any]) -> Sequence[object]:
    here = f" ({sink['in_rejected']} here)" if sink["in_rejected"] else ""
    return (
        name,
        sink["state"].partition(": ")[0],
        sink["waiting"],
        size(sink["bytes"]),
        age(sink["oldest_s"]),
        sink["delivered"],
        f"{sink['rejected']}{here}",
        sink["given_up"],
    )


def show_left(console: Console, found: Mapping[str, Any]) -> None:
    left = {name: sink for name, sink in found["sinks"].items() if sink["waiting"]}
    if not left:
        console.print("Everything has been sent.")
        return
    rows = [(name, sink["waiting"], _why(sink)) for name, sink in left.items()]
    console.table(("sink", "left", "why"), rows)


def _why(sink: Mapping[str, Any]) -> str:
    state, error = sink["state"], sink.get("last_error")
    return state if not error or error in state else f"{state}: {error}"


def show_sample(console: Console, found: Mapping[str, Any]) -> None:
    info = found["info"]
    prediction = info.get("prediction") or {}
    facts = {
        "id": info["id"],
        "image": f"{info['media']}, {info['width']} × {info['height']}, {size(info['image_bytes'])}",
        "image id": info["image_id"],
        **{key: info.get(key) for key in ("camera", "captured", "kept", "source", "state")},
        "reasons": ", ".join(info.get("reasons") or ()),
        "tags": ", ".join(info.get("tags") or ()),
        "urgent": "yes" if info.get("urgent") else None,
        "model": f"{prediction.get('model', '')} {prediction.get('model_version', '')}".strip(),
        "waits for": ", ".join(found["sinks"]) or ("nobody" if found["waiting"] else None),
    }
    for name, value in facts.items():
        if value:
            console.print(f"{name:10} {visible(str(value))}")
    for heading, shapes in (("found", prediction.get("detections")), ("annotated", info.get("annotations"))):
        for shape in shapes or ():
            where = ", ".join(f"{key} {shape[key]:.0f}" for key in ("x", "y", "width", "height") if key in shape)
            kind = shape["kind"] if where or shape["kind"] != "box" else ""
            told = " ".join(part for part in (kind, where) if part)
            console.print(f"{heading:10} {visible(shape['label'])} {shape.get('confidence', 1):.2f} {told}".rstrip())
    for one in found["rejected"]:
        console.print(f"{'rejected':10} by {visible(one['sink'])} at {one['at'][:19]}: {visible(one['why'])}")


def outlook(sink: str, found: Mapping[str, Any]) -> str:
    said = f"{samples(found['places'])} wait{'s' if found['places'] == 1 else ''} for {sink}; "
    said += f"{found['leave']} of them for nobody else: forgetting it removes those for good."
    if found["rejected"]:
        said += f" {samples(found['rejected'])} in rejected/ stay{'s' if found['rejected'] == 1 else ''}."
    if found["configured"]:
        said += f" {sink} is in the TOML and begins anew."
    return said


def show_export(console: Console, bundle: Path, found: Mapping[str, Any]) -> None:
    console.print(f"{samples(found['samples'])} in {bundle} ({size(found['bytes'])}).")
    if found.get("resumed"):
        console.print(f"{found['resumed']} of them were there from the last time.")
    if "moved" in found:
        console.print(f"{samples(found['moved'])} left the outbox.")
    if found.get("quarantined"):
        console.print(f"{samples(found['quarantined'])} had been damaged on the disk and went to quarantine/.")
    for why in found.get("left_out", ()):
        console.print(f"left out: {why}")


def show_import(console: Console, bundle: Path, found: Mapping[str, Any]) -> None:
    told = [f"{found['known']} of them were here already"] if found["known"] else []
    told += [f"{found['unwanted']} are wanted by no sink and were not taken"] if found["unwanted"] else []
    told += [f"{found['refused']} were refused"] if found["refused"] else []
    told += [f"went on behind {found['resumed']}"] if found["resumed"] else []
    console.print("; ".join([f"{samples(found['samples'])} in {bundle}", *told]) + ".")
    for fault in found["faults"]:
        console.print(fault)
    if found["damaged"]:
        console.print(f"{found['damaged']} damaged parts were left out; copy the bundle again and import it again.")
    elif not found["whole"]:
        console.print(
            "The bundle is not whole: its end is missing. Finish the export or the copy, and import it again."
        )


def show_fsck(console: Console, found: Mapping[str, Any]) -> None:
    rows = [
        (part, found[part]["read"], size(found[part]["bytes"]), found[part]["damaged"], found[part]["removed"])
        for part in ("samples", "rejected")
    ]
    console.table(("part", "read", "size", "damaged", "removed by hand"), rows)
    for wrong in found["index"]:
        console.print(f"index: {wrong}")
    if not is_wrong(found):
        console.print("All is sound.")
    elif found["mended"]:
        console.print("Damaged samples are in quarantine/ now, files removed by hand are counted, the index is right.")
    else:
        console.print("Nothing was changed; without --dry-run it is mended.")


def is_wrong(found: Mapping[str, Any]) -> bool:
    """Whether `fsck` found anything."""
    return bool(found["index"]) or any(
        found[part][what] for part in ("samples", "rejected") for what in ("damaged", "removed")
    )


def log_to_terminal() -> None:
    """Show warnings of the outbox and of sinks on stderr; some hold the words of a peer."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(VisibleFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])


class Ticker:
    """Progress, where stderr is a terminal: one line that changes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._drawn = False

    async def tell(self, progress: Mapping[str, Any]) -> None:
        if not sys.stderr.isatty():
            return
        if waiting := progress.get("waiting"):
            text = ", ".join(f"{name} {count} ({state})" for name, (count, state) in waiting.items())
        else:
            text = f"{progress['done']} of {progress['total']} {progress.get('unit', 'samples')}"
        line = visible(f"{self._label}: {text}")[:78]
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def end(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
