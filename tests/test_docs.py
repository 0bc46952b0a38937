"""What the pages show is run, and what they list is compared with the code.

The fenced blocks of a page run in order in a folder of its own:

- `console`: lines after `$ ` are run by the shell; what follows is all of their output, with `...` for anything.
  `exit=2`: that is the exit code of the last one. `eventually`: they are repeated until the output fits, because a node
  works beside them. `no-run reason="…"`: only shown.
  `loopcore run … &` waits until the node is up; `kill %1`, or the end of the page, ends it, and it must end with 0.
  `pip install -e ./FOLDER` makes the folder known to those who read metadata, without touching the environment.
- `toml` and `python` with `file=NAME` are written; `python` without is executed.
- `<!-- after: PAGE -->`: this page begins in the folder as that page has left it.

Where a page says `port = 8004`, 8004 stands for a port that is free.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import monotonic
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
START = "docs/quickstart.md"
PAGES = [START, "README.md", "CHANGELOG.md"]
PAGES += sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {START})
PORT = 8004
LIMIT_S = 15.0


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, and its text."""

    page: str
    line: int
    language: str
    words: Mapping[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    text = text_of(page)
    for match in re.finditer(r"^```(\w+)(.*)\n((?:(?!```).*\n)*)```$", text, re.MULTILINE):
        words = dict((*word.split("=", 1), "")[:2] for word in shlex.split(match[2]))
        yield Block(page, text[: match.start()].count("\n") + 1, match[1], words, match[3])


def commands(block: Block) -> Iterator[tuple[str, str, int]]:
    """The commands of a console block, each with the output that is shown and the exit code."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for number, part in enumerate(parts, 1):
        command, _, shown = part.replace("\\\n", "").partition("\n")
        yield command, shown.rstrip("\n"), int(block.words.get("exit", 0)) if number == len(parts) else 0


def fits(output: str, shown: str) -> bool:
    """Whether the output is what is shown: `...` is any number of lines, within a line any characters.

    How many spaces stand between two columns does not matter.
    """
    output, shown = (re.sub(r"(?<=\S) {2,}", "  ", text).rstrip("\n") for text in (output, shown))
    lines = (".*".join(map(re.escape, line.split("..."))) + r"\n" for line in shown.split("\n"))
    pattern = "".join(r"(?:.*\n)*" if line == r".*\n" else line for line in lines)
    return re.fullmatch(pattern, output + "\n") is not None


class Node:
    """A node that runs beside the page."""

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            shlex.split(command),
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lines: list[str] = []
        self._news = Event()
        self._up = False
        self._listener = Thread(target=self._listen)
        self._listener.start()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def is_up(self) -> bool:
        """Wait until it is, or has ended."""
        return self._news.wait(LIMIT_S) and self._up

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._listener.join()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stream:
            for line in stream:
                self._lines.append(line)
                if "The node is up" in line:
                    self._up = True
                    self._news.set()
        self._news.set()


@dataclass
class Reader:
    """Does what a page says, in a folder; `port` takes the place of 8004."""

    folder: Path
    port: int
    nodes: list[Node] = field(default_factory=list)

    def follow(self, page: str) -> None:
        """Do all of it, and stop what it has started.

        Raises:
            AssertionError: Something is not as the page says.
        """
        variables: dict[str, Any] = {"__name__": "docs"}
        try:
            for block in blocks(page):
                if "file" in block.words:
                    self._write(block)
                elif block.language == "python":
                    with chdir(self.folder):
                        exec(compile(block.text, str(block), "exec"), variables)
                elif block.language == "console" and "no-run" not in block.words:
                    for command, shown, code in commands(block):
                        self._do(block, self._mine(command), self._mine(shown), code)
                elif block.language == "toml":
                    tomllib.loads(block.text)
            while self.nodes:
                self._stop(page)
        finally:
            for node in self.nodes:
                node.end()

    def _mine(self, text: str) -> str:
        return text.replace(str(PORT), str(self.port))

    def _write(self, block: Block) -> None:
        path = self.folder / block.words["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._mine(block.text), encoding="utf-8")

    def _do(self, block: Block, command: str, shown: str, code: int) -> None:
        if command.endswith(" &"):
            self._start(block, command.removesuffix(" &"))
        elif command == "kill %1":
            self._stop(str(block))
        elif command.startswith("pip install -e "):
            self._announce(self.folder / command.removeprefix("pip install -e "))
        else:
            self._run(block, command, shown, code)

    def _run(self, block: Block, command: str, shown: str, code: int) -> None:
        deadline = monotonic() + (LIMIT_S if "eventually" in block.words else 0)
        while True:
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self.folder,
                env=self._environment(),
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
            good = done.returncode == code and fits(done.stdout, shown)
            if good or monotonic() > deadline:
                break
            Event().wait(0.1)  # a node works beside us, and a shell command cannot wait for its news
        log = "".join(node.log for node in self.nodes)
        assert good, f"{block}: {command}\nexit code {done.returncode}\n{done.stdout}\n--- shown\n{shown}\n{log}"

    def _start(self, block: Block, command: str) -> None:
        node = Node(command, self.folder, self._environment())
        self.nodes.append(node)
        assert node.is_up(), f"{block}: the node does not come up\n{node.log}"

    def _stop(self, place: str) -> None:
        node = self.nodes.pop()
        code = node.end()
        assert code == 0, f"{place}: the node ended with {code}\n{node.log}"
        assert "ERROR" not in node.log, f"{place}: {node.log}"

    def _announce(self, folder: Path) -> None:
        """What pip writes about a project that is installed from its folder, as far as anybody reads it."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = project["entry-points"].items()
        entries = [line for group, names in groups for line in (f"[{group}]", *map(" = ".join, names.items()))]
        (info / "entry_points.txt").write_text("\n".join(entries))

    def _environment(self) -> dict[str, str]:
        installed = [str(info.parent) for info in self.folder.glob("*/*.dist-info")]
        return {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join(installed),
            "HOME": str(self.folder / ".home"),
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "error",
        }


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port that nobody else is given; bound, not listened on, which leaves it to those who share addresses."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `loopcore demo` leaves behind, as far as pages use it, with a model fitted in a tenth of the time."""
    from loopcore.cli.demo.model import Recipe, fit_model
    from loopcore.cli.demo.scenes import load_material
    from loopcore.cli.demo.workspace import prepare, write_scenes

    out = tmp_path_factory.mktemp("demo") / "demo"
    learned, unseen = load_material()
    prepare(out)
    write_scenes(out, unseen, count=12, seed=0)
    fit_model(learned, out / "model", seed=0, recipe=Recipe(scenes=40, hidden=24, epochs=8, rounds=1))
    return out


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, port: int) -> Callable[[str], Path]:
    """Follows a page, once, and gives the folder as it was left."""
    folders: dict[str, Path] = {}
    left: set[str] = set()

    def follow(page: str) -> Path:
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp(Path(page).stem)
            text = text_of(page)
            after = re.search(r"^<!-- after: (.+) -->$", text, re.MULTILINE)
            if after:
                shutil.copytree(follow(f"docs/{after[1]}"), folders[page], dirs_exist_ok=True)
            elif "demo/" in text:
                shutil.copytree(request.getfixturevalue("demo"), folders[page] / "demo")
            Reader(folders[page], port if after or f"port = {PORT}" in text else PORT).follow(page)
            left.add(page)
        assert page in left, f"{page} has failed before"
        return folders[page]

    return follow


def is_done(page: str) -> bool:
    return any("no-run" not in block.words for block in blocks(page) if block.language in {"console", "python"})


@pytest.mark.parametrize("page", [page for page in PAGES if is_done(page)])
def test_page_does_what_it_shows(page: str, read: Callable[[str], Path]) -> None:
    read(page)


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
TABLES: dict[str, type[Struct]] = {"`when`": tables.When, "`[trainer]` and `[annotator]`": tables.DriverTable}
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


def test_whole_file_shows_every_key_that_can_be_used_today(read: Callable[[str], Path]) -> None:
    shown = tomllib.loads((read(CONFIGURATION) / "loop.toml").read_text())
    later = {"platforms", "rollouts", "trainer", "annotator"}
    assert set(shown) == {one.name for one in fields(Config)} - later - {"document", "warnings"}
    for name in set(shown) - {"sources"}:
        tables_shown = shown[name] if isinstance(shown[name], list) else [shown[name]]
        kind = TABLES.get(f"`[{name}]`") or TABLES[f"`[[{name}]]`"]
        assert set(tables.own_keys(kind)) - {"like"} <= {key for table in tables_shown for key in table}, name
    drivers = {(name, table["driver"]) for name in ("sources", "selectors", "sinks") for table in shown[name]}
    assert drivers == {(f"{entry.kind}s", entry.name) for entry in BUILT_IN if entry.kind != "backend"}


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
