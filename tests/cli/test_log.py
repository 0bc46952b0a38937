"""Log lines on a terminal."""

from __future__ import annotations

import logging
import sys

import pytest

from loopcore.cli.log import FORMAT, VisibleFormatter

FORGED = "name\n2026-01-01 00:00:00,000 ERROR   root: all is lost\r\x1b[2J\x9b2J\u202e"


@pytest.fixture
def lines() -> list[str]:
    record = logging.LogRecord("loopcore.x", logging.WARNING, "x.py", 1, "A picture: %s", (FORGED,), None)
    try:
        raise ValueError(FORGED)
    except ValueError:
        record.exc_info = sys.exc_info()
    return VisibleFormatter(FORMAT).format(record).split("\n")


def test_what_is_logged_cannot_pass_for_another_line(lines: list[str]) -> None:
    assert [line[:2] for line in lines[1:]] == ["  "] * (len(lines) - 1)
    assert lines[0].endswith(r"\x1b[2J\x9b2J\u202e")


def test_what_is_logged_does_not_command_the_terminal(lines: list[str]) -> None:
    assert not any(char in line for line in lines for char in "\r\x1b\x9b\u202e")
