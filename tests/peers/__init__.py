"""Released programs of others, each in an environment of its own, to run ours against. Their code is never imported here.

`NAME.txt` beside this file lists a peer's packages, pinned. The environment is made once for each content of that file,
in `$LOOPCORE_PEERS` or the user's cache folder, and used by all later runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
MAKING_S = 300
PYTHON = "3.11"
"""What the pinned packages were released for; where uv has none, our own is taken."""


class PeerUnavailable(Exception):
    """The environment could not be made."""


def python_of(name: str, folder: Path = HERE) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Args:
        name: Of its list of packages, without the ending.
        folder: Where that lies.

    Raises:
        PeerUnavailable: It could not be; with the last words of the installer.
    """
    requirements = folder / f"{name}.txt"
    key = sha256(requirements.read_bytes() + PYTHON.encode()).hexdigest()[:12]
    place = _cache() / f"{name}-{key}"
    made = place / "made"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(place, ignore_errors=True)
            _make(place, requirements)
            made.touch()
    return place / "bin" / "python"


def _cache() -> Path:
    chosen = os.environ.get("LOOPCORE_PEERS")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopcore-peers"


def _make(folder: Path, requirements: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        return
    try:
        _run(uv, "venv", "--quiet", "--python", PYTHON, str(folder))
    except PeerUnavailable:
        _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    _run(uv, "pip", "install", "--quiet", "--python", str(folder), "--requirement", str(requirements))


def _run(*command: str) -> None:
    ours = ("UV_CONSTRAINT", "UV_NO_SYNC", "VIRTUAL_ENV")  # of the checks around us; a peer has its own pins
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MAKING_S, check=False)
    except subprocess.TimeoutExpired as exc:
        msg = f"{command[0]} did not end within {MAKING_S} s"
        raise PeerUnavailable(msg) from exc
    if done.returncode:
        msg = f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip()[-600:]}"
        raise PeerUnavailable(msg)
