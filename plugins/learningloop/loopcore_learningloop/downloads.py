"""A large file from the Loop to the disk, piece by piece, and on from where it broke off."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NoBase64
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from random import uniform

import anyio
from anyio import CancelScope, to_thread

from loopcore.errors import IntegrityError, ModelError, RetryableError, StorageError
from loopcore.files import DISK, read_bounded, write_atomic
from loopcore.http import Answer
from loopcore_learningloop.client import Loop

MAX_BYTES = 4_000_000_000
TRIES = 4
"""Attempts in a row that bring not one new byte."""

PAUSE_S = 0.25
"""Before the next attempt; twice as long after each that brought nothing."""

_BUFFER = 1 << 20
_MAX_TAG = 1000
_PARTIAL = 206
_NOT_SATISFIABLE = 416
_RANGE = re.compile(r"bytes (\d+)-")
_DIGEST = re.compile(r"\bsha-256=:([^:]*):")


class Download:
    """One file. Its first part may be here from an earlier attempt, of this process or of one before it.

    Args:
        loop: Where it comes from.
        path: Of the call.
        target: Where it goes. Beside it lies what the Loop said to tell this file from a later one (its `ETag` or
            date): without that, an attempt begins anew.
    """

    def __init__(self, loop: Loop, path: str, target: Path) -> None:
        self._loop = loop
        self._path = path
        self._target = target
        self._tag_file = target.with_name(f"{target.name}.tag")
        self._promised: str | None = None

    async def fetch(self, limit_s: float) -> str:
        """Download it, over as many connections as it takes; its SHA-256.

        Raises:
            ModelError: It is too large.
            IntegrityError: It is not what the Loop's own hash promises.
            RemoteError: The Loop refuses, does not answer, or the connection broke too often; what came stays.
            StorageError: The disk refused.
        """
        deadline = anyio.current_time() + limit_s
        fruitless = 0
        while True:
            before = self._size()
            try:
                await self._attempt(deadline - anyio.current_time())
                break
            except RetryableError as exc:
                fruitless = fruitless + 1 if self._size() <= before else 0
                wait_s = max(exc.retry_after_s or 0.0, PAUSE_S * 2**fruitless * uniform(0.5, 1))
                if fruitless >= TRIES or exc.status == 404 or anyio.current_time() + wait_s > deadline:
                    raise
            except OSError as exc:
                raise StorageError(f"cannot write {self._target}: {exc.strerror or exc}") from exc
            await anyio.sleep(wait_s)
        digest = await to_thread.run_sync(_hash, self._target)
        if self._promised not in (None, digest):
            await to_thread.run_sync(self.discard)
            raise IntegrityError(f"{self._path} has the SHA-256 {digest}, the Loop promised {self._promised}")
        return digest

    def discard(self) -> None:
        """Remove what is here. Blocking."""
        self._target.unlink(missing_ok=True)
        self._tag_file.unlink(missing_ok=True)

    async def _attempt(self, limit_s: float) -> None:
        have = self._size()
        tag = self._tag() if have else ""
        asked = {"Range": f"bytes={have}-", "If-Range": tag} if tag else {}
        async with self._loop.stream(self._path, headers=asked, expect={_NOT_SATISFIABLE}, timeout_s=limit_s) as answer:
            if "html" in answer.headers.get("content-type", ""):
                raise RetryableError(f"{self._path} is a web page; is the URL right, or does the network want a login?")
            self._promised = _digest(answer.headers)
            if answer.status == _PARTIAL and tag and _start(answer.headers) == have:
                return await self._append(answer, have)
            self.discard()
            if answer.status in (_PARTIAL, _NOT_SATISFIABLE):
                raise RetryableError(f"{self._path} cannot be had from byte {have} on, and is begun anew")
            if tag := _tag(answer.headers):
                await to_thread.run_sync(write_atomic, self._tag_file, tag.encode())
            return await self._append(answer, 0)

    async def _append(self, answer: Answer, size: int) -> None:
        descriptor = DISK.open(self._target, append=True)
        waiting: list[bytes] = []
        held = 0
        try:
            while piece := await answer.receive():
                waiting.append(piece)
                held += len(piece)
                size += len(piece)
                if size > MAX_BYTES:
                    raise ModelError(f"{self._path} is larger than {MAX_BYTES} bytes")
                if held >= _BUFFER:
                    full, waiting, held = waiting, [], 0
                    await to_thread.run_sync(DISK.write, descriptor, full)
        finally:
            with CancelScope(shield=True):  # what has come need not come again
                try:
                    await to_thread.run_sync(DISK.write, descriptor, waiting)
                finally:
                    DISK.close(descriptor)

    def _size(self) -> int:
        return self._target.stat().st_size if self._target.is_file() else 0

    def _tag(self) -> str:
        try:
            return read_bounded(self._tag_file, _MAX_TAG).decode()
        except (StorageError, UnicodeDecodeError):
            return ""


def _tag(headers: Mapping[str, str]) -> str:
    """What says in `If-Range` which file is meant; empty if nothing does."""
    if "bytes" not in headers.get("accept-ranges", "bytes"):
        return ""
    tag = headers.get("etag", "")
    found = headers.get("last-modified", "") if tag.startswith("W/") or not tag else tag
    return found if len(found) <= _MAX_TAG else ""


def _start(headers: Mapping[str, str]) -> int | None:
    found = _RANGE.match(headers.get("content-range", ""))
    return int(found[1]) if found else None


def _digest(headers: Mapping[str, str]) -> str | None:
    """The SHA-256 of the whole file, where the Loop says it (RFC 9530)."""
    found = _DIGEST.search(headers.get("repr-digest", ""))
    try:
        return b64decode(found[1], validate=True).hex() if found else None
    except NoBase64:
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while piece := file.read(_BUFFER):
            digest.update(piece)
    return digest.hexdigest()
