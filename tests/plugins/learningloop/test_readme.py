"""The plugin's README lists what there is: options, and variables of the environment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import loopcore_learningloop
import pytest
from loopcore_learningloop.options import PlatformOptions, SinkOptions
from loopcore_learningloop.source import LeftOptions
from msgspec import Struct

from loopcore import config
from loopcore.plan import resolve
from loopcore.registry import Registry

PACKAGE = Path(loopcore_learningloop.__path__[0])
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")


def first_cells(after: str) -> set[str]:
    """The names in the first column of the first table after a text."""
    _, _, rest = README.partition(after)
    assert rest, after
    table = re.search(r"((?:^\|.*\|\n)+)", rest, re.MULTILINE)
    assert table
    rows = table[1].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    ("heading", "options", "shared"),
    [
        ('`[[platforms]] driver = "learningloop"`', PlatformOptions, frozenset()),
        ('`[[sinks]] driver = "learningloop"`', SinkOptions, frozenset(PlatformOptions.__struct_fields__)),
        ('`[[sources]] driver = "learningloop"`', LeftOptions, frozenset()),
    ],
)
def test_every_option_is_listed(heading: str, options: type[Struct], shared: frozenset[str]) -> None:
    assert first_cells(heading) == set(options.__struct_fields__) - shared


def test_the_toml_is_a_configuration_that_a_node_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_PASSWORD", "x")
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    plan = resolve(config.parse(tomllib.loads(text)), Registry())
    assert [part.table.name for part in plan.sinks] == ["learningloop"]


def test_every_variable_that_is_read_is_listed() -> None:
    aliased = {"USERNAME", "PASSWORD", "ORGANIZATION", "PROJECT"}
    source = (PACKAGE / "environment.py").read_text(encoding="utf-8")
    read = set(re.findall(r'"([A-Z][A-Z_]+[A-Z])"', source)) - {"FP", "INT"}
    read |= aliased | {f"LOOP_{name}" for name in aliased}
    assert first_cells("## The environment") == read
    own = set(re.findall(r'"(LOOPCORE_\w+)"', (PACKAGE / "commands.py").read_text(encoding="utf-8")))
    assert first_cells("What no variable of the reference says") == own
