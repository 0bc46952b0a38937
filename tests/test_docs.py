"""What the pages show is run, and what they list is compared with the code.

The fenced blocks of a page run in order in a folder of its own:

- `console`: lines after `$ ` are run by the shell; what follows is all of their output, with `...` for anything.
  `exit=2`: that is the exit code of the last one. `eventually`: they are repeated until the output fits, because a node works beside
  them. `no-run reason="…"`: only shown.
  `loopcore run … &` waits until the node is up; `kill %1`, or the end of the page, ends it, and it must end with 0.
  `pip install -e ./FOLDER` makes the folder known to those who read metadata, without touching the environment.
- `toml` and `python` with `file=NAME` are written; `python` without is executed.
- `<!-- after: PAGE -->`: this page begins in the folder as that page has left it.

8004 stands for a port that is free.
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
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from loopcore import __version__, errors, hookspecs
from loopcore.abc import KINDS
from loopcore.config import tables
from loopcore.config.loading import _SEVERAL, _SINGLE  # the names of all tables stand nowhere else
from loopcore.drivers.onnx.decoders import DECODERS
from loopcore.drivers.onnx.guess import HABITS
from loopcore.drivers.onnx.spec import Spec
from loopcore.options import decode
from loopcore.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PORT = "8004"
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
    """Whether the output is what is shown: `...` is any number of lines, within a line any characters."""
    lines = (
        "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
        for line in shown.split("\n")
    )
    return re.fullmatch("".join(lines), output.rstrip("\n") + "\n") is not None


@dataclass
class Reader:
    """Does what a page says, in a folder."""

    folder: Path
    port: int
    nodes: list[tuple[subprocess.Popen[str], list[str]]] = field(default_factory=list)

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
            for node, _ in self.nodes:
                node.kill()
                node.communicate()

    def _mine(self, text: str) -> str:
        return text.replace(PORT, str(self.port))

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
        log = "".join("".join(lines) for _, lines in self.nodes)
        assert good, f"{block}: {command}\nexit code {done.returncode}\n{done.stdout}\n--- shown\n{shown}\n{log}"

    def _start(self, block: Block, command: str) -> None:
        node = subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self._environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines: list[str] = []
        news = Event()

        def listen() -> None:
            assert node.stdout
            for line in node.stdout:
                lines.append(line)
                if "The node is up" in line:
                    news.set()
            news.set()

        self.nodes.append((node, lines))
        Thread(target=listen, daemon=True).start()
        assert news.wait(LIMIT_S), f"{block}: the node does not come up\n{''.join(lines)}"
        assert any("The node is up" in line for line in lines), f"{block}: the node has ended\n{''.join(lines)}"

    def _stop(self, place: str) -> None:
        node, lines = self.nodes.pop()
        node.terminate()
        code = node.wait(LIMIT_S)
        assert code == 0, f"{place}: the node ended with {code}\n{''.join(lines)}"
        assert "ERROR" not in "".join(lines), f"{place}: {''.join(lines)}"

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


@contextmanager
def free_port() -> Iterator[int]:
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
def read(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Follows a page, once, and gives the folder as it was left."""
    folders: dict[str, Path] = {}
    left: set[str] = set()

    def follow(page: str) -> Path:
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp(Path(page).stem)
            text = text_of(page)
            if after := re.search(r"^<!-- after: (.+) -->$", text, re.MULTILINE):
                shutil.copytree(follow(f"docs/{after[1]}"), folders[page], dirs_exist_ok=True)
            elif "demo/" in text:
                shutil.copytree(request.getfixturevalue("demo"), folders[page] / "demo")
            with free_port() as port:
                Reader(folders[page], port).follow(page)
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
TABLES = {f"`[{name}]`": kind for name, kind in _SINGLE.items() if name not in {"trainer", "annotator"}}
TABLES |= {f"`[[{name}]]`": kind for name, kind in _SEVERAL.items()}
TABLES |= {"`when`": tables.When, "`[trainer]` and `[annotator]`": tables.DriverTable}
BUILT_IN = [entry for entry in Registry().entries() if entry.package == "loopcore" and entry.kind in KINDS]


def assert_describes(heading: str, kind: type, keys: list[str]) -> None:
    """The section's table has these keys and no other, with their defaults."""
    described = rows(CONFIGURATION, heading)
    assert sorted(described) == sorted(keys)
    required = {one.encode_name: one for one in tables.fields(kind) if one.required}
    assert {name for name, cells in described.items() if cells[1] == "required"} == set(required)
    for one in tables.fields(kind):
        said = described.get(one.encode_name, ["", "required"])[1]
        if said == "none":
            assert one.default is None, one.name
        elif said.startswith("`"):
            given: dict[str, Any] = {name: example(field.type) for name, field in required.items()}
            given[one.encode_name] = tomllib.loads(f"it = {said.strip('`')}")["it"]
            default = one.default_factory() if callable(one.default_factory) else one.default
            assert getattr(decode(given, kind), one.name) == default, one.name


def example(kind: Any) -> Any:
    """A value for a key that must be given."""
    return 1 if kind in {float, int} or "Duration" in str(kind) or "float" in str(kind) else "x"


@pytest.mark.parametrize("heading", TABLES)
def test_configuration_describes_every_key_of_a_table(heading: str) -> None:
    assert_describes(heading, TABLES[heading], tables.own_keys(TABLES[heading]))


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: f"{entry.kind} {entry.name}")
def test_configuration_describes_every_option_of_a_driver(entry: Any) -> None:
    options = Registry().driver(entry.kind, entry.name).Options
    keys = [one.encode_name for one in tables.fields(options)]
    assert_describes(f"{entry.kind.capitalize()} `{entry.name}`", options, keys)


def test_configuration_describes_no_driver_that_is_not_there() -> None:
    described = re.findall(r"^### (\w+) `(\w+)`$", text_of(CONFIGURATION), re.MULTILINE)
    assert {(kind.lower(), name) for kind, name in described} == {(entry.kind, entry.name) for entry in BUILT_IN}


def test_whole_file_shows_every_key_that_can_be_used_today(read: Callable[[str], Path]) -> None:
    shown = tomllib.loads((read(CONFIGURATION) / "loop.toml").read_text())
    for name in ("node", "server", "inference", "backend", "outbox", "plugins"):
        assert set(tables.own_keys(_SINGLE[name])) <= set(shown[name]), name
    for name, kind in {"selectors": tables.SelectorTable, "sinks": tables.SinkTable}.items():
        keys = {key for table in shown[name] for key in table}
        assert set(tables.own_keys(kind)) - {"like"} <= keys, name
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


def test_changelog_has_an_entry_for_this_version() -> None:
    assert re.search(rf"^## \[?{re.escape(__version__)}\]?", text_of("CHANGELOG.md"), re.MULTILINE)
