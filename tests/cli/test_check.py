"""`loopcore check` says what is wrong before anything starts, and says it like `loopcore run`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from loopcore.cli import main

_spec = importlib.util.spec_from_file_location("wrong_tomls", Path(__file__).with_name("wrong_tomls.py"))
assert _spec
assert _spec.loader
wrong_tomls = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(wrong_tomls)

GOOD = """
[node]
name = "gate"
data_dir = "data"

[[selectors]]
driver = "uncertain"

[[sinks]]
driver = "folder"
path = "out"
"""

FILE_PLUGIN = """
from loopcore import hookimpl
from loopcore.abc import Sink
from loopcore.hookspecs import Mount


class Void(Sink):
    name = "void"

    async def send(self, samples):
        return []


@hookimpl
def loopcore_drivers():
    return [Void]


@hookimpl
def loopcore_mounts(service):
    return [Mount(path="{path}", app=None)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOPCORE_DEBUG", "")
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(args)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_good_file_is_called_good_with_a_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "loop.toml"
    file.write_text(GOOD)
    code, out, err = command(capsys, "check", str(file))
    assert (code, err) == (0, "")
    assert out.startswith(f"{file} is good: node 'gate', 1 selector (uncertain), 1 sink (folder)")
    assert sorted(path.name for path in folder.iterdir()) == ["loop.toml"], "checking made something"


def test_reason_that_is_nearly_a_selector_is_warned_about(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "loop.toml"
    file.write_text(GOOD + 'when = { reasons = ["uncertian", "mine", "uncertain"] }\n')
    code, _, err = command(capsys, "check", str(file))
    assert code == 0
    assert err.count("\n") == 1
    assert "sinks[0].when.reasons: no selector is named 'uncertian'; did you mean 'uncertain'?" in err


@pytest.mark.parametrize("word", ["check", "run"])
@pytest.mark.parametrize("name", wrong_tomls.WRONG)
def test_wrong_file_ends_with_2_and_one_sentence(
    name: str, word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = wrong_tomls.WRONG[name]
    file = folder / "loop.toml"
    file.write_text(wrong.text)
    code, out, err = command(capsys, word, str(file))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    place = f"{file}:{wrong.line}: " if wrong.line else f"{file}: "
    assert err.startswith(f"loopcore: {place}{wrong.key + ': ' if wrong.key else ''}")
    assert wrong.words in err


def test_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, "check", str(folder / "no.toml"))
    assert (code, err) == (2, f"loopcore: {folder / 'no.toml'}: there is no such file\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'[node]\ndata_dir = "\xff"\n', ":2: expected UTF-8 text"),
        (b"#" * 1_000_001, "at most 1,000,000 bytes"),
        (b"a = " + b"[" * 100_000, "nested too deep"),
        (b"a = " + b"1" * 5_000, "not valid TOML"),
        (b"\x00", "not valid TOML"),
    ],
)
def test_strange_file_is_refused_in_one_sentence(
    data: bytes, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loop.toml").write_bytes(data)
    code, _, err = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 2
    assert err.count("\n") == 1
    assert words in err


def test_control_characters_of_the_file_reach_the_terminal_as_escapes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loop.toml").write_text('[node]\ndata_dir = "x"\n"\\u001b[31mred" = 1\n')
    code, _, err = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 2
    assert "\x1b" not in err
    assert "\\x1b[31mred" in err


def test_literal_secret_is_warned_about_and_never_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop.toml").write_text(GOOD + '\n[server]\ntoken = "canary-7f3a"\n')
    code, out, err = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 0
    assert "loop.toml:14: server.token: the secret stands in the file" in err
    assert "canary" not in out + err


def test_missing_model_is_named_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop.toml").write_text(GOOD + '\n[backend]\ndriver = "onnx"\nmodel = "./no.onnx"\n')
    code, _, err = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 2
    assert "loop.toml:15: backend.model: there is no model" in err


def test_single_file_plugin_is_loaded_and_its_driver_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(FILE_PLUGIN.format(path="/mine"))
    (folder / "loop.toml").write_text(
        '[node]\ndata_dir = "d"\n[plugins]\nfiles = ["mine.py"]\n[[sinks]]\ndriver = "void"\n'
    )
    code, out, err = command(capsys, "check", str(folder / "loop.toml"))
    assert (code, err) == (0, "")
    assert "1 sink (void)" in out


def test_mount_on_a_path_of_the_core_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(FILE_PLUGIN.format(path="/predict"))
    (folder / "loop.toml").write_text('[node]\ndata_dir = "d"\n[plugins]\nfiles = ["mine.py"]\n')
    code, _, err = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 1
    assert err == "loopcore: the plugin 'mine.py' mounts '/predict', which belongs to the core\n"


def test_online_reports_a_platform_that_does_not_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = '\n[[platforms]]\ndriver = "nx"\nurl = "http://127.0.0.1:9"\ntimeout = 2\n'
    (folder / "loop.toml").write_text(GOOD + table)
    code, out, _ = command(capsys, "check", "--online", str(folder / "loop.toml"))
    assert code == 1
    assert out.startswith("platforms[0] 'nx': the Nx server does not answer")


def test_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, "chek")
    assert code == 2
    assert "'check'" in err


def test_interrupt_ends_with_130_and_says_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text("raise KeyboardInterrupt")
    (folder / "loop.toml").write_text('[node]\ndata_dir = "d"\n[plugins]\nfiles = ["mine.py"]\n')
    assert command(capsys, "check", str(folder / "loop.toml")) == (130, "", "")


def test_traceback_is_shown_only_when_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text("1 / 0")
    (folder / "loop.toml").write_text('[node]\ndata_dir = "d"\n[plugins]\nfiles = ["mine.py"]\n')
    code, _, quiet = command(capsys, "check", str(folder / "loop.toml"))
    assert code == 1
    sentence = f"the plugin file {folder / 'mine.py'} cannot be used: ZeroDivisionError: division by zero"
    assert quiet == f"loopcore: {sentence}\n"
    code, _, loud = command(capsys, "--debug", "check", str(folder / "loop.toml"))
    assert code == 1
    assert "Traceback" in loud
    assert loud.endswith(quiet)


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "loopcore", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_completion_lists_commands_without_importing_them() -> None:
    probe = (
        "import os, sys\n"
        "os.environ.update(_LOOPCORE_COMPLETE='complete_bash', COMP_WORDS='loopcore ', COMP_CWORD='1')\n"
        "from loopcore.cli import main\n"
        "try: main([])\n"
        "except SystemExit: print('modules', [n for n in sys.modules if n.startswith('loopcore.cli.check')])\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert {"check", "demo", "detect", "plugins", "run"} <= set(done.stdout.split())
    assert "modules []" in done.stdout
