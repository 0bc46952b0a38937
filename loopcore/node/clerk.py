"""What a person asks of an outbox through commands; the same in a node, and on the files where no node runs."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import create_task_group, move_on_after

from loopcore.collect.delivery import Delivery
from loopcore.collect.outbox import Listed, Outbox, Taker
from loopcore.config import SinkTable, When
from loopcore.errors import ConfigError, StorageError
from loopcore.node.carrying import Carrier, portions
from loopcore.node.control_socket import LongOperation, Operation, Tell
from loopcore.node.progress import Steps
from loopcore.types import Sample, image_id

PAGE = 500
"""The most lines of one answer."""

_PIECE_BYTES = 2_000_000  # of an image in one answer
_WHY = 1000
"""How much of an answer a line of a list holds; `show` has all of it."""
_CHECK_BYTES = 1 << 24
_DRAIN_TELLS_S = 0.5
_PREFIX = re.compile("[0-9a-f]{4,64}")


def taker(table: SinkTable) -> Taker:
    """A sink of the TOML as the outbox sees it."""
    wants = (table.when or When()).matches
    return Taker(name=table.name, wants=wants, max_backlog=table.max_backlog, start=table.start)


def _yes() -> bool:
    return True


class Clerk:
    """Answers commands about one outbox.

    Args:
        outbox: Entered.
        folder: The outbox's folder.
        configured: The sinks of the TOML; `None` if no TOML was read.
        deliveries: Those that run, by sink; empty where no node runs.
        sending: Whether a person lets the node send.
    """

    def __init__(
        self,
        outbox: Outbox,
        folder: Path,
        configured: Collection[str] | None,
        deliveries: Mapping[str, Delivery] | None = None,
        sending: Callable[[], bool] = _yes,
    ) -> None:
        self._outbox = outbox
        self._configured = configured
        self._deliveries = deliveries or {}
        self._sending = sending
        self._carrier = Carrier(outbox, folder)

    def operations(self) -> dict[str, Operation | LongOperation]:
        """What a command may ask."""
        return {
            "outbox_status": self.status,
            "outbox_list": self.list,
            "outbox_rejected": self.list_rejected,
            "outbox_drops": self.list_drops,
            "outbox_show": self.show,
            "outbox_image": self.image,
            "outbox_outlook": self.outlook,
            "outbox_retry": LongOperation(self.retry),
            "outbox_forget": LongOperation(self.forget),
            "outbox_fsck": LongOperation(self.fsck),
            "outbox_drain": LongOperation(self.drain),
            "outbox_export": LongOperation(self._carrier.export_bundle),
            "outbox_import": LongOperation(self._carrier.import_bundle),
        }

    async def status(self) -> dict[str, Any]:
        """As `Outbox.status`, with the `state` of each sink in words."""
        await self._outbox.notice()
        status = await self._outbox.status()
        for name, sink in status["sinks"].items():
            sink["configured"] = self._configured is None or name in self._configured
            if delivery := self._deliveries.get(name):
                sink.update(delivery.status())
            elif sink["configured"]:
                sink["state"] = "no node runs"
            else:
                sink["state"] = "not in the TOML"
        return status

    async def list(self, after: int = 0, limit: int = PAGE, sink: str | None = None) -> Sequence[dict[str, Any]]:
        """A page of samples in order of arrival; the next one begins after the last `seq`."""
        if sink is not None:
            await self.outlook(sink)
        if not after:
            await self._outbox.notice()
        listed = await self._outbox.list(after=after, limit=max(0, min(limit, PAGE)), sink=sink)
        return [_line(one) for one in listed]

    async def list_rejected(
        self, after: int = 0, limit: int = PAGE, sink: str | None = None
    ) -> Sequence[dict[str, Any]]:
        """A page of refused samples, oldest first; `after` so many."""
        await self._outbox.notice()
        rows = (await self._outbox.list_rejected(sink))[max(0, after) :][: max(0, min(limit, PAGE))]
        return [{**row, "why": row["why"][:_WHY]} for row in rows]

    async def list_drops(self) -> Sequence[dict[str, Any]]:
        """The last 1,000 drops, newest first."""
        return await self._outbox.list_drops()

    async def show(self, id: str) -> dict[str, Any]:  # noqa: A002 - the field's term
        """One sample: `info`, the `sinks` that wait for it, and who has `rejected` it.

        Args:
            id: Its id, or the first digits of it.
        """
        full = await self._resolve(id)
        found, refusals = await self._find(full)
        line = await self._outbox.locate(full)
        return {
            "info": msgspec.to_builtins(found.info),
            "sinks": line.sinks if line else (),
            "waiting": line is not None,
            "rejected": [{"sink": one.sink, "why": one.why, "at": one.at.isoformat()} for one in refusals],
        }

    async def image(self, id: str, offset: int = 0) -> dict[str, Any]:  # noqa: A002 - the field's term
        """A piece of a sample's image in base64, and the `size` of the whole."""
        found, _ = await self._find(await self._resolve(id))
        piece = found.image[max(0, offset) :][:_PIECE_BYTES]
        return {"data": b64encode(piece).decode(), "size": len(found.image)}

    async def retry(self, tell: Tell, sink: str, ids: Sequence[str] | None = ()) -> dict[str, Any]:
        """Move refused samples back into the queue, and let a sink that was paused by its failures try at once.

        Args:
            tell: Unused: it is quick.
            sink: The sink.
            ids: Ids, or the first digits of them; `None` for all.
        """
        del tell
        if ids is not None and not ids and sink not in self._deliveries:
            raise ConfigError("which rejected samples? name them, or say --all")
        rows = await self._outbox.list_rejected(sink)
        if not rows:
            status = await self._outbox.status()
            self._check_sink(sink, status["sinks"])
        chosen = None if ids is None else [_chosen(one, rows, sink) for one in ids]
        moved = await self._outbox.retry(sink, chosen)
        delivery = self._deliveries.get(sink)
        if delivery is not None and self._sending():
            delivery.resume()
        return {"moved": moved, "resumed": delivery is not None and self._sending()}

    async def outlook(self, name: str) -> Mapping[str, Any]:
        """What `forget` would do.

        Raises:
            ConfigError: There is no such sink.
        """
        outlook = await self._outbox.outlook(name)
        if outlook is None:
            self._check_sink(name, (await self._outbox.status())["sinks"])
        return {**(outlook or {}), "configured": self._configured is not None and name in self._configured}

    async def forget(self, tell: Tell, name: str) -> dict[str, Any]:
        """Give up all places of a sink."""
        del tell
        outlook = await self.outlook(name)
        return {**outlook, "places": await self._outbox.forget(name)}

    async def fsck(self, tell: Tell, mend: bool = True) -> dict[str, Any]:
        """Read all that is needed, and with `mend` do what can be done about damage; what was found, either way."""
        wrong = await self._outbox.check_index(mend=False)
        if wrong and mend:
            await self._outbox.check_index(mend=True)
        steps = Steps(tell, (await self._outbox.status())["count"])
        samples = size = damaged = removed = after = 0
        while page := await self._outbox.list(after=after, limit=PAGE):
            for part in portions(page, _CHECK_BYTES):
                bad, gone = await self._outbox.check_samples(part, mend=False)
                if (bad or gone) and mend:
                    await self._outbox.check_samples(part, mend=True)
                damaged, removed = damaged + bad, removed + gone
                samples, size = samples + len(part), size + sum(one.image_bytes for one in part)
                await steps.done(samples)
            after = page[-1].seq
        refused = await self._outbox.list_rejected()
        bad, gone = await self._outbox.check_rejected(mend=mend)
        if mend:
            await self._outbox.notice()
        return {
            "samples": {"read": samples, "bytes": size, "damaged": damaged, "removed": removed},
            "rejected": {
                "read": len(refused),
                "bytes": sum(row["bytes"] for row in refused),
                "damaged": bad,
                "removed": gone,
            },
            "index": list(wrong),
            "mended": mend,
        }

    async def drain(self, tell: Tell, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until nothing is left that could be sent, or the time is over; then as `status`."""
        with move_on_after(inf if timeout_s is None else timeout_s):
            async with create_task_group() as tasks:
                tasks.start_soon(self._tell_what_waits, tell)
                await _all([delivery.drained for delivery in self._deliveries.values()])
                tasks.cancel_scope.cancel()
        return await self.status()

    async def _tell_what_waits(self, tell: Tell) -> None:
        while True:
            sinks = (await self.status())["sinks"]
            await tell({"waiting": {name: [sink["waiting"], sink["state"]] for name, sink in sinks.items()}})
            await anyio.sleep(_DRAIN_TELLS_S)

    async def _resolve(self, id: str) -> str:  # noqa: A002 - the field's term
        if not _PREFIX.fullmatch(id):
            raise ConfigError(f"{id!r} is no id, expected 4 to 64 of the digits 0-9 and a-f")
        found = await self._outbox.find(id)
        if not found:
            raise StorageError(f"no sample here has an id that begins with {id!r}")
        if len(found) > 1:
            raise ConfigError(f"several ids begin with {id!r}, such as {found[0]} and {found[1]}; give more digits")
        return found[0]

    async def _find(self, id: str) -> tuple[Sample, Sequence[Any]]:  # noqa: A002 - the field's term
        refused = await self._outbox.show_rejected(id)
        refusals = [refusal for refusal, _ in refused]
        if sample := await self._outbox.show(id):
            return sample, refusals
        for refusal, image in refused:
            if image_id(image) == refusal.info.image_id:
                return Sample(info=refusal.info, image=image), refusals
        raise StorageError(f"the sample {id} is damaged, or was removed by hand")

    def _check_sink(self, name: str, known: Collection[str]) -> None:
        if name not in known:
            names = ", ".join(map(repr, sorted(known))) or "none"
            raise ConfigError(f"no sink {name!r} has a place in this outbox (there are: {names})")


def _line(one: Listed) -> dict[str, Any]:
    return {
        "seq": one.seq,
        "id": one.id,
        "bytes": one.image_bytes,
        "urgent": one.urgent,
        "age_s": round(one.age_s, 3),
        "sinks": one.sinks,
    }


def _chosen(prefix: str, rows: Sequence[Mapping[str, Any]], sink: str) -> str:
    found = {str(row["id"]) for row in rows if row["id"].startswith(prefix)}
    if len(found) != 1 or not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"{len(found) or 'no'} rejected samples of the sink {sink!r} begin with {prefix!r}, expected one"
        )
    return found.pop()


async def _all(waits: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    async with create_task_group() as tasks:
        for wait in waits:
            tasks.start_soon(wait)
