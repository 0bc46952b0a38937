"""The converter turns every file round, keeps what is known of the model, and refuses what is empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopcore_mock_converter import MockConverter

from loopcore import Options
from loopcore.errors import ConversionError
from loopcore.package import open_folder, write_package
from loopcore.registry import Registry
from loopcore.types import Model, ModelInfo


def report(progress: float, message: str = "", **_: object) -> None:
    assert 0 <= progress <= 1, message


@pytest.fixture
def source(tmp_path: Path) -> Model:
    folder = tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    (folder / "weights").write_bytes(b"abc")
    (folder / "more" / "weights").write_bytes(b"12")
    info = ModelInfo(name="lamp", version="1.0", format="format_a", labels=("lamp",), extra={"maker": "me"})
    return write_package(folder, info)


def convert(source: Path, into: Path) -> None:
    into.mkdir()
    MockConverter(Options()).convert(source, into, None, report)


def test_it_is_found_by_its_edge() -> None:
    assert Registry().driver("converter", f"{MockConverter.source}-to-{MockConverter.target}") is MockConverter


def test_converted_package_has_the_other_format_and_all_else(source: Model, tmp_path: Path) -> None:
    convert(source.path, tmp_path / "converted")
    made = open_folder(tmp_path / "converted")
    assert (made.path / "weights").read_bytes() == b"cba"
    assert (made.path / "more" / "weights").read_bytes() == b"21"
    assert made.info.format == "format_b"
    assert (made.info.name, made.info.labels, made.info.extra) == ("lamp", ("lamp",), {"maker": "me"})


def test_an_empty_file_cannot_be_converted(source: Model, tmp_path: Path) -> None:
    (source.path / "weights").write_bytes(b"")
    write_package(source.path, source.info)
    with pytest.raises(ConversionError, match="weights is empty"):
        convert(source.path, tmp_path / "converted")
