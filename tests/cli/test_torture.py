"""`loopcore torture`: what a person types, reads and gets as an exit code. What it is worth: `test_crash_states.py`."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from loopcore.cli import main
from loopcore.cli.torture import faults, kills
from loopcore.cli.torture.campaign import Finding
from loopcore.collect.outbox import records

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LOOPCORE_DEBUG", "")
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["torture", *args])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failing disk knows one error only, which saves time."""
    monkeypatch.setattr(faults, "CODES", (errno.ENOSPC,))


def test_sound_outbox_gets_a_table_of_zeros_and_leaves_no_trace(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--states", "200", "--kills", "3", "--dir", ".")
    assert (code, err) == (0, "")
    rows = [re.split(r"  +", line) for line in out.splitlines()[:5]]
    assert rows[0] == ["campaign", "tried", "lost", "half", "sent again", "other", "seconds"]
    assert [row[0] for row in rows[1:]] == ["crash states", "failing disk", "flipped bits", "kills"]
    assert all(row[2:6] == ["0"] * 4 for row in rows[1:])
    tried = [int(row[1].split()[0].replace(",", "")) for row in rows[1:]]
    assert tried[0] >= 200
    assert tried[1] >= 500
    assert tried[2:] == [400, 3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_error")
def test_outbox_that_checks_nothing_gets_exit_code_1_and_the_story(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_sound", lambda *_: True)
    monkeypatch.setattr(records, "image_of", lambda data, entry: data[len(data) - entry.info.image_bytes :])
    code, out, _ = run("--states", "0", "--kills", "0")
    assert code == 1
    assert re.search(r"^flipped bits +400 rounds +0 +[1-9]", out, re.MULTILINE)
    assert re.search(r"^a bit of box/segments/\d+\.seg at \d+: half: ", out, re.MULTILINE)


def test_file_that_is_gone_after_a_kill_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = kills._kill_one

    def careless(folder: Path, first: int, lines: int, books: kills.Books, finding: Finding) -> None:
        kill(folder, first, 100, books, finding)
        max(folder.glob("segments/*")).unlink()

    monkeypatch.setattr(kills, "_kill_one", careless)
    finding = kills.kills(tmp_path / "outbox", 1, 0)
    assert finding.broken["lost"]


def test_outbox_that_raises_what_nobody_expects_is_a_story_too(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(campaign="any", what="rounds")
    with finding.trying("a round"):
        raise KeyError("surprise")
    assert finding.stories == ["a round: KeyError: 'surprise'"]
    assert finding.row == ("any", "0 rounds", 0, 0, 0, 1, "0")


def test_missing_hypothesis_is_said_in_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("hypothesis", "loopcore.cli.torture."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    code, _, err = run()
    assert (code, err) == (2, "loopcore: loopcore torture needs hypothesis: pip install 'loopcore[torture]'\n")


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_folder_that_cannot_be_used_is_said_in_a_sentence(run: Run, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("--dir", folder)
    assert code == 2
    assert err.startswith(f"loopcore: cannot make a folder in {folder}: ")


def test_help_says_what_is_real_and_what_is_played(run: Run) -> None:
    _, out, _ = run("--help")
    words = " ".join(out.split())
    assert "are played on a disk in memory; the kills are real, on the disk of DIR" in words


class Terminal:
    """A process in a terminal of its own, which all that it starts share.

    Attributes:
        said: What it has written.
        pid: Its id.
    """

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.said = b""
        self.pid = process.pid
        self._master = master
        self._process = process

    def wait_for(self, pattern: bytes) -> None:
        while not re.search(pattern, self.said):
            self.said += os.read(self._master, 4096)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self) -> int:
        """The exit code, once it and all that it has started have ended."""
        with suppress(OSError):  # comes when the last of them has closed it
            while part := os.read(self._master, 4096):
                self.said += part
        return self._process.wait()


IN_TERMINAL = """
import os, sys
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "loopcore", *sys.argv[2:]])
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    master, slave = os.openpty()
    command = [sys.executable, "-c", IN_TERMINAL, str(slave), "torture", "--long", "--dir", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONWARNINGS": "error"}
    with subprocess.Popen(command, env=environment, pass_fds=[slave]) as process:
        os.close(slave)
        yield Terminal(master, process)
        process.kill()
    os.close(master)


def assert_ended(terminal: Terminal, folder: Path) -> None:
    assert terminal.wait() == 130
    assert b"Traceback" not in terminal.said, terminal.said.decode()
    left = [path for place in ("/dev/shm", tempfile.gettempdir()) for path in Path(place).glob(f"*-{terminal.pid}-*")]
    assert (left, list(folder.iterdir())) == ([], [])


def test_interrupted_campaign_ends_at_once_and_leaves_nothing(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(rb"crash states [^\r]* [1-9]\d*/500000")
    terminal.press(b"\x03")
    assert_ended(terminal, tmp_path)


def test_so_does_one_that_is_ended_from_outside_before_it_has_begun(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(rb"crash states [^\r]* 0/500000")
    os.kill(terminal.pid, signal.SIGTERM)
    assert_ended(terminal, tmp_path)


@pytest.mark.long
def test_long_campaign_finds_nothing(run: Run) -> None:
    code, out, _ = run("--long")
    print(out)
    assert code == 0, out
