"""Promises of `processes.child`: limits, an environment of its own, and nothing that outlives the block."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from loopcore.files import Disk
from loopcore.processes import Limits, child, ending
from loopcore.processes.lines import LINE_BYTES, Lines, Log

pytestmark = pytest.mark.anyio

LIMIT_S = 20.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such thing")


def python(code: str) -> list[str]:
    """A command that starts quickly."""
    return [sys.executable, "-I", "-S", "-c", code]


async def run(code: str, cwd: Path, **given: object) -> tuple[int, list[str]]:
    lines: list[str] = []
    with anyio.fail_after(LIMIT_S):
        async with child(python(code), cwd=cwd, heard=lines.append, **given) as process:
            return await process.wait(), lines


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Heard:
    """Lines as they come, to wait for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = anyio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._more.set()
        self._more = anyio.Event()

    async def __getitem__(self, index: int) -> str:
        while len(self.lines) <= index:
            await self._more.wait()
        return self.lines[index]


async def test_lines_of_both_streams_are_heard_and_logged(tmp_path: Path) -> None:
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); print('three', end='')"
    assert await run(code, tmp_path, log=tmp_path / "log") == (0, ["one", "two", "three"])
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree"


async def test_log_is_appended_to(tmp_path: Path) -> None:
    for word in ("a", "b"):
        await run(f"print({word!r})", tmp_path, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "a\nb\n"


async def test_exit_code_is_known(tmp_path: Path) -> None:
    assert await run("raise SystemExit(7)", tmp_path) == (7, [])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
async def test_signal_that_ended_it_is_known(tmp_path: Path, number: signal.Signals) -> None:
    code, _ = await run(f"import os; os.kill(os.getpid(), {int(number)})", tmp_path)
    assert code == -number
    assert number.name in ending(code)


async def test_program_reads_what_it_is_given(tmp_path: Path) -> None:
    text = b"x" * 300_000
    assert await run("import sys; print(len(sys.stdin.read()))", tmp_path, stdin=text) == (0, ["300000"])


async def test_program_that_does_not_read_is_no_failure(tmp_path: Path) -> None:
    assert await run("", tmp_path, stdin=b"x" * 300_000) == (0, [])


async def test_program_that_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with child(["no-such-program-anywhere"], cwd=tmp_path):
            pass


async def test_folder_that_is_not_there_cannot_be_worked_in(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with child(python(""), cwd=tmp_path / "absent"):
            pass


async def test_environment_is_allow_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_PASSWORD", "canary")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    _, lines = await run(
        "import os; print(*sorted(f'{k}={v}' for k, v in os.environ.items()))", tmp_path, env={"A": "b"}
    )
    assert "canary" not in lines[0]
    assert "CUDA_VISIBLE_DEVICES=1" in lines[0]
    assert lines[0].startswith("A=b ")


async def test_temporary_folder_is_its_own_and_goes_with_it(tmp_path: Path) -> None:
    code = "import os, tempfile; print(tempfile.mkdtemp()); print(os.environ['TMPDIR'])"
    _, first = await run(code, tmp_path)
    _, second = await run(code, tmp_path)
    assert first[1] != second[1]
    assert first[0].startswith(first[1])
    assert not Path(first[1]).exists()


async def test_standard_limits_hold_for_the_program_and_not_for_us(tmp_path: Path) -> None:
    code = "import resource as r; print(*(r.getrlimit(k)[1] for k in (r.RLIMIT_NOFILE, r.RLIMIT_CPU, r.RLIMIT_FSIZE)))"
    _, lines = await run(code, tmp_path, limits=Limits(files=64, cpu_s=50, file_bytes=5_000))
    assert lines == ["64 50 5000"]


@linux
async def test_memory_has_an_end(tmp_path: Path) -> None:
    code, lines = await run("b = bytearray(200_000_000)", tmp_path, limits=Limits(memory=50_000_000))
    assert code == 1
    assert lines[-1] == "MemoryError"


@linux
async def test_memory_that_is_only_reserved_does_not_count(tmp_path: Path) -> None:
    """As GPUs' drivers do: tens of gigabytes of addresses, without the right to touch them."""
    code = "import mmap; m = mmap.mmap(-1, 1 << 35, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0); print(len(m))"
    assert await run(code, tmp_path, limits=Limits(memory=50_000_000)) == (0, [str(1 << 35)])


@linux
async def test_no_new_privileges_and_dies_before_us(tmp_path: Path) -> None:
    code = "print(*(open('/proc/self/status').read().split())); print(open('/proc/self/oom_score_adj').read())"
    _, lines = await run(code, tmp_path)
    assert "NoNewPrivs: 1" in lines[0]
    assert int(lines[1]) == 500


async def test_program_has_a_session_of_its_own(tmp_path: Path) -> None:
    _, lines = await run("import os; print(os.getsid(0), os.getpgid(0), os.getpid())", tmp_path)
    session, group, pid = map(int, lines[0].split())
    assert session != os.getsid(0)
    assert group == pid


async def test_stop_lets_the_program_end_in_good_order(tmp_path: Path) -> None:
    code = """
import os, signal, sys
def end(*_):
    os.write(1, b"bye\\n")
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
os.write(1, b"up\\n")
while True: signal.pause()
"""
    heard = Heard()
    with anyio.fail_after(LIMIT_S):
        async with child(python(code), cwd=tmp_path, heard=heard) as process:
            await heard[0]
            assert await process.stop() == 5
    assert heard.lines == ["up", "bye"]


STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"up\\n")
while True: signal.pause()
"""


async def test_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    heard = Heard()
    with anyio.fail_after(LIMIT_S):
        async with child(python(STUBBORN), cwd=tmp_path, heard=heard, grace_s=0.1) as process:
            await heard[0]
            assert await process.stop() == -signal.SIGKILL


async def test_program_ends_with_the_block(tmp_path: Path) -> None:
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    heard = Heard()
    with anyio.fail_after(LIMIT_S):
        async with child(python(code), cwd=tmp_path, heard=heard):
            pid = int(await heard[0])
    assert not is_alive(pid)


async def test_program_ends_with_a_cancelled_block(tmp_path: Path) -> None:
    heard = Heard()
    with anyio.fail_after(LIMIT_S):
        with anyio.CancelScope() as scope:
            async with child(python(STUBBORN), cwd=tmp_path, heard=heard, grace_s=0.1) as process:
                await heard[0]
                scope.cancel()
                await anyio.sleep_forever()
        assert await process.wait() == -signal.SIGKILL


async def test_error_of_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with child(python("import signal; signal.pause()"), cwd=tmp_path):
            _ = 1 / 0


async def test_error_of_the_listener_ends_the_program(tmp_path: Path) -> None:
    def deaf(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="up"), anyio.fail_after(LIMIT_S):
        async with child(python(STUBBORN), cwd=tmp_path, heard=deaf, grace_s=0.1) as process:
            await process.wait()


FLED = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"%d\\n" % os.getpid())
        while True: signal.pause()
    os._exit(0)
os.wait()
"""


@linux
@pytest.mark.parametrize("then", ["", "signal.pause()"], ids=["after its end", "while it runs"])
async def test_grandchild_that_has_fled_does_not_outlive_the_block(tmp_path: Path, then: str) -> None:
    heard = Heard()
    with anyio.fail_after(LIMIT_S):
        async with child(python(FLED + then), cwd=tmp_path, heard=heard, grace_s=0.1) as process:
            pid = int(await heard[0])
            if not then:
                assert await process.wait() == 0
    assert not is_alive(pid)


NODE = """
import sys
sys.path[:] = {path!r}
import anyio
from pathlib import Path
from loopcore.processes import child
async def main():
    async with child({command!r}, cwd=Path({cwd!r}), fds=({fd},), heard=lambda line: print(line, flush=True)):
        await anyio.sleep_forever()
anyio.run(main, backend={backend!r})
"""


@linux
async def test_nothing_outlives_a_node_that_is_killed(tmp_path: Path, anyio_backend: str) -> None:
    ours, theirs = socket.socketpair()  # every process below holds the other end
    code = NODE.format(
        path=sys.path,
        command=python(FLED + "signal.pause()"),
        cwd=str(tmp_path),
        fd=theirs.fileno(),
        backend=anyio_backend,
    )
    with ours, anyio.fail_after(LIMIT_S):
        async with await anyio.open_process(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
        ) as node:
            theirs.close()
            assert node.stdout is not None
            pid = int(await node.stdout.receive())
            assert is_alive(pid)
            node.kill()
            await anyio.wait_readable(ours)
            assert ours.recv(1) == b""
            assert await node.wait() == -signal.SIGKILL


def test_line_without_end_is_bounded() -> None:
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"x" * 10_000) == []
    assert lines.feed(b"y\nshort\nre") == ["x" * LINE_BYTES, "short"]
    assert lines.finish() == ["re"]


def test_progress_bar_is_several_lines() -> None:
    assert Lines().feed(b"10 %\r20 %\r\n\n\xff\n") == ["10 %", "20 %", "\ufffd"]


def test_log_that_has_grown_too_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.processes.lines.LOG_BYTES", 10)
    log = Log(tmp_path / "log")
    for word in (b"12345678\n", b"abc\n", b"def\n"):
        log.write(word)
    assert (tmp_path / "log.old").read_bytes() == b"12345678\n"
    assert (tmp_path / "log").read_bytes() == b"abc\ndef\n"


def test_full_disk_costs_the_log_alone_and_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Disk):
        def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path / "log", Full())
    log.write(b"a\n")
    log.write(b"b\n")
    assert len(caplog.records) == 1
