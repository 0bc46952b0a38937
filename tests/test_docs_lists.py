"""What the pages list is there, and what is there is listed: keys, options, hooks, errors, decoders, modules, links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin
from xml.etree import ElementTree as ET

import pytest
from msgspec import Struct, defstruct
from msgspec.structs import fields

from loopcore import __version__, errors, hookspecs
from loopcore.abc import KINDS
from loopcore.config import Config, tables
from loopcore.drivers.onnx.decoders import DECODERS
from loopcore.drivers.onnx.guess import HABITS
from loopcore.drivers.onnx.spec import Spec
from loopcore.options import decode
from loopcore.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# Links


def anchors(page: str) -> set[str]:
    """As GitHub makes them from headings, and those written by hand."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="(.+?)">', text))


def links(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {f"docs/{link.partition('#')[0].removeprefix('docs/')}" for link in links("README.md")}
    assert {page for page in PAGES if page.startswith("docs/")} <= reached


def test_pictures_can_be_read() -> None:
    pictures = list((ROOT / "docs").glob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ET.parse(picture).getroot()
        assert root.tag.endswith("svg")
        assert root.find("{*}title") is not None


# What the pages list


def section(page: str, heading: str) -> str:
    text = text_of(page)
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{page} has no section {heading!r}"
    rest = text[start.end() :]
    return re.split(r"^#{1,6} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table of a section: their cells by the word in the first one."""
    lines = re.findall(r"^\| *`(.+?)`(.*)\|$", section(page, heading), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")[1:]] for name, rest in lines}


CONFIGURATION = "docs/configuration.md"
TABLES: dict[str, type[Struct]] = {
    "`when`": tables.When,
    "`gate`": tables.GateTable,
    "`[annotator]`": tables.DriverTable,
}
for one in fields(Config):
    kinds = [kind for kind in (one.type, *get_args(one.type)) if getattr(kind, "__module__", "") == tables.__name__]
    if kinds and kinds[0] is not tables.DriverTable:
        TABLES[f"`[[{one.name}]]`" if get_origin(one.type) is tuple else f"`[{one.name}]`"] = kinds[0]
BUILT_IN = [entry for entry in Registry().entries() if entry.package == "loopcore" and entry.kind in KINDS]


def assert_describes(heading: str, kind: type, keys: list[str]) -> None:
    """The section's table has these keys and no other, with their defaults."""
    described = rows(CONFIGURATION, heading)
    assert sorted(described) == sorted(keys)
    for one in fields(kind):
        if one.encode_name not in described:
            continue
        said = described[one.encode_name][1]
        assert (said == "required") == one.required, one.name
        if said == "none":
            assert one.default is None, one.name
        elif said.startswith("`"):
            value = tomllib.loads(f"it = {said.strip('`')}")
            default = one.default_factory() if callable(one.default_factory) else one.default
            assert decode(value, defstruct("One", [("it", one.type)])).it == default, one.name


@pytest.mark.parametrize("heading", TABLES)
def test_configuration_describes_every_key_of_a_table(heading: str) -> None:
    assert_describes(heading, TABLES[heading], tables.own_keys(TABLES[heading]))


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: f"{entry.kind} {entry.name}")
def test_configuration_describes_every_option_of_a_driver(entry: Any) -> None:
    options = Registry().driver(entry.kind, entry.name).Options
    keys = [one.encode_name for one in fields(options)]
    assert_describes(f"{entry.kind.capitalize()} `{entry.name}`", options, keys)


def test_configuration_describes_no_driver_that_is_not_there() -> None:
    described = re.findall(r"^### (\w+) `(\w+)`$", text_of(CONFIGURATION), re.MULTILINE)
    assert {(kind.lower(), name) for kind, name in described} == {(entry.kind, entry.name) for entry in BUILT_IN}


def test_whole_file_shows_every_key_that_can_be_used_today() -> None:
    block = re.search(r"^```toml file=loop.toml\n(.*?)```$", text_of(CONFIGURATION), re.MULTILINE | re.DOTALL)
    assert block
    shown = tomllib.loads(block[1])
    later = {"platforms", "rollouts", "conversions", "trainer", "annotator"}
    assert set(shown) == {one.name for one in fields(Config)} - later - {"document", "warnings"}
    for name in set(shown) - {"sources"}:
        tables_shown = shown[name] if isinstance(shown[name], list) else [shown[name]]
        kind = TABLES.get(f"`[{name}]`") or TABLES[f"`[[{name}]]`"]
        keys = {key for table in tables_shown for key in table}
        assert set(tables.own_keys(kind)) - {"like"} <= keys, name
    several = ("sources", "selectors", "sinks")
    drivers = {(name, table["driver"]) for name in several for table in shown[name]}
    assert drivers == {(f"{entry.kind}s", entry.name) for entry in BUILT_IN if f"{entry.kind}s" in several}


def test_plugins_page_lists_every_kind_and_every_built_in_driver() -> None:
    row = r"^\| (\w+) \| .* \| `(loopcore\.\w+)` \| .* \| (.*) \|$"
    lines = re.findall(row, text_of("docs/plugins.md"), re.MULTILINE)
    listed = {kind: (group, set(re.findall(r"`(\w+)`", drivers))) for kind, group, drivers in lines}
    there = {kind: (f"loopcore.{kind}s", {one.name for one in BUILT_IN if one.kind == kind}) for kind in KINDS}
    assert listed == there


def test_every_hook_is_described_with_all_its_arguments() -> None:
    specs = {name: function for name, function in vars(hookspecs).items() if hasattr(function, "loopcore_spec")}
    said = dict(re.findall(r"^### `(\w+)\((.*)\)`$", text_of("docs/write-a-hook.md"), re.MULTILINE))
    assert {name: arguments.split(", ") if arguments else [] for name, arguments in said.items()} == {
        name: list(function.__code__.co_varnames[: function.__code__.co_argcount]) for name, function in specs.items()
    }
    for name, arguments in said.items():
        described = rows("docs/write-a-hook.md", f"`{name}({arguments})`")
        assert ", ".join(described) == arguments


def test_every_error_is_described_where_it_stands_in_the_tree() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"Path"}
    classes = {name for name in classes if issubclass(getattr(errors, name), errors.LoopcoreError)}
    text = text_of("docs/errors.md")
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == classes
    tree = text.split("```")[1]
    drawn = (errors.__doc__ or "").split("```")[1]
    assert re.findall(r"^([│├└─ ]*\w+)", tree, re.MULTILINE) == re.findall(r"^([│├└─ ]*\w+)", drawn, re.MULTILINE)


def test_every_key_of_a_spec_is_described() -> None:
    assert set(rows("docs/models.md", "The spec")) == set(Spec.__struct_fields__)


def test_every_decoder_is_described_with_its_usual_confidence() -> None:
    described = rows("docs/models.md", "Decoders")
    assert {name: float(cells[-1]) for name, cells in described.items()} == {
        name: HABITS[name].confidence for name in DECODERS
    }


def test_architecture_places_every_module() -> None:
    package = ROOT / "loopcore"
    modules = {path.stem for path in [*package.glob("*.py"), *(init.parent for init in package.glob("*/__init__.py"))]}
    named = set(re.findall(r"`(\w+)/?`", section("docs/architecture.md", "What is where")))
    assert modules - {"__init__", "__main__"} <= named


def test_architecture_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = re.search(r"^```\n(__main__ >.*?)```$", text_of("docs/architecture.md"), re.MULTILINE | re.DOTALL)
    assert shown
    assert " ".join(shown[1].split()) == " > ".join(layers)


def test_changelog_has_an_entry_for_this_version() -> None:
    assert re.search(rf"^## \[?{re.escape(__version__)}\]?", text_of("CHANGELOG.md"), re.MULTILINE)
