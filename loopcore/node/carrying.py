"""Samples out of an outbox and into one by way of bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from anyio import CapacityLimiter, create_task_group, to_thread
from msgspec import Struct

from loopcore.collect.bundle import Choice, Damage, Head, Mark, Member, Reader, Writer, admissible
from loopcore.collect.outbox import Listed, Outbox
from loopcore.errors import ConfigError, FrameError, StorageError
from loopcore.files import read_bounded, write_atomic
from loopcore.node.control_socket import Tell
from loopcore.node.progress import Steps
from loopcore.types import Sample

_PAGE = 500
_PART_BYTES = 1 << 24
_TOLD = 100
"""How many bad samples are told of one by one."""
_BOOK_BYTES = 100_000
T = TypeVar("T")


class _Taken(Struct):
    """How far an import is: kept in the outbox's folder until it has ended."""

    size: int
    mark: Mark
    known: int = 0
    unwanted: int = 0
    refused: int = 0


class Carrier:
    """Exports and imports; several at a time, but not two with one file.

    Args:
        outbox: Entered.
        folder: The outbox's folder.
    """

    def __init__(self, outbox: Outbox, folder: Path) -> None:
        self._outbox = outbox
        self._folder = folder / "bundles"
        self._busy: set[Path] = set()
        self._limiter = CapacityLimiter(1)

    async def export_bundle(
        self,
        tell: Tell,
        file: str,
        sink: str | None = None,
        since: str | None = None,
        until: str | None = None,
        reasons: Sequence[str] = (),
        move: bool = False,
    ) -> dict[str, Any]:
        """Write samples into a bundle. What was interrupted is gone on with by asking the same again.

        Args:
            tell: Hears how many are written.
            file: Where to; an absolute path.
            sink: Only those that wait for this sink.
            since: Only those kept at this time or later, ISO 8601 with an offset.
            until: Only those kept before.
            reasons: Only those with one of these reasons.
            move: Take them out of the outbox, once the bundle was read back whole; with `sink`, from that queue alone.

        Returns:
            `samples`, `bytes` of the file, `resumed` (how many were in it already), `quarantined` (damaged, so not in
            it), `left_out` (why some others are not in it), `moved`.
        """
        path = _checked(file)
        asked = {"sink": sink, "since": since, "until": until, "reasons": reasons}
        choice = msgspec.convert({key: value for key, value in asked.items() if value}, Choice)
        if any(moment is not None and moment.tzinfo is None for moment in (choice.since, choice.until)):
            raise ConfigError("a time needs an offset, such as 2026-05-04T12:00:00+02:00")
        if sink is not None and sink not in (await self._outbox.status())["sinks"]:
            raise ConfigError(f"no sink {sink!r} has a place in this outbox")
        head = Head(id=uuid4().hex, origin=await self._work(self._origin), choice=choice)
        with self._alone(path):
            found: dict[str, Any] = {}
            if not (move and await self._work(_is_there, path)):
                found = await self._write(path, head, tell)
            moved = await self._move(path, head, tell) if move else {}
            return {**found, **moved}

    async def import_bundle(self, tell: Tell, file: str) -> dict[str, Any]:
        """Take in the samples of a bundle, as the node's own: each sink that wants one gets it.

        What is damaged or not fit is left out and told; what was interrupted is gone on with by asking the same again.

        Args:
            tell: Hears how many are read.
            file: The bundle; an absolute path.

        Returns:
            `samples` that were sound, how many of them were `known` (in the outbox already) or `unwanted` (by every
            sink, so not taken), `refused` and `damaged` with up to 100 `faults` in words, `resumed`, and whether the
            bundle is `whole`.
        """
        path = _checked(file)
        with self._alone(path):
            reader = await self._work(Reader, path)
            try:
                return await self._take_all(reader, tell)
            finally:
                reader.close()

    # Out

    async def _write(self, path: Path, head: Head, tell: Tell) -> dict[str, Any]:
        before = await self._outbox.status()
        last = await self._outbox.last()
        sink = head.choice.sink
        steps = Steps(tell, before["sinks"][sink]["waiting"] if sink else before["count"])
        writer = await self._work(Writer, path, head)
        resumed, left_out = writer.mark.samples, list[str]()
        try:
            after = writer.after
            while after < last and (page := await self._outbox.list(after=after, limit=_PAGE, sink=sink)):
                for part in portions([one for one in page if one.seq <= last], _PART_BYTES):
                    samples = await self._outbox.read(part)
                    await self._work(_put, writer, part, samples, left_out)
                    await steps.done(writer.mark.samples)
                after = page[-1].seq
            await self._work(writer.finish)
        finally:
            writer.close()
        after_all = await self._outbox.status()
        return {
            "samples": writer.mark.samples,
            "bytes": writer.mark.offset,
            "resumed": resumed,
            "quarantined": after_all["quarantined"] - before["quarantined"],
            "left_out": left_out[:_TOLD],
        }

    async def _move(self, path: Path, head: Head, tell: Tell) -> dict[str, Any]:
        """Read the bundle back, all of it, and only then take out what is in it."""
        reader = await self._work(_read_back, path, head)
        count, moved = reader.mark.samples, 0
        steps = Steps(tell, count)
        with await self._work(Reader, path) as reader:
            while pieces := await self._work(reader.pieces, _PART_BYTES):
                listed = [(one.seq, one.revision, one.sample.info.id) for one in pieces if isinstance(one, Member)]
                moved += await self._outbox.move_out(listed, head.choice.sink)
                await steps.done(reader.mark.samples)
        return {"samples": count, "bytes": reader.size, "moved": moved}

    # In

    async def _take_all(self, reader: Reader, tell: Tell) -> dict[str, Any]:
        book = self._folder / f"{reader.head.id}.json"
        taken = await self._work(_opened, book, reader)
        resumed = taken.mark.samples
        reader.go_on(taken.mark)
        faults: list[str] = []
        while pieces := await self._work(reader.pieces, _PART_BYTES):
            await self._take(pieces, taken, faults)
            taken.mark = reader.mark
            if not reader.damaged:
                await self._work(self._note, book, taken)
            await tell({"done": reader.mark.offset, "total": reader.size, "unit": "bytes"})
        with suppress(OSError):
            await self._work(book.unlink)
        return {
            "samples": taken.mark.samples,
            "known": taken.known,
            "unwanted": taken.unwanted,
            "refused": taken.refused,
            "damaged": reader.damaged,
            "faults": faults[:_TOLD],
            "resumed": resumed,
            "whole": reader.whole,
        }

    async def _take(self, pieces: Sequence[Member | Damage], taken: _Taken, faults: list[str]) -> None:
        """Take these in; each is durable on return.

        Raises:
            StorageError: The outbox is full, or the disk refuses. Asked again, the import goes on with these pieces.
        """
        failed: list[StorageError] = []
        async with create_task_group() as tasks:
            for piece in pieces:
                if isinstance(piece, Damage):
                    of = f" (sample {piece.id})" if piece.id else ""
                    faults.append(f"at byte {piece.offset}{of}: {piece.why}")
                elif why := await self._work(admissible, piece.sample):
                    taken.refused += 1
                    faults.append(f"sample {piece.sample.info.id}: {why}")
                elif not self._outbox.wanted(piece.sample.info):
                    taken.unwanted += 1
                else:
                    tasks.start_soon(self._accept, piece.sample, taken, failed)
        if failed:
            said = f"{taken.mark.samples} samples are in; the same import goes on behind them"
            raise type(failed[0])(f"{failed[0]}; {said}")

    async def _accept(self, sample: Sample, taken: _Taken, failed: list[StorageError]) -> None:
        try:
            known = await self._outbox.locate(sample.info.id) is not None
            await self._outbox.accept(sample.info, sample.image)
            taken.known += known
        except StorageError as exc:
            failed.append(exc)

    def _note(self, book: Path, taken: _Taken) -> None:
        self._make_folder()
        write_atomic(book, msgspec.json.encode(taken))

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot make {self._folder}: {exc.strerror or exc}") from exc

    # Both

    def _origin(self) -> str:
        """What tells this outbox from all others; made when it is asked for the first time."""
        path = self._folder / "origin"
        with suppress(StorageError):
            return read_bounded(path, _BOOK_BYTES).decode("ascii", "replace").strip()
        origin = uuid4().hex
        self._make_folder()
        write_atomic(path, origin.encode() + b"\n")
        return origin

    async def _work(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run what blocks in a thread."""
        return await to_thread.run_sync(call, *arguments, limiter=self._limiter)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        if path in self._busy:
            raise StorageError(f"another command works with {path}")
        self._busy.add(path)
        try:
            yield
        finally:
            self._busy.discard(path)


def portions(listed: Sequence[Listed], max_bytes: int) -> Sequence[Sequence[Listed]]:
    """The same in parts of at most so many bytes of image, or of one sample."""
    parts: list[list[Listed]] = []
    size = max_bytes
    for one in listed:
        size += one.image_bytes
        if not parts or size > max_bytes:
            parts.append([])
            size = one.image_bytes
        parts[-1].append(one)
    return parts


def _put(writer: Writer, listed: Sequence[Listed], samples: Sequence[Sample | None], left_out: list[str]) -> None:
    for one, sample in zip(listed, samples, strict=True):
        if sample is None or not writer.head.choice.wants(sample.info):
            continue
        try:
            writer.add(one.seq, one.revision, sample)
        except FrameError as exc:
            left_out.append(str(exc))


def _read_back(path: Path, head: Head) -> Reader:
    """Read all of a bundle that is about to replace what is in the outbox.

    Raises:
        StorageError: It is not whole, or is another one.
    """
    with Reader(path, fresh=True) as reader:
        if (reader.head.origin, reader.head.choice) != (head.origin, head.choice):
            raise StorageError(f"{path} is there already and is another bundle; choose another name")
        while reader.pieces(_PART_BYTES):
            pass
    if not reader.whole:
        raise StorageError(f"{path} cannot be read back as it was written, so nothing was taken out of the outbox")
    return reader


def _opened(book: Path, reader: Reader) -> _Taken:
    """How far an earlier import of this bundle came."""
    with suppress(StorageError, msgspec.MsgspecError):
        taken = msgspec.json.decode(read_bounded(book, _BOOK_BYTES), type=_Taken)
        if taken.size == reader.size:
            return taken
    return _Taken(size=reader.size, mark=reader.mark)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as exc:
        raise StorageError(f"cannot look at {path}: {exc.strerror or exc}") from exc


def _checked(file: str) -> Path:
    path = Path(file)
    if not path.is_absolute() or "\0" in file:
        raise ConfigError(f"expected the absolute path of a file, not {file!r}")
    return path
