"""What the Loop says, heard and answered (`learning-loop.md` 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio import create_memory_object_stream
from msgspec import Struct

from loopcore.errors import LoopcoreError
from loopcore_learningloop import wire

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus
    from anyio.streams.memory import MemoryObjectReceiveStream

AT_ONCE = 256
"""How many events of the Loop may wait for their acknowledgement."""

HANDLE_S = 60.0
"""How long an acknowledgement may take."""

MOST_DEEP = 32
"""How deep the arguments of an event may be nested."""


class Listener(Struct, frozen=True):
    """What is done on an event.

    Attributes:
        arguments: The type of its arguments, as one tuple.
        act: Gets the arguments; what it returns is the acknowledgement.
    """

    arguments: Any
    act: Callable[..., Awaitable[wire.Ack]]


class Hearing:
    """Events come from tasks of a library, and are answered in our own.

    Args:
        listeners: What is done on which event.
        answered: Called whenever an event has got its acknowledgement.
    """

    def __init__(self, listeners: Mapping[str, Listener], answered: Callable[[], None]) -> None:
        self._listeners = listeners
        self._answered = answered
        self._waiting = 0

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Answer until cancelled."""
        self._events, events = create_memory_object_stream[_Heard](AT_ONCE)
        async with self._events, events, anyio.create_task_group() as tasks:
            task_status.started()
            await self._listen(events, tasks)

    async def hear(self, event: str, *args: Any) -> Any:
        """Called by the library; passes the event on, and brings the acknowledgement back."""
        if event not in self._listeners:
            return None  # as the reference acknowledges what it does not know (3.2)
        if self._waiting == AT_ONCE:
            return msgspec.to_builtins(wire.Ack(success=False, error_msg="too many events at once"))
        self._waiting += 1
        heard = _Heard(event, args)
        self._events.send_nowait(heard)
        await heard.answered.wait()
        return heard.ack

    async def _listen(self, events: MemoryObjectReceiveStream[_Heard], tasks: TaskGroup) -> None:
        async for heard in events:
            tasks.start_soon(self._answer, heard)

    async def _answer(self, heard: _Heard) -> None:
        listener = self._listeners[heard.event]
        try:
            with anyio.fail_after(HANDLE_S):
                ack = await listener.act(*understood(heard.args, listener.arguments))
        except msgspec.ValidationError as exc:
            ack = wire.Ack(success=False, error_msg=f"{heard.event}: {exc}")
        except TimeoutError:
            ack = wire.Ack(success=False, error_msg=f"{heard.event} took more than {HANDLE_S:g} s")
        except LoopcoreError as exc:
            ack = wire.Ack(success=False, error_msg=str(exc))
        finally:
            self._waiting -= 1
        heard.ack = msgspec.to_builtins(ack)
        heard.answered.set()
        self._answered()


def understood(args: Any, shape: Any) -> Any:
    """The arguments of an event, as what its listener takes.

    Python reads as JSON what is none, or what cannot be written again: numbers that are none, halves of characters,
    nesting without end. It stays outside.

    Raises:
        msgspec.ValidationError: They are of another shape; the message has the path.
    """
    if not _is_shallow(args, MOST_DEEP):
        raise msgspec.ValidationError(f"Expected at most {MOST_DEEP} levels")
    try:
        plain = msgspec.json.encode(args)
    except UnicodeError as exc:
        raise msgspec.ValidationError(f"Expected JSON: {exc}") from exc
    return msgspec.json.decode(plain, type=shape)


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list, tuple)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


class _Heard:
    """An event of the Loop on its way to its acknowledgement."""

    def __init__(self, event: str, args: tuple[Any, ...]) -> None:
        self.event = event
        self.args = args
        self.ack: Any = None
        self.answered = anyio.Event()
