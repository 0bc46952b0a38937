"""What the pages show is run; `test_docs_lists.py` compares what they list with the code.

The fenced blocks of a page run in order in a folder of its own:

- `console`: lines after `$ ` are run by the shell; what follows is all of their output, with `...` for anything.
  `exit=2`: that is the exit code of the last one. `eventually`: they are repeated until the output fits, because a node
  works beside them. `no-run reason="…"`: only shown.
  `loopcore run … &` waits until the node is up; `kill %1`, or the end of the page, ends it, and it must end with 0.
  `uv pip install -e ./FOLDER` makes the folder known to those who read metadata, without touching the environment.
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
from typing import Any

import pytest

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
        elif command.startswith("uv pip install -e "):
            self._announce(self.folder / command.removeprefix("uv pip install -e "))
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
            elif named := re.search(r"\b((?:loopcore-)?demo)/", text):
                shutil.copytree(request.getfixturevalue("demo"), folders[page] / named[1])
            Reader(folders[page], port if after or f"port = {PORT}" in text else PORT).follow(page)
            left.add(page)
        assert page in left, f"{page} has failed before"
        return folders[page]

    return follow


def is_done(page: str) -> bool:
    return any("no-run" not in block.words for block in blocks(page) if block.language in {"console", "python"})


@pytest.mark.parametrize("page", [page for page in PAGES if is_done(page)])
def test_page_does_what_it_shows(page: str, read: Callable[[str], Path]) -> None:
    if not shutil.which("curl"):
        pytest.skip("the pages ask nodes with curl, which is not installed")
    read(page)


def test_what_is_not_run_says_why() -> None:
    for block in (block for page in PAGES for block in blocks(page) if "no-run" in block.words):
        assert block.words.get("reason"), block
