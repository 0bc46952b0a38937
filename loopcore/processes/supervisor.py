"""Stands between a node and one command: starts it with limits, and ends with all that the command has started.

A program of its own, run by path in a bare interpreter; it imports nothing of loopcore. Its one thread forks, so that
limits are set between fork and exec without a race, and PR_SET_PDEATHSIG means this process and not a thread of the
node's. As a subreaper it becomes the parent of every orphan below it (prctl(2)), so nothing escapes by a double fork.

It is told what to do over a socket, the line: `t` is SIGTERM for the command's group, and the line's end, which a
killed node brings about too, is SIGKILL for all. It says `+` once the command runs, or why it does not. Then it ends as
the command has ended: with the same exit code, or by the same signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_OOM_SCORE = "500"
"""Added to the command's badness (proc(5)): where memory runs out, it dies before the node."""


def main() -> NoReturn:
    plan = json.loads(sys.argv[1])
    line = socket.socket(fileno=plan["line"])
    line.set_inheritable(False)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the whole service; only the line ends this one
    wake = _wake_on_exit()
    pid, refusal = _start(sys.argv[2:], plan["limits"])
    for inherited in (0, 1, 2, *plan["fds"]):
        os.close(inherited)
    with suppress(OSError):
        line.send(b"+" if refusal is None else refusal)
    status = _watch(pid, line, wake)
    _end(_clear(pid, status))


def _start(command: list[str], limits: dict[str, int]) -> tuple[int, bytes | None]:
    """The command's process, and why it does not run, if it does not."""
    said, say = os.pipe()  # closed by exec
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(command, limits, supervisor)
        except (OSError, ValueError) as exc:
            os.write(say, f"-{getattr(exc, 'errno', None) or 0} {exc}".encode()[:1000])
        finally:
            os._exit(127)
    os.close(say)
    with suppress(OSError):
        os.setpgid(pid, pid)
    refusal = os.read(said, 1000)
    os.close(said)
    return pid, refusal or None


def _become(command: list[str], limits: dict[str, int], supervisor: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(127)
    os.setpgid(0, 0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib is slow to import
        file.write(_OOM_SCORE)
    for number in (*range(1, 32),):
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # exec resets what is caught, not what is ignored
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name, value in limits.items():
        _limit(getattr(resource, name), value)
    os.execvp(command[0], command)  # noqa: S606 - there is no shell


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _watch(pid: int, line: socket.socket, wake: int) -> int | None:
    """Wait for the command's end, and return its status; `None` if the line has ended first."""
    while True:
        ready = select.select([line.fileno(), wake], [], [])[0]
        if line.fileno() in ready:
            with suppress(ProcessLookupError, PermissionError):
                if not line.recv(1):
                    return None
                os.killpg(pid, signal.SIGTERM)
        if wake in ready:
            os.read(wake, 4096)
            with suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    if found[0] == pid:
                        return found[1]


def _clear(pid: int, status: int | None) -> int:
    """Kill all that is left below this process, and wait for it; the command's status."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    while True:
        for child in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            found, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status or 0
        if found == pid:
            status = ended


def _children() -> list[int]:
    me = str(os.getpid())
    found = []
    with suppress(FileNotFoundError):  # no /proc: macOS, where the group is all that can be known
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is slow to import
            with suppress(OSError, IndexError):
                if name.isdigit() and _parent(name) == me:
                    found.append(int(name))
    return found


def _parent(pid: str) -> str:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - pathlib is slow to import
        return file.read().rpartition(")")[2].split()[1]


def _end(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))


def _wake_on_exit() -> int:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        call: Any = ctypes.CDLL(None).prctl
        call(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


if __name__ == "__main__":
    main()
