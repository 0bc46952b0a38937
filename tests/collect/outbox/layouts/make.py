"""Writes the outboxes that every later version must open, as this version lays them out.

    python tests/collect/outbox/layouts/make.py

Run it when the layout changes, before it changes, and keep the old ones: `closed-N.zip` and `killed-N.zip`, N the
version of the index.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import anyio

from loopcore.collect.outbox import Outbox, Taker
from loopcore.collect.outbox.index import VERSION
from loopcore.config import OutboxTable
from loopcore.options import Size
from loopcore.types import Box, SampleInfo, image_id, sample_id

TAKERS = (Taker(name="a"), Taker(name="b"))
BOUNDS = OutboxTable(min_free=Size(0))
ALL = {"max_count": 1000, "max_bytes": 1 << 40}
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def sample(number: int, **known: object) -> tuple[SampleInfo, bytes]:
    image = Random(number).randbytes(200)
    digest = image_id(image)
    info = SampleInfo(
        id=sample_id(digest, "gate", None), image_id=digest, media="image/jpeg", image_bytes=200, width=640, height=480,
        kept=NOON, camera="gate", urgent=number == 7, **known,
    )  # fmt: skip
    return info, image


async def fill(outbox: Outbox) -> None:
    """Twelve samples: `a` has three of them, refuses the fourth and defers the fifth; `b` has the sixth."""
    for number in range(12):
        await outbox.accept(*sample(number))
    await outbox.accept(*sample(6, annotations=(Box(label="seal", x=1, y=2, width=3, height=4),)))
    _, *leases = await outbox.lease("a", **ALL)  # the urgent one comes first
    await outbox.delivered("a", leases[:3])
    await outbox.rejected("a", leases[3], "answered 413")
    await outbox.defer("a", leases[4])
    outbox.release("a", leases)
    _, *leases = await outbox.lease("b", **ALL)
    await outbox.delivered("b", leases[5:6])


async def write(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        live = Path(scratch) / "outbox"
        async with Outbox(live, BOUNDS, TAKERS) as outbox:
            await fill(outbox)
            for number in (12, 13):  # not in the index yet when it is killed
                await outbox.accept(*sample(number))
            shutil.copytree(live, Path(scratch) / "killed")
        pack(Path(scratch) / "killed", folder / f"killed-{VERSION}.zip")
        pack(live, folder / f"closed-{VERSION}.zip")


def pack(outbox: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(outbox.rglob("*")):
            if path.is_file() and path.name not in {"lock", "reserve"}:
                archive.write(path, path.relative_to(outbox))


if __name__ == "__main__":
    anyio.run(write, Path(__file__).parent)
