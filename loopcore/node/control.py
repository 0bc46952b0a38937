"""The control socket: how a command reaches the node that owns a data folder.

`control.sock` in the data folder, mode 0600. One JSON object a line each way: `{"operation", "parameters"}` and
`{"answer"}` or `{"error", "message"}`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio import connect_unix, create_unix_listener, fail_after
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import Struct

from loopcore import errors
from loopcore.errors import LoopcoreError, StorageError

if TYPE_CHECKING:
    from anyio.abc import SocketStream, TaskStatus

SOCKET = "control.sock"
LINE_BYTES = 4_000_000
CALL_S = 60.0
"""How long a command waits for the node."""

IDLE_S = 5.0
"""How long the node waits for a command's question."""

Operation = Callable[..., Awaitable[Any]]


class _Question(Struct, frozen=True):
    operation: str
    parameters: dict[str, Any] = {}


class _Reply(Struct, frozen=True, omit_defaults=True):
    answer: Any = None
    error: str | None = None
    message: str = ""


async def serve_control(data_dir: Path, operations: Mapping[str, Operation], *, task_status: TaskStatus[None]) -> None:
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


async def ask(data_dir: Path, operation: str, parameters: Mapping[str, Any]) -> Any:
    """Ask the node that runs on this data folder.

    Raises:
        StorageError: No node answers there.
        LoopcoreError: What the node answered with.
    """
    try:
        with fail_after(CALL_S), _reachable(data_dir) as path:
            async with await connect_unix(path) as stream:
                await stream.send(msgspec.json.encode(_Question(operation, dict(parameters))) + b"\n")
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", LINE_BYTES)
    except (OSError, TimeoutError, anyio.EndOfStream, anyio.IncompleteRead, anyio.DelimiterNotFound) as exc:
        raise StorageError(f"the node that owns {data_dir} does not answer: {str(exc) or type(exc).__name__}") from exc
    reply = msgspec.json.decode(line, type=_Reply)
    if reply.error is None:
        return reply.answer
    raise _revived(reply)


def _revived(reply: _Reply) -> LoopcoreError:
    kind = getattr(errors, reply.error or "", LoopcoreError)
    try:
        error: LoopcoreError = kind(reply.message)
    except TypeError:
        error = LoopcoreError(reply.message)
    return error


def _answering(operations: Mapping[str, Operation]) -> Callable[[SocketStream], Awaitable[None]]:
    async def answer(stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead):
            async with stream:
                await stream.send(msgspec.json.encode(await _reply(stream, operations)) + b"\n")

    return answer


async def _reply(stream: SocketStream, operations: Mapping[str, Operation]) -> _Reply:
    try:
        with fail_after(IDLE_S):
            line = await BufferedByteReceiveStream(stream).receive_until(b"\n", LINE_BYTES)
        question = msgspec.json.decode(line, type=_Question)
        operation = operations.get(question.operation)
        if operation is None:
            return _Reply(error="ConfigError", message=f"this node has no operation {question.operation!r}")
        return _Reply(answer=await operation(**question.parameters))
    except LoopcoreError as exc:
        return _Reply(error=type(exc).__name__, message=str(exc))
    except (msgspec.DecodeError, anyio.DelimiterNotFound, TimeoutError, TypeError) as exc:
        return _Reply(error="ConfigError", message=f"the question is not understood: {exc}")


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
