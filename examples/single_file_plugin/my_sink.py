"""The sink `list`: a line for each sample in a CSV file, for a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Self

from anyio.to_thread import run_sync

from loopcore import Options, hookimpl
from loopcore.abc import Driver, Sink
from loopcore.errors import RetryableError, StorageError
from loopcore.files import write_atomic
from loopcore.types import Delivered, Receipt, Sample, SampleInfo

COLUMNS = ("id", "captured", "camera", "reasons", "labels")


class ListOptions(Options, frozen=True, kw_only=True):
    """Where the file lies; it is made if it is not there."""

    path: Path


class ListSink(Sink):
    """Lists each sample once; the file is replaced as a whole, so that a power cut leaves the old one or the new."""

    name = "list"  # what the TOML calls it
    Options = ListOptions
    options: ListOptions
    max_batch = 100

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._rows = await run_sync(self._read)
        yield self

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        rows = self._rows | {sample.info.id: row(sample.info) for sample in samples}
        try:
            await run_sync(self._write, rows)
        except StorageError as exc:
            raise RetryableError(str(exc)) from exc
        known, self._rows = self._rows, rows
        return [Delivered(duplicate=sample.info.id in known) for sample in samples]

    def _read(self) -> dict[str, list[str]]:
        if not self.options.path.exists():
            return {}
        with self.options.path.open(newline="", encoding="utf-8") as file:
            return {line[0]: line for line in csv.reader(file) if line[0] != COLUMNS[0]}

    def _write(self, rows: dict[str, list[str]]) -> None:
        text = StringIO()
        csv.writer(text).writerows([COLUMNS, *rows.values()])
        write_atomic(self.options.path, text.getvalue().encode())


def row(info: SampleInfo) -> list[str]:
    found = info.annotations or (info.prediction.detections if info.prediction else ())
    labels = sorted({one.label for one in found})
    captured = info.captured.isoformat() if info.captured else ""
    return [info.id, captured, info.camera or "", " ".join(info.reasons), " ".join(labels)]


@hookimpl
def loopcore_drivers() -> Sequence[type[Driver]]:
    return [ListSink]
