"""The sink `sqlite`: every sample in one SQLite file, pictures included, to be copied, opened and asked."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Self

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from loopcore import Options
from loopcore.abc import Sink
from loopcore.errors import RetryableError
from loopcore.types import Delivered, Receipt, Sample

TABLE = """
CREATE TABLE IF NOT EXISTS samples (
    id TEXT PRIMARY KEY,
    camera TEXT,
    captured TEXT,
    labels TEXT NOT NULL,
    reasons TEXT NOT NULL,
    media TEXT NOT NULL,
    image BLOB NOT NULL,
    info TEXT NOT NULL
)"""

UPSERT = """
INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET labels = excluded.labels, reasons = excluded.reasons, info = excluded.info"""


class SqliteOptions(Options, frozen=True, kw_only=True):
    """Options of the sink `sqlite`.

    Attributes:
        path: The file; made if it is not there. Its folder must be.
    """

    path: Path


class SqliteSink(Sink):
    """Writes each batch in one transaction; a sample that comes again brings its row up to date."""

    Options = SqliteOptions
    options: SqliteOptions
    max_batch = 32

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._limiter = CapacityLimiter(1)  # one thread at a time holds the connection
        with closing(await run_sync(self._open, limiter=self._limiter)) as self._database:
            yield self

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        return await run_sync(self._store, samples, limiter=self._limiter)

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(self.options.path, check_same_thread=False)
            database.execute(TABLE)
        except sqlite3.Error as exc:
            raise RetryableError(f"cannot open {self.options.path}: {exc}") from exc
        return database

    def _store(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        try:
            with self._database:  # a transaction: on disk when the block ends, undone if it raises
                return [self._put(sample) for sample in samples]
        except sqlite3.Error as exc:
            raise RetryableError(f"cannot write to {self.options.path}: {exc}") from exc

    def _put(self, sample: Sample) -> Receipt:
        info = sample.info
        known = self._database.execute("SELECT 1 FROM samples WHERE id = ?", (info.id,)).fetchone()
        found = info.prediction.detections if info.prediction else ()
        row = (
            info.id,
            info.camera,
            info.captured.isoformat() if info.captured else None,
            ",".join(sorted({one.label for one in info.annotations or found})),
            ",".join(info.reasons),
            info.media,
            sample.image,
            msgspec.json.encode(info).decode(),
        )
        self._database.execute(UPSERT, row)
        return Delivered(duplicate=known is not None)
