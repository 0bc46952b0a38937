"""What a person has set on a node and a restart must not forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from anyio import Lock, to_thread
from msgspec import Struct
from msgspec.structs import replace

from loopcore.errors import StorageError
from loopcore.files import read_bounded, write_atomic

STATE_BYTES = 100_000


class State(Struct, frozen=True, kw_only=True):
    """The content of `state.json`.

    Attributes:
        version: Of this file's layout.
        model: What was chosen to serve: `follow`, `pause`, a version or a path; `None`: what the TOML says.
        configured_model: What the TOML said when that was chosen; where it says otherwise now, the TOML wins.
        rests_on_path: `follow` or `pause` was chosen while the model at the TOML's path served, which the store lacks.
        sending: Whether samples are sent to sinks.
    """

    version: Literal[1] = 1
    model: str | None = None
    configured_model: str | None = None
    rests_on_path: bool = False
    sending: bool = True

    def model_choice(self, configured: str) -> str:
        """What is to serve, given what the TOML says now."""
        return self.model if self.model is not None and self.configured_model == configured else configured


class Settings:
    """The state of one node, in memory and on the disk.

    Args:
        data_dir: The node's folder.

    Attributes:
        state: As it stands; a fresh one until `load`.
    """

    def __init__(self, data_dir: Path) -> None:
        self.state = State()
        self._data_dir = data_dir
        self._changing = Lock()

    def load(self) -> None:
        """Take over what the disk has. Blocking.

        Raises:
            StorageError: The file is there and cannot be used.
        """
        self.state = load_state(self._data_dir)

    async def change(self, **fields: Any) -> None:
        """Set these fields; durable on return.

        Raises:
            StorageError: The disk refused; the old state stands.
            ValidationError: A value is not what it should be, likewise.
        """
        async with self._changing:
            state = replace(self.state, **fields)
            await to_thread.run_sync(save_state, self._data_dir, state)
            self.state = state


def load_state(data_dir: Path) -> State:
    """The state of a data folder; a fresh one if nothing was ever set.

    Raises:
        StorageError: The file is there and cannot be used.
    """
    path = data_dir / "state.json"
    if not path.exists():
        return State()
    try:
        return msgspec.json.decode(read_bounded(path, STATE_BYTES), type=State)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StorageError(f"{path} is damaged: {exc}; move it away to start with the TOML's settings") from exc


def save_state(data_dir: Path, state: State) -> None:
    """Write the state so that it survives a power cut.

    Raises:
        StorageError: The disk refused; the old state stands.
        ValidationError: Something in it is not what it should be, likewise; a node could not start with it again.
    """
    written = msgspec.json.encode(state)
    msgspec.json.decode(written, type=State)
    write_atomic(data_dir / "state.json", msgspec.json.format(written))
