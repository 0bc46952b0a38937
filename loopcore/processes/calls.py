"""Run a method of a driver in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import create_task_group
from anyio.abc import UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from loopcore.abc import Driver, Report
from loopcore.errors import PluginError, first, revived
from loopcore.options import Options, encode
from loopcore.processes.children import GRACE_S, Child, child, ending
from loopcore.processes.limits import Limits
from loopcore.processes.messages import MESSAGE_BYTES, Message, Progress, Raised, Request, Returned, decode
from loopcore.processes.messages import encode as encode_message

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from loopcore.processes.inside import main; main()"
)
"""The path comes first, because loopcore itself may be found through it alone."""


async def call_driver(
    driver: type[Driver],
    options: Options,
    method: str,
    arguments: Mapping[str, Any],
    *,
    what: str,
    cwd: Path,
    report: Report | None = None,
    stop: anyio.Event | None = None,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    grace_s: float = GRACE_S,
) -> Any:
    """Run a plain method of a driver in a process of its own, supervised as by `child`.

    The driver is made there from its options, which travel over a pipe and are in no list of processes, and is not
    entered. A cancelled call ends the process: SIGTERM, then SIGKILL.

    Args:
        driver: The class; at the top of a module or of another class.
        options: Its options.
        method: The method's name. It gets `report` and `stop` where it has such parameters.
        arguments: All its other arguments: paths, and what JSON can hold.
        what: The driver, for people, as in `the converter 'a-to-b'`.
        cwd: The process's working folder.
        report: Called in the event loop's thread, at most ten times a second besides new scores.
        stop: Once it is set, the method's `stop` is true.
        log: What the driver writes to stdout and stderr is appended to this file.
        env: More of the environment than `child` gives.
        limits: What it may use.
        grace_s: How long it may take to end after SIGTERM.

    Returns:
        What the method returned: a path, or what JSON can hold.

    Raises:
        LoopcoreError: What the method raised, with its class and sentence.
        PluginError: It raised something else, or its process has died.
    """
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        request = _request(driver, options, method, arguments, what, theirs.fileno())
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 - where we are, not where the child will be
        stdin = json.dumps(paths).encode() + b"\n" + encode_message(request)
        async with (
            _supervised(what, stdin, theirs, cwd=cwd, env=env, limits=limits, log=log, grace_s=grace_s) as process,
            await UNIXSocketStream.from_socket(ours) as stream,
        ):
            answer = await _conversation(stream, report, stop, what)
            with anyio.move_on_after(grace_s):  # a thread that the driver has left behind must not hold us up
                await process.wait()
    finally:
        theirs.close()
        ours.close()
    match answer:
        case Returned(value=value, is_path=is_path):
            return Path(value) if is_path else value
        case Raised(error=error, message=message):
            raise revived(error, message)
        case None:
            last = f"; its last words: {process.tail[-1]}" if process.tail else ""
            raise PluginError(f"the process of {what} {ending(await process.wait())}{last}")


def _request(
    driver: type[Driver], options: Options, method: str, arguments: Mapping[str, Any], what: str, line: int
) -> Request:
    module = driver.__module__
    if "<locals>" in driver.__qualname__:
        raise PluginError(f"{what} cannot run in a process of its own: {driver.__qualname__} is made by a function")
    file = getattr(sys.modules.get(module), "__file__", None)
    return Request(
        module="loopcore_main" if module == "__main__" else module,
        file=file,
        name=driver.__qualname__,
        what=what,
        options=encode(options),
        method=method,
        paths={name: str(value.absolute()) for name, value in arguments.items() if isinstance(value, Path)},
        values={name: value for name, value in arguments.items() if not isinstance(value, Path)},
        line=line,
    )


@asynccontextmanager
async def _supervised(what: str, stdin: bytes, theirs: socket.socket, **given: Any) -> AsyncGenerator[Child]:
    command = [sys.executable, "-I", "-c", _BOOT]
    try:
        async with child(command, stdin=stdin, fds=(theirs.fileno(),), **given) as process:
            theirs.close()  # so that its end is heard
            yield process
    except (OSError, TimeoutError) as exc:
        raise PluginError(f"no process can be started for {what}: {exc}") from exc


async def _conversation(
    stream: UNIXSocketStream, report: Report | None, stop: anyio.Event | None, what: str
) -> Returned | Raised | None:
    """Hear the driver out; `None` if it ended without a last word."""
    answer: Returned | Raised | None = None
    error: Exception | None = None
    try:
        async with create_task_group() as tasks:
            if stop is not None:
                tasks.start_soon(_pass_on, stop, stream)
            answer = await _hear(stream, report, what)
            tasks.cancel_scope.cancel()
    except* Exception as group:  # noqa: BLE001 - raised below, out of its group
        error = first(group)
    if error is not None:
        raise error
    return answer


async def _pass_on(stop: anyio.Event, stream: UNIXSocketStream) -> None:
    await stop.wait()
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stream.send_eof()


async def _hear(stream: UNIXSocketStream, report: Report | None, what: str) -> Returned | Raised | None:
    lines = BufferedByteReceiveStream(stream)
    while (message := await _next(lines, what)) is not None:
        if not isinstance(message, Progress):
            return message
        if report is not None:
            report(message.progress, message.message, score=message.score, **message.metrics)
    return None


async def _next(lines: BufferedByteReceiveStream, what: str) -> Message | None:
    try:
        return decode(await lines.receive_until(b"\n", MESSAGE_BYTES))
    except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
        return None
    except (msgspec.MsgspecError, anyio.DelimiterNotFound) as exc:
        raise PluginError(f"the process of {what} does not speak as it should: {exc}") from exc
