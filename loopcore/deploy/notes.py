"""What rollouts and conversions must not forget at a restart: which models failed and why, and what was handed on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from anyio import CancelScope, Lock, to_thread
from msgspec import Struct, field

from loopcore.deploy.identity import key_of, shown
from loopcore.errors import LoopcoreError, ModelError, StorageError
from loopcore.files import read_bounded, write_atomic
from loopcore.types import ModelInfo

_log = logging.getLogger(__name__)

MOST = 500
"""Of each kind; the oldest are forgotten first."""

ValueT = TypeVar("ValueT")

DEATHS = 2
"""A model during whose trial the process has died so often is not tried again: once may be a power cut."""

_MAX_BYTES = 64_000_000
_WHY_CHARACTERS = 2000


class Refusal(Struct, frozen=True, kw_only=True):
    """A model that was refused for good; `model` has its name, version and id, `rule` is what refused it."""

    model: dict[str, str]
    rule: str
    why: str
    at: datetime


class _Content(Struct, kw_only=True):
    version: Literal[1] = 1
    refusals: dict[str, Refusal] = field(default_factory=dict)
    published: dict[str, ModelInfo] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)


class Notes:
    """Kept in memory and, after each change, in a file. A disk that refuses costs no more than the memory of it.

    A model that was refused may be tried again when it has changed or the conditions have: both are in the key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = _Content()
        self._saving = Lock()

    def load(self) -> None:
        """Take over what the disk has; nothing if that cannot be used. Blocking."""
        if not self._path.exists():
            return
        try:
            self._content = msgspec.json.decode(read_bounded(self._path, _MAX_BYTES), type=_Content)
        except (StorageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            _log.warning("Notes cannot be read and are begun anew path=%s error=%s", self._path, exc)

    def refusal(self, model: ModelInfo, conditions: str) -> Refusal | None:
        """Why this model was refused under these conditions, if it was."""
        return self._content.refusals.get(_key(model, conditions))

    async def refuse(self, model: ModelInfo, conditions: str, error: LoopcoreError) -> Refusal:
        """Note that it was refused."""
        rule = getattr(error, "rule", None) or ""
        refusal = Refusal(model=shown(model), rule=rule, why=str(error)[:_WHY_CHARACTERS], at=datetime.now(UTC))
        _put(self._content.refusals, _key(model, conditions), refusal)
        await self._save()
        return refusal

    async def forget(self) -> int:
        """Forget all refusals, so that these models are tried again; how many there were."""
        count = len(self._content.refusals)
        self._content.refusals.clear()
        self._content.trials.clear()
        await self._save()
        return count

    @asynccontextmanager
    async def trial(self, model: ModelInfo, conditions: str) -> AsyncGenerator[None]:
        """Around what may take the whole process down: a model that does is not tried at every start again.

        Raises:
            ModelError: It has done so `DEATHS` times in a row; `rule` says so.
        """
        key = _key(model, conditions)
        died = self._content.trials.get(key, 0)
        if died >= DEATHS:
            what = f"{model.name} {model.version}"
            raise ModelError(f"the node has died {died} times in a row while it tried {what}", rule="survival")
        _put(self._content.trials, key, died + 1)
        await self._save()
        try:
            yield
        finally:
            with CancelScope(shield=True):
                self._content.trials.pop(key, None)
                await self._save()

    def published(self, model: ModelInfo, platform: str) -> ModelInfo | None:
        """What a platform calls this model, if it was published there."""
        return self._content.published.get(_key(model, platform))

    async def publish(self, model: ModelInfo, platform: str, there: ModelInfo | None) -> None:
        """Note that the platform has it, and calls it so; `None`: that it has it no more."""
        if there is None:
            self._content.published.pop(_key(model, platform), None)
        else:
            _put(self._content.published, _key(model, platform), there)
        await self._save()

    async def _save(self) -> None:
        async with self._saving:
            written = msgspec.json.format(msgspec.json.encode(self._content))
            try:
                await to_thread.run_sync(write_atomic, self._path, written)
            except StorageError as exc:
                _log.warning("Notes are kept in memory alone error=%s", exc)


def _key(model: ModelInfo, conditions: str) -> str:
    return sha256(f"{key_of(model)}\0{conditions}".encode()).hexdigest()


def _put(notes: dict[str, ValueT], key: str, value: ValueT) -> None:
    notes.pop(key, None)
    notes[key] = value
    for oldest in list(islice(notes, max(0, len(notes) - MOST))):
        del notes[oldest]
