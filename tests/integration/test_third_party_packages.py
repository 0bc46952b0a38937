"""Foreign packages: usable by being named and by nothing else; a broken neighbour harms only who names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from loopcore import Options
from loopcore.abc import Sink
from loopcore.types import Delivered

class AcmeOptions(Options, frozen=True, kw_only=True):
    bucket: str

class AcmeSink(Sink):
    Options = AcmeOptions
    async def send(self, samples):
        return [Delivered() for _ in samples]
"""
HOOKS = """
from pathlib import Path
Path(__file__).with_name("hooked").touch()
from loopcore import hookimpl

@hookimpl
async def loopcore_sample_kept(sample):
    pass
"""
COMMAND = """
import typer

def command(launcher):
    app = typer.Typer(add_completion=False)

    @app.command()
    def greet(name: str) -> None:
        launcher.console.print(f"hello {name}")

    return app
"""


NO_SINK = "expected a subclass of loopcore.abc.Sink, found class bad_class.A"


def install(site: Path, package: str, points: str, **modules: str) -> None:
    """What pip leaves of a wheel."""
    info = site / f"{package.replace('-', '_')}-0.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.5\n")
    (info / "entry_points.txt").write_text(points)
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    install(
        site,
        "acme-sink",
        "[loopcore.sinks]\nacme = acme_sink:AcmeSink\n[loopcore.hooks]\nacme = acme_hooks\n",
        acme_sink=GOOD,
        acme_hooks=HOOKS,
    )
    install(site, "bad-import", "[loopcore.sinks]\nbad-import = bad_import:A\n", bad_import="import not_there")
    install(site, "bad-class", "[loopcore.sinks]\nbad-class = bad_class:A\n", bad_class="class A: pass")
    install(site, "bad-twin", "[loopcore.selectors]\nuncertain = bad_twin:A\n", bad_twin="raise SystemExit")
    return site


def loopcore(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "loopcore", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def check(site: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = site.parent / "loop.toml"
    file.write_text(f'[node]\ndata_dir = "data"\n{text}')
    return loopcore(site, "check", str(file))


def test_foreign_sink_is_used_when_named_and_its_hooks_take_part(site: Path) -> None:
    done = check(site, '[[sinks]]\ndriver = "acme"\nbucket = "b"\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 sink (acme)" in done.stdout
    assert (site / "imported").exists()
    assert (site / "hooked").exists()


def test_nothing_of_a_package_is_imported_that_nobody_names(site: Path) -> None:
    done = check(site, '[[sinks]]\ndriver = "folder"\npath = "out"\n')
    assert (done.returncode, done.stderr) == (0, "")
    listed = loopcore(site, "plugins")
    assert ["sink", "acme", "acme-sink", "0.5"] in [line.split() for line in listed.stdout.splitlines()]
    assert not (site / "imported").exists()
    assert not (site / "hooked").exists()


def test_enabling_a_package_takes_its_hooks_and_not_its_drivers(site: Path) -> None:
    done = check(site, '[plugins]\nenabled = ["Acme_Sink"]\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert (site / "hooked").exists()
    assert not (site / "imported").exists()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            '[[sinks]]\ndriver = "bad-import"',
            "the sink 'bad-import' of bad-import 0.5 cannot be used: ModuleNotFoundError: No module named 'not_there'",
        ),
        (
            '[[sinks]]\ndriver = "bad-class"',
            f"the sink 'bad-class' of bad-class 0.5 cannot be used: {NO_SINK}",
        ),
        (
            '[[selectors]]\ndriver = "uncertain"',
            "the selector 'uncertain' is announced by bad-twin 0.5 and by loopcore 0.1.0; uninstall one of them",
        ),
    ],
)
def test_broken_package_that_is_named_ends_the_start_with_its_name_and_cause(
    site: Path, table: str, sentence: str
) -> None:
    done = check(site, table)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"loopcore: {sentence}\n")


def test_check_of_all_plugins_names_each_broken_one_and_its_cause(site: Path) -> None:
    done = loopcore(site, "plugins", "--check", "--json")
    assert done.returncode == 1
    problems = {(row["package"], row["name"]): row["problem"] for row in json.loads(done.stdout)}
    assert "No module named 'not_there'" in problems["bad-import", "bad-import"]
    assert "expected a subclass of loopcore.abc.Sink" in problems["bad-class", "bad-class"]
    assert "is announced by bad-twin 0.5 and by loopcore 0.1.0" in problems["bad-twin", "uncertain"]
    assert problems["acme-sink", "acme"] is None
    assert problems["loopcore", "folder"] is None


def test_foreign_command_is_listed_with_its_package_and_runs_when_called(site: Path) -> None:
    install(site, "acme-tools", "[loopcore.commands]\nacme = acme_tools:command\n", acme_tools=COMMAND)
    install(site, "bad-tools", "[loopcore.commands]\nbad = bad_tools:command\n", bad_tools="raise RuntimeError('no')")
    listed = loopcore(site, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert ["acme", "(acme-tools)"] in [line.split() for line in listed.stdout.splitlines()]
    assert loopcore(site, "acme", "you").stdout == "hello you\n"
    broken = loopcore(site, "bad")
    assert (broken.returncode, broken.stderr) == (
        1,
        "loopcore: the command 'bad' of bad-tools 0.5 cannot be used: RuntimeError: no\n",
    )
