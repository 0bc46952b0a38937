"""The sink `sqlite` keeps the promises of a sink, and a few of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from loopcore_sqlite import SqliteOptions, SqliteSink

from loopcore.errors import RetryableError
from loopcore.testing import SinkSuite, make_sample
from loopcore.types import Box, SampleInfo


def ask(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


class TestSqliteSink(SinkSuite):
    driver = SqliteSink

    @pytest.fixture
    def table(self, tmp_path: Path) -> Mapping[str, str]:
        return {"path": str(tmp_path / "samples.db")}

    @pytest.fixture
    def held(self, tmp_path: Path) -> Callable[[], Sequence[str]]:
        return lambda: [str(row[0]) for row in ask(tmp_path / "samples.db", "SELECT id FROM samples")]

    async def test_picture_and_description_come_out_as_they_went_in(self, tmp_path: Path) -> None:
        sample = make_sample(1)
        async with SqliteSink(SqliteOptions(path=tmp_path / "samples.db")) as sink:
            await sink.send([sample])
        ((image, info, labels),) = ask(tmp_path / "samples.db", "SELECT image, info, labels FROM samples")
        assert image == sample.image
        assert msgspec.json.decode(str(info), type=SampleInfo) == sample.info
        assert labels == "beak,day,floe,penguin"

    async def test_later_annotations_replace_the_labels(self, tmp_path: Path) -> None:
        truth = [Box(label="seal", x=1, y=2, width=3, height=4)]
        async with SqliteSink(SqliteOptions(path=tmp_path / "samples.db")) as sink:
            await sink.send([make_sample(1)])
            await sink.send([make_sample(1, annotations=truth)])
        assert ask(tmp_path / "samples.db", "SELECT labels FROM samples") == [("seal",)]

    async def test_file_that_is_no_database_is_tried_again_later(self, tmp_path: Path) -> None:
        (tmp_path / "samples.db").write_text("a diary")
        with pytest.raises(RetryableError, match="not a database"):
            async with SqliteSink(SqliteOptions(path=tmp_path / "samples.db")):
                pass
