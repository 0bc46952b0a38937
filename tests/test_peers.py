"""The environments of the programs that ours are tested against."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOPCORE_PEERS", str(tmp_path / "cache"))
    (tmp_path / "nothing.txt").write_text("# no packages\n")
    return tmp_path / "cache"


def test_two_makers_at_once_make_one_environment(tmp_path: Path, cache: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(peers.HERE.parent)!r}); import peers, pathlib\n"
    code += f"print(peers.python_of('nothing', pathlib.Path({str(tmp_path)!r})))"

    def make(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor() as pool:
        (python,) = set(pool.map(make, range(2)))
    (environment,) = (path for path in cache.iterdir() if path.is_dir())
    assert Path(python) == environment / "bin" / "python"
    made = (environment / "made").stat().st_mtime_ns
    assert peers.python_of("nothing", tmp_path) == Path(python)
    assert (environment / "made").stat().st_mtime_ns == made
    subprocess.run([python, "-c", "import json"], check=True)


def test_environment_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    python = peers.python_of("nothing", tmp_path)
    (python.parents[1] / "made").unlink()
    python.unlink()
    assert peers.python_of("nothing", tmp_path).exists()


def test_what_cannot_be_installed_is_told(tmp_path: Path) -> None:
    (tmp_path / "wrong.txt").write_text("!! no requirement\n")
    with pytest.raises(peers.PeerUnavailable, match="ended with"):
        peers.python_of("wrong", tmp_path)
