"""The control socket: questions and answers, progress, and an end when the command goes away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import Event, connect_unix, create_task_group, create_unix_listener, fail_after
from anyio.abc import SocketStream

from loopcore.errors import ConfigError, OutboxFullError, StorageError
from loopcore.node import control_socket
from loopcore.node.control_socket import SOCKET, LongOperation, Operations, Progress, Tell, ask, serve_control

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(folder: Path, operations: Operations) -> AsyncIterator[None]:
    with fail_after(20):
        async with create_task_group() as tasks:
            await tasks.start(partial(serve_control, folder, operations))
            yield
            tasks.cancel_scope.cancel()


async def add(a: int, b: int = 1) -> int:
    return a + b


async def count(tell: Tell, to: int) -> str:
    for number in range(to):
        await tell({"done": number})
    return "counted"


async def refuse(*_: Any, **__: Any) -> None:
    raise OutboxFullError("it is full")


async def test_answer_comes_back(tmp_path: Path) -> None:
    async with serving(tmp_path, {"add": add}):
        assert await ask(tmp_path, "add", {"a": 1}) == 2
        assert await ask(tmp_path, "add", {"a": 1, "b": 5}) == 6


async def test_progress_is_told_before_the_answer(tmp_path: Path) -> None:
    told: list[Progress] = []

    async def hear(progress: Progress) -> None:
        told.append(progress)

    async with serving(tmp_path, {"count": LongOperation(count)}):
        assert await ask(tmp_path, "count", {"to": 3}, hear) == "counted"
        assert await ask(tmp_path, "count", {"to": 3}) == "counted"
    assert told == [{"done": 0}, {"done": 1}, {"done": 2}]


@pytest.mark.parametrize("operation", [refuse, LongOperation(refuse)])
async def test_error_of_an_operation_arrives_with_its_class_and_the_node_goes_on(
    tmp_path: Path, operation: Any
) -> None:
    async with serving(tmp_path, {"refuse": operation, "add": add}):
        with pytest.raises(OutboxFullError, match="it is full"):
            await ask(tmp_path, "refuse", {})
        assert await ask(tmp_path, "add", {"a": 1}) == 2


@pytest.mark.parametrize("question", [("add", {"c": 1}), ("count", {"from": 2}), ("explode", {})])
async def test_wrong_question_is_refused(tmp_path: Path, question: tuple[str, dict[str, Any]]) -> None:
    async with serving(tmp_path, {"add": add, "count": LongOperation(count)}):
        with pytest.raises(ConfigError):
            await ask(tmp_path, *question)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b'{"operation": "\xff"}',
        b'{"operation": "add", "parameters": ' + b"[" * 100_000,
        b"x" * 5_000_000,
        b'{"operation": "__class__"}',
        b'{"operation": "add", "parameters": {"a": 1}, "operation": 5}',
    ],
    ids=lambda line: line[:40],
)
async def test_garbage_is_answered_and_ends_nothing(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path, {"add": add}):
        async with await connect_unix(tmp_path / SOCKET) as stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):  # it need not read all of it
                await stream.send(line + b"\n")
                assert b"ConfigError" in await stream.receive()
        assert await ask(tmp_path, "add", {"a": 1}) == 2


@pytest.mark.parametrize("line", [b"{}garbage", b"\xff", b'{"message": "\xff"}', b"[" * 100_000])
async def test_node_that_answers_garbage_is_none(tmp_path: Path, line: bytes) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(line + b"\n")

    with fail_after(20):
        async with await create_unix_listener(tmp_path / SOCKET) as listener, create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            with pytest.raises(StorageError, match="does not answer"):
                await ask(tmp_path, "add", {})
            tasks.cancel_scope.cancel()


async def test_long_operation_ends_when_its_command_goes_away(tmp_path: Path) -> None:
    begun, ended = Event(), Event()

    async def last(tell: Tell) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with serving(tmp_path, {"last": LongOperation(last), "add": add}):
        async with create_task_group() as commands:
            commands.start_soon(ask, tmp_path, "last", {})
            await begun.wait()
            commands.cancel_scope.cancel()
        await ended.wait()
        assert await ask(tmp_path, "add", {"a": 1}) == 2


async def test_command_that_goes_away_while_it_is_told_something_hurts_nobody(tmp_path: Path) -> None:
    begun, ended = Event(), Event()

    async def talk(tell: Tell) -> None:
        begun.set()
        try:
            while True:
                await tell({"text": "x" * 100_000})
        finally:
            ended.set()

    async with serving(tmp_path, {"talk": LongOperation(talk), "add": add}):
        async with await connect_unix(tmp_path / SOCKET) as stream:
            await stream.send(b'{"operation": "talk"}\n')
            await begun.wait()
        await ended.wait()
        assert await ask(tmp_path, "add", {"a": 1}) == 2


async def test_slow_operation_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the limit for an answer is one for silence."""
    monkeypatch.setattr(control_socket, "BEAT_S", 0.01)
    beats = Event()
    heard = 0

    async def slow(tell: Tell) -> str:
        await beats.wait()
        return "done"

    async with serving(tmp_path, {"slow": LongOperation(slow)}):
        async with await connect_unix(tmp_path / SOCKET) as stream:
            await stream.send(b'{"operation": "slow"}\n')
            data = b""
            while heard < 3:
                data += await stream.receive()
                heard = data.count(b'{"progress":{}}\n')
            beats.set()
            while b"done" not in data:
                data += await stream.receive()
        assert await ask(tmp_path, "slow", {}) == "done"


async def test_silent_node_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "CALL_S", 0.05)

    async def hang() -> None:
        await anyio.sleep_forever()

    async with serving(tmp_path, {"hang": hang}):
        with pytest.raises(StorageError, match="does not answer"):
            await ask(tmp_path, "hang", {})


async def test_no_node_no_answer(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not answer"):
        await ask(tmp_path, "add", {})


@pytest.mark.parametrize("operation", ["shout", "flood"])
async def test_command_that_does_not_listen_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(control_socket, "CALL_S", 0.05)
    ended = Event()

    async def shout() -> str:
        return "x" * 10_000_000

    async def flood(tell: Tell) -> None:
        try:
            while True:
                await tell({"done": "x" * 100_000})
        finally:
            ended.set()

    operations: Operations = {"shout": shout, "flood": LongOperation(flood)}
    async with serving(tmp_path, operations), await connect_unix(tmp_path / SOCKET) as stream:
        await stream.send(f'{{"operation": "{operation}"}}\n'.encode())
        if operation == "flood":
            await ended.wait()
        else:
            with suppress(anyio.BrokenResourceError):
                while not await _is_closed(stream):
                    pass


async def _is_closed(stream: SocketStream) -> bool:
    """Whether the other side has hung up, without hearing it out."""
    await anyio.lowlevel.checkpoint()
    await stream.send(b" ")
    return False
