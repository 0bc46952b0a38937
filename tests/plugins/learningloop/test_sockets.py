"""The connection of a node to the Loop: it stands, it comes back, it does not storm, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from anyio import create_task_group, fail_after
from engineio.base_client import connected_clients
from loop import Answer, LoopServer, LoseAnswer, Nonsense, Reset, Stall
from loopcore_learningloop import hearing, sockets, wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.hearing import Listener
from loopcore_learningloop.options import LoopOptions
from loopcore_learningloop.sockets import Patience, Socket

from loopcore import Secret
from loopcore.errors import ConfigError, RetryableError

pytestmark = pytest.mark.anyio

NOWHERE = wire.Context("", "")
STATUS = wire.AnnotationNodeStatus(id="id", name="name")
EVENT = "update_annotation_node"


@pytest.fixture
def anyio_backend() -> str:
    """python-socketio knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "FIRST_S", 0.02)
    monkeypatch.setattr(sockets, "CYCLE_S", 0.05)
    monkeypatch.setattr(sockets, "LEAST_UP_S", 0.0)


def options(server: LoopServer, **more: Any) -> LoopOptions:
    return LoopOptions(url=server.url, **({"username": "ranger", "password": Secret("krill")} | more))


@asynccontextmanager
async def running(
    server: LoopServer, listeners: Mapping[str, Listener] | None = None, *, limit_s: float = 5, **more: Any
) -> AsyncIterator[Socket]:
    """A node's socket that tells its status; when the block is left nothing of it is left."""
    before = asyncio.all_tasks()
    with fail_after(20):
        async with Loop(options(server, **more)) as loop, create_task_group() as tasks:
            socket = Socket(loop, "annotation_node", NOWHERE, listeners)
            await tasks.start(socket.run)

            async def tell() -> None:
                await socket.tell(EVENT, lambda: STATUS, limit_s=limit_s, strict=True)

            tasks.start_soon(tell)
            yield socket
            tasks.cancel_scope.cancel()
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    assert connected_clients == []


async def test_status_arrives_on_one_connection_with_cookie_and_headers(loop: LoopServer) -> None:
    async with running(loop):
        reports = await loop.annotators.wait(3)
        (connection,) = loop.connections
    assert (connection.kind, connection.organization, connection.project) == ("annotation_node", "", "")
    assert connection.account == "ranger"
    assert [call.name for call in loop.calls][:3] == ["status", "login", "socket"]
    assert reports[0].body == {
        "id": "id", "name": "name", "state": "online", "uptime": 0, "errors": {}, "capabilities": ["segmentation"],
    }  # fmt: skip
    assert list(loop.complaints) == []


async def test_loop_sees_the_node_leave(loop: LoopServer) -> None:
    async with running(loop):
        await loop.annotators.wait(1)
    await loop.disconnections.wait(1)


async def test_node_comes_back_after_a_restart_of_the_loop(loop: LoopServer) -> None:
    async with running(loop):
        await loop.annotators.wait(1)
        async with loop.down():
            pass
        await loop.connections.wait(2)
        seen = len(loop.annotators)
        await loop.annotators.wait(seen + 1)


async def test_loop_may_be_away_when_the_node_starts(loop: LoopServer) -> None:
    async with loop.down():
        socket_runs = running(loop)
        socket = await socket_runs.__aenter__()
        with pytest.raises(RetryableError, match="no connection"):
            await socket.call(EVENT, STATUS, limit_s=1)
    await loop.annotators.wait(1)
    await socket_runs.__aexit__(None, None, None)


@pytest.mark.parametrize("fault", [Answer(500), Nonsense(), LoseAnswer(), Stall()], ids=repr)
async def test_status_that_is_not_accepted_makes_a_new_connection(loop: LoopServer, fault: Any) -> None:
    loop.faults.script(EVENT, None, fault)
    async with running(loop, limit_s=0.5):
        await loop.connections.wait(2)
        seen = len(loop.annotators)
        await loop.annotators.wait(seen + 1)


async def test_refusal_makes_the_node_log_in_anew(loop: LoopServer) -> None:
    loop.faults.script(EVENT, Answer(500))
    async with running(loop):
        await loop.connections.wait(2)
    assert len(loop.logins) == 2


async def test_session_that_is_over_is_no_obstacle(loop: LoopServer) -> None:
    async with running(loop):
        await loop.annotators.wait(1)
        loop.expire_sessions()
        loop.faults.script(EVENT, LoseAnswer())
        await loop.connections.wait(2)
        assert loop.connections[-1].account == "ranger"


@pytest.mark.parametrize("call", ["status", "login", "socket"])
@pytest.mark.parametrize("fault", [Answer(401), Answer(429), Answer(500), Nonsense(), Reset()], ids=repr)
async def test_what_goes_wrong_before_the_connection_stands_is_tried_again(
    loop: LoopServer, call: str, fault: Any
) -> None:
    loop.faults.script(call, fault, fault)
    async with running(loop):
        await loop.annotators.wait(1)


async def test_guest_is_let_in_where_the_loop_knows_guests(loop: LoopServer) -> None:
    loop.guests = True
    async with running(loop, username=None, password=None):
        await loop.annotators.wait(1)


async def test_loop_that_refuses_is_not_stormed(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six refusals: each pause is at most so long as twice the one before, and the last is many times the first."""
    monkeypatch.setattr(sockets, "FIRST_S", 0.005)
    pauses: list[float] = []
    pause = Patience.pause
    monkeypatch.setattr(Patience, "pause", lambda self: pauses.append(pause(self)) or pauses[-1])
    loop.faults.set(EVENT, Answer(500))
    async with running(loop):
        await loop.connections.wait(7)
        loop.faults.lift()
        await loop.annotators.wait(1)
    assert all(0.0025 * 2**row <= seconds <= 0.005 * 2**row for row, seconds in enumerate(pauses[:6]))


async def test_patience_has_a_ceiling_and_jitter() -> None:
    patience = Patience()
    pauses = [patience.pause() for _ in range(30)]
    assert max(pauses) <= sockets.MOST_S
    assert min(pauses[15:]) >= sockets.MOST_S / 2
    assert len(set(pauses[15:])) > 1


async def test_patience_begins_anew_once_a_status_was_accepted(
    loop: LoopServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MOST_S", 3600.0)
    monkeypatch.setattr(sockets, "FIRST_S", 0.005)
    loop.faults.script(EVENT, *[fault for _ in range(12) for fault in (Answer(500), None)])
    async with running(loop):
        await loop.connections.wait(13)


async def test_muted_node_leaves_and_comes_back(loop: LoopServer) -> None:
    async with running(loop) as socket:
        await loop.annotators.wait(1)
        socket.mute(True)
        await loop.disconnections.wait(1)
        with pytest.raises(RetryableError, match="no connection"):
            await socket.call(EVENT, STATUS, limit_s=1)
        assert len(loop.connections) == 1
        socket.mute(False)
        await loop.connections.wait(2)
        seen = len(loop.annotators)
        await loop.annotators.wait(seen + 1)


# Events of the Loop


def listening(act: Any, arguments: Any = tuple[str, int]) -> dict[str, Listener]:
    return {"begin_training": Listener(arguments, act)}


async def emit(loop: LoopServer, event: str, *args: Any) -> Any:
    return await loop.sockets.call(await loop.sockets.node("annotation_node"), event, *args)


async def test_event_is_acknowledged_with_what_the_listener_says(loop: LoopServer) -> None:
    async def act(word: str, number: int) -> wire.Ack:
        return wire.Ack(success=True, payload=f"{word} {number}")

    async with running(loop, listening(act)):
        ack = await emit(loop, "begin_training", "a", 1)
    assert ack == {"success": True, "error_msg": None, "payload": "a 1"}


@pytest.mark.parametrize("args", [(), ("a",), ("a", "b"), (1, 1), ("a", 1, 2), (None, None), ({}, [])])
async def test_event_with_wrong_arguments_is_refused_with_the_path(loop: LoopServer, args: tuple[Any, ...]) -> None:
    async with running(loop, listening(anyio.sleep_forever)):
        ack = await emit(loop, "begin_training", *args)
    assert ack["success"] is False
    assert ack["error_msg"].startswith("begin_training: Expected")


async def test_listener_that_fails_says_why(loop: LoopServer) -> None:
    async def act(word: str, number: int) -> wire.Ack:
        raise RetryableError(f"{word} is not here")

    async with running(loop, listening(act)):
        ack = await emit(loop, "begin_training", "a", 1)
    assert ack == {"success": False, "error_msg": "a is not here", "payload": None}


async def test_listener_that_takes_too_long_is_broken_off(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "HANDLE_S", 0.05)

    async def act(word: str, number: int) -> wire.Ack:
        await anyio.sleep_forever()

    async with running(loop, listening(act)):
        ack = await emit(loop, "begin_training", "a", 1)
    assert ack["success"] is False
    assert "took more than" in ack["error_msg"]


async def test_unknown_event_is_acknowledged_with_nothing(loop: LoopServer) -> None:
    async with running(loop):
        assert await emit(loop, "save", 1, 2, 3) is None


async def test_events_are_heard_in_order_and_side_by_side(loop: LoopServer) -> None:
    heard: list[int] = []
    all_there = anyio.Event()

    async def act(_: str, number: int) -> wire.Ack:
        heard.append(number)
        if len(heard) == 50:
            all_there.set()
        await all_there.wait()
        return wire.Ack(success=True, payload=number)

    acks: dict[int, Any] = {}
    async with running(loop, listening(act)):
        sid = await loop.sockets.node("annotation_node")

        async def send(number: int) -> None:
            acks[number] = (await loop.sockets.call(sid, "begin_training", "", number))["payload"]

        async with create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(send, number)
    assert heard == list(range(50))
    assert acks == {number: number for number in range(50)}


async def test_more_events_than_can_wait_are_refused(loop: LoopServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "AT_ONCE", 2)
    release = anyio.Event()

    async def act(_: str, number: int) -> wire.Ack:
        await release.wait()
        return wire.Ack(success=True)

    refused: list[Any] = []
    async with running(loop, listening(act)):
        sid = await loop.sockets.node("annotation_node")

        async def send(number: int) -> None:
            ack = await loop.sockets.call(sid, "begin_training", "", number)
            if not ack["success"]:
                refused.append(ack["error_msg"])
                release.set()

        async with create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(send, number)
    assert set(refused) == {"too many events at once"}


async def test_restart_is_acknowledged_and_ends_the_role(loop: LoopServer) -> None:
    with fail_after(20):
        async with Loop(options(loop)) as client:
            ended = anyio.Event()

            async def run(*, task_status: Any) -> None:
                await Socket(client, "annotation_node", NOWHERE).run(task_status=task_status)
                ended.set()

            async with create_task_group() as tasks:
                await tasks.start(run)
                ack = await emit(loop, "restart")
                await ended.wait()
    assert ack == {"success": True, "error_msg": None, "payload": None}


async def test_restart_is_not_forgotten_when_the_connection_goes_meanwhile(
    loop: LoopServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, obeyed = anyio.Event(), anyio.Event()
    restart, leave = Socket._restart, Socket._leave_if_over
    monkeypatch.setattr(Socket, "_restart", lambda self, *_: (heard.set(), restart(self))[1])
    monkeypatch.setattr(Socket, "_leave_if_over", lambda self: (leave(self), obeyed.set()))
    with fail_after(20):
        async with Loop(options(loop)) as client, create_task_group() as tasks:
            socket = Socket(client, "annotation_node", NOWHERE)
            ended = anyio.Event()

            async def run(*, task_status: Any) -> None:
                await socket.run(task_status=task_status)
                ended.set()

            async def ask(sid: str) -> None:
                with pytest.raises(ConnectionError):  # the acknowledgement does not arrive
                    await loop.sockets.call(sid, "restart")

            await tasks.start(run)
            await socket.connected()
            sid = await loop.sockets.node("annotation_node")
            monkeypatch.setattr(sockets, "LEAST_UP_S", anyio.current_time() - socket._since + 0.4)
            tasks.start_soon(ask, sid)
            await heard.wait()
            monkeypatch.setattr(client, "ready", obeyed.wait)  # no new connection before
            socket.renew("a test wants it")
            await ended.wait()
            tasks.cancel_scope.cancel()


async def test_loop_that_asks_for_a_restart_at_once_does_not_wear_the_supervisor_out(
    loop: LoopServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LEAST_UP_S", 3600.0)
    async with running(loop) as socket:
        sid = await loop.sockets.node("annotation_node")
        async with create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(loop.sockets.call, sid, "restart")
            await loop.annotators.wait(3)
            tasks.cancel_scope.cancel()
        assert await socket.call(EVENT, STATUS, limit_s=5) == wire.Ack(success=True)
    assert len(loop.connections) == 1


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "\ud800", {"\udfff": 1}, DEEP, {"a": {"b": DEEP}}, b"bytes"],
    ids=lambda value: repr(value)[:20],
)
async def test_arguments_that_cannot_be_written_again_stay_outside(loop: LoopServer, value: Any) -> None:
    """A job is noted on disk: what cannot be, must not come so far."""
    given: list[Any] = []

    async def act(value: dict[str, Any]) -> wire.Ack:
        given.append(msgspec.json.encode(value))
        return wire.Ack(success=True)

    async with running(loop, listening(act, tuple[dict[str, Any]])) as socket:
        sid = await loop.sockets.node("annotation_node")
        async with create_task_group() as tasks:
            tasks.start_soon(loop.sockets.call, sid, "begin_training", {"a": value})
            await loop.annotators.wait(3)
            tasks.cancel_scope.cancel()
        assert await socket.call(EVENT, STATUS, limit_s=5) == wire.Ack(success=True)
    assert given in ([], [b'{"a":null}'])
    assert len(loop.connections) == 1


async def test_loops_words_do_not_forge_lines_of_the_log(loop: LoopServer) -> None:
    with pytest.raises(RetryableError) as caught:
        sockets.accepted(
            "update_trainer", wire.Ack(success=False, error_msg="no\nERROR all is lost\x1b[2J" + "!" * 9999)
        )
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_call_does_not_outwait_its_connection(loop: LoopServer) -> None:
    loop.faults.set("update_training", Stall())
    async with running(loop) as socket:
        await loop.annotators.wait(1)
        async with create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(RetryableError, match="ended before update_training"):
                    await socket.call("update_training", "zauberzeug", "demo", {}, limit_s=3600)

            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            socket.renew("a test wants it")


async def test_call_has_a_limit(loop: LoopServer) -> None:
    loop.faults.set("update_training", Stall())
    async with running(loop) as socket:
        await loop.annotators.wait(1)
        with pytest.raises(RetryableError, match=r"did not acknowledge update_training within 0\.05 s"):
            await socket.call("update_training", "zauberzeug", "demo", {}, limit_s=0.05)
        loop.faults.lift()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused_with_a_sentence() -> None:
    async with Loop(LoopOptions(url="http://127.0.0.1:1")) as client:
        with pytest.raises(ConfigError, match="asyncio"):
            await Socket(client, "trainer", NOWHERE).run(task_status=anyio.TASK_STATUS_IGNORED)
