"""The control socket: how a command reaches the node that owns a data folder.

`control.sock` in the data folder, mode 0600. One JSON object a line. The command says `{"operation", "parameters"}`;
the node says `{"answer"}` or `{"error", "message"}`. An operation that takes its time says any number of
`{"progress"}` before that, an empty one every few seconds if there is no news, and ends when its command goes away.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import msgspec
from anyio import (
    CancelScope,
    Lock,
    connect_unix,
    create_task_group,
    create_unix_listener,
    fail_after,
    move_on_after,
    sleep,
)
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import Struct

from loopcore.errors import LoopcoreError, StorageError, first, revived

if TYPE_CHECKING:
    from anyio.abc import SocketStream, TaskStatus

_log = logging.getLogger(__name__)

SOCKET = "control.sock"
_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
LINE_BYTES = 4_000_000
"""The longest question."""

ANSWER_BYTES = 64_000_000
CALL_S = 60.0
"""How long a command waits for the next line of the node."""

IDLE_S = 5.0
"""How long the node waits for a command's question."""

BEAT_S = 10.0
"""How often an operation that takes its time gives a sign of life."""

Progress: TypeAlias = dict[str, Any]
Tell: TypeAlias = Callable[[Progress], Awaitable[None]]
Operation: TypeAlias = Callable[..., Awaitable[Any]]


class LongOperation(Struct, frozen=True):
    """An operation that takes its time; `run` gets a `Tell` for its progress first, then the parameters."""

    run: Callable[..., Awaitable[Any]]


Operations: TypeAlias = Mapping[str, Operation | LongOperation]


class _Question(Struct, frozen=True):
    operation: str
    parameters: dict[str, Any] = {}


class _Reply(Struct, frozen=True, omit_defaults=True):
    answer: Any = None
    error: str | None = None
    message: str = ""
    progress: Progress | None = None


async def serve_control(data_dir: Path, operations: Operations, *, task_status: TaskStatus[None]) -> None:
    """Answer commands until cancelled. Call it only while the data folder's lock is held."""
    with _reachable(data_dir) as path:
        path.unlink(missing_ok=True)
        async with await create_unix_listener(path, mode=0o600) as listener:
            task_status.started()
            try:
                await listener.serve(_answering(operations))
            finally:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


async def ask(data_dir: Path, operation: str, parameters: Mapping[str, Any], tell: Tell | None = None) -> Any:
    """Ask the node that runs on this data folder.

    Args:
        data_dir: The folder.
        operation: What is asked.
        parameters: As the operation takes them.
        tell: Gets the progress of an operation that takes its time.

    Raises:
        StorageError: No node answers there.
        LoopcoreError: What the node answered with.
    """
    try:
        with _reachable(data_dir) as path:
            async with await connect_unix(path) as stream:
                with fail_after(CALL_S):
                    await _say(stream, _Question(operation, dict(parameters)))
                lines = BufferedByteReceiveStream(stream)
                while (reply := await _heard(lines)).progress is not None:
                    if tell and reply.progress:
                        await tell(reply.progress)
    except (OSError, TimeoutError, anyio.EndOfStream, anyio.IncompleteRead, anyio.DelimiterNotFound, *_NO_JSON) as exc:
        raise StorageError(f"the node that owns {data_dir} does not answer: {str(exc) or type(exc).__name__}") from exc
    if reply.error is None:
        return reply.answer
    raise revived(reply.error, reply.message)


async def _heard(lines: BufferedByteReceiveStream) -> _Reply:
    with fail_after(CALL_S):
        return msgspec.json.decode(await lines.receive_until(b"\n", ANSWER_BYTES), type=_Reply)


async def _say(stream: SocketStream, what: Struct) -> None:
    await stream.send(msgspec.json.encode(what) + b"\n")


def _answering(operations: Operations) -> Callable[[SocketStream], Awaitable[None]]:
    async def answer(stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead):
            async with stream:
                reply = await _reply(stream, operations)
                with move_on_after(CALL_S):  # a command that does not listen
                    await _say(stream, reply)

    return answer


async def _reply(stream: SocketStream, operations: Operations) -> _Reply:
    try:
        with fail_after(IDLE_S):
            line = await BufferedByteReceiveStream(stream).receive_until(b"\n", LINE_BYTES)
        question = msgspec.json.decode(line, type=_Question)
    except (*_NO_JSON, anyio.DelimiterNotFound, TimeoutError) as exc:
        return _Reply(error="ConfigError", message=f"the question is not understood: {exc}")
    operation = operations.get(question.operation)
    if operation is None:
        return _Reply(error="ConfigError", message=f"this node has no operation {question.operation!r}")
    if isinstance(operation, LongOperation):
        return await _carry(stream, operation, question.parameters)
    return await _outcome(operation, **question.parameters)


async def _outcome(operation: Operation, *given: Any, **parameters: Any) -> _Reply:
    try:
        return _Reply(answer=await operation(*given, **parameters))
    except LoopcoreError as exc:
        return _Reply(error=type(exc).__name__, message=str(exc))
    except (msgspec.MsgspecError, TypeError) as exc:
        return _Reply(error="ConfigError", message=f"the question is not understood: {exc}")
    except Exception as exc:  # noqa: BLE001 - a command's failure is told to the command; it must not end the node
        _log.exception("An operation failed")
        return _Reply(error="LoopcoreError", message=f"the node could not do that: {first(exc)!r}; its log tells more")


async def _carry(stream: SocketStream, operation: LongOperation, parameters: Mapping[str, Any]) -> _Reply:
    """Run it while the command is there.

    Raises:
        ClosedResourceError: The command has gone.
    """
    turn = Lock()

    async def tell(progress: Progress) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # then all this ends anyway
            with move_on_after(CALL_S) as limit:
                async with turn:
                    await _say(stream, _Reply(progress=progress))
            if limit.cancelled_caught:
                tasks.cancel_scope.cancel()  # it does not listen: as good as gone

    reply: _Reply | None = None
    async with create_task_group() as tasks:
        tasks.start_soon(_end_with_command, stream, tasks.cancel_scope)
        tasks.start_soon(_beat, tell)
        reply = await _outcome(operation.run, tell, **parameters)
        tasks.cancel_scope.cancel()
    if reply is None:
        raise anyio.ClosedResourceError
    return reply


async def _end_with_command(stream: SocketStream, scope: CancelScope) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            await stream.receive()
    scope.cancel()


async def _beat(tell: Tell) -> None:
    while True:
        await sleep(BEAT_S)
        await tell({})


@contextmanager
def _reachable(data_dir: Path) -> Iterator[Path]:
    """The socket's path, short enough for the kernel's limit of 108 bytes (104 on macOS)."""
    path = data_dir / SOCKET
    if len(os.fsencode(path)) < 100 or sys.platform != "linux":
        yield path
        return
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{folder}") / SOCKET
    finally:
        os.close(folder)
