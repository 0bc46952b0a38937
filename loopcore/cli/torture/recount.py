"""The index of a closed outbox, against its own rows and against the files."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.cli.torture.recording import plain_index

INDEX = "index.db"


class Kept(Struct, frozen=True):
    """What a closed outbox holds.

    Attributes:
        index: The file of the index.
        sizes: The sizes of the files in folders.
    """

    index: bytes
    sizes: tuple[tuple[str, int], ...]


def kept(box: Path) -> Kept:
    """What is in the folder of a closed outbox."""
    folder = str(box)
    sizes = (
        (f"{path[len(folder) + 1 :]}/{name}", os.stat(f"{path}/{name}").st_size)  # noqa: PTH116
        for path, _, names in os.walk(folder)
        if path != folder
        for name in names
    )
    return Kept(plain_index((box / INDEX).read_bytes()), tuple(sorted(sizes)))


def recount(found: Kept) -> None:
    """Count again what the index keeps totals of.

    Raises:
        BrokenPromiseError: It miscounts, or SQLite finds it damaged.
    """
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(found.index)
        for name, (total, again) in _RECOUNTS.items():
            said, true = db.execute(total).fetchall(), db.execute(again).fetchall()
            if said != true:
                raise BrokenPromiseError("counts", f"{name}: says {said}, has {true}")
        known = {f"segments/{number:016d}.seg": size for number, size in db.execute(_SEGMENTS)}
    there = {path: size for path, size in found.sizes if path.startswith("segments/")}
    if known != there:
        raise BrokenPromiseError("counts", f"the index says {known}, the folder has {there}")


def differences(first: Kept, second: Kept) -> str:
    """In words: rows, and files with their sizes."""
    tables = []
    for one in (first, second):
        with closing(sqlite3.connect(":memory:")) as db:
            db.deserialize(one.index)
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables.append({name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names})  # noqa: S608
    rows = [
        f"{name}: {tables[0][name]} → {tables[1][name]}" for name in tables[0] if tables[0][name] != tables[1][name]
    ]
    files = sorted({*first.sizes} ^ {*second.sizes})
    return "; ".join([*rows, *map(str, files)]) or "the pages of the index, not its rows"


_SEGMENTS = "SELECT segment, size FROM segments"
_RECOUNTS = {
    "pages": ("SELECT 'ok'", "PRAGMA integrity_check"),
    "samples": ("SELECT count, bytes FROM state", "SELECT count(*), coalesce(sum(length), 0) FROM samples"),
    "places": (
        "SELECT sink, waiting, bytes FROM sinks ORDER BY sink",
        """SELECT s.sink, count(seq), coalesce(sum(t.bytes), 0) FROM sinks s LEFT JOIN todo t USING (sink)
        GROUP BY s.sink ORDER BY s.sink""",
    ),
    "segments": (
        "SELECT segment, live, live_bytes FROM segments ORDER BY segment",
        """SELECT g.segment, count(seq), coalesce(sum(length), 0) FROM segments g LEFT JOIN samples s
        ON s.segment = g.segment GROUP BY g.segment ORDER BY g.segment""",
    ),
    "owners": (
        "SELECT count(*) FROM todo",
        "SELECT count(*) FROM todo JOIN samples USING (seq) JOIN sinks USING (sink)",
    ),
    "numbers": ("SELECT 0", "SELECT count(*) FROM samples, state WHERE seq >= next_seq"),
}
