"""`loopcore plugins` lists what is installed and, asked to, what is broken."""

from __future__ import annotations

import json

import pytest

from loopcore.cli import main
from loopcore.cli.console import Console
from loopcore.cli.text import visible


def command(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plugins", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().out


def test_table_names_kind_name_package_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["kind", "name", "package", "version"]
    assert ["backend", "onnx", "loopcore", "0.1.0"] in rows
    assert ["platform", "learningloop", "loopcore-learningloop", "0.1.0"] in rows


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys, "--json")
    assert code == 0
    rows = json.loads(out)
    assert {"kind": "sink", "name": "folder", "package": "loopcore", "version": "0.1.0"}.items() <= next(
        row for row in rows if row["kind"] == "sink" and row["name"] == "folder"
    ).items()


def test_every_driver_of_this_repository_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = command(capsys, "--check", "--json")
    ours = [row for row in json.loads(out) if row["package"].startswith("loopcore")]
    assert len(ours) >= 14
    assert [row["problem"] for row in ours if row["problem"]] == []


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.print("a\x1b]0;title\x07\nb\tc")
    console.table(["name", "x"], [["\x1b[2J\r\n\u202ebad\udcff", 5]], title="t\x9b")
    cell = "\\x1b[2J\\r\\n\\u202ebad\\udcff"
    assert capsys.readouterr().out.splitlines() == [
        "a\\x1b]0;title\\x07",
        "b\tc",
        "t\\x9b",
        "name".ljust(len(cell)) + "  x",
        cell + "  5",
    ]
    assert visible("plain é 字") == "plain é 字"


def test_table_into_a_pipe_is_neither_cut_nor_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["long", "short"], [["x" * 300, 1], ["y", 22]])
    assert capsys.readouterr().out.splitlines() == [
        "long".ljust(300) + "  short",
        "x" * 300 + "  1",
        "y".ljust(300) + "  22",
    ]
