"""From a platform's registry into a store: fetched in a format that is wanted, or converted to one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from anyio import CancelScope, Lock, to_thread

from loopcore.abc import ModelRegistry
from loopcore.deploy.conversion import RULE, Chain, Converters
from loopcore.deploy.fetching import fetch
from loopcore.deploy.identity import same_model
from loopcore.deploy.modelstore import ModelStore, one_of
from loopcore.deploy.notes import Notes
from loopcore.deploy.offers import offers
from loopcore.errors import ConversionError, ModelError, StorageError
from loopcore.types import Model, ModelInfo

_log = logging.getLogger(__name__)

Doing: TypeAlias = Literal["fetching", "converting", "checking"]
Told: TypeAlias = Callable[[Doing], None]
"""Hears what is being done now."""


class Bringer:
    """Models of one platform on their way into a store, one at a time.

    Args:
        platform: The name of the platform.
        registry: Its models.
        store: Where they go.
        converters: What is installed.
        notes: Which conversions have failed.
        refused: Called once for each model that cannot be converted, and with the reason.
    """

    def __init__(
        self,
        platform: str,
        registry: ModelRegistry,
        store: ModelStore,
        converters: Converters,
        notes: Notes,
        refused: Callable[[ModelInfo, str], Awaitable[None]],
    ) -> None:
        self._platform = platform
        self._registry = registry
        self._store = store
        self._converters = converters
        self._notes = notes
        self._refused = refused
        self._lock = Lock()

    async def meant(self, choice: str) -> ModelInfo:
        """The platform's model of a version, or of an id that begins so.

        Raises:
            ModelError: It has none, or several.
            RemoteError: It could not be asked.
        """
        there = await offers(self._platform, self._registry)
        if found := one_of(choice, there):
            return found
        known = ", ".join(dict.fromkeys(f"{info.name} {info.version}" for info in there[:20])) or "none"
        raise ModelError(f"the platform {self._platform!r} has no model {choice!r} (there: {known})")

    async def bring(self, wanted: ModelInfo, formats: Sequence[str], told: Told) -> Model:
        """The model in the store; fetched, and converted if need be, if it is not there yet.

        Args:
            wanted: The model, as the platform speaks of it.
            formats: In which it may be, best first; none: as the platform has it.
            told: Hears of what takes its time.

        Raises:
            ConversionError: The platform has it in other formats, and it cannot be converted; `rule` is set where it
                was tried, and that is not tried again.
            ModelError: The platform does not have it, or what came is not what was promised.
            RemoteError: The platform could not be asked, or the download failed; asking again goes on from there.
            StorageError: The disk refuses.
        """
        async with self._lock:
            if here := await to_thread.run_sync(self._store.find, wanted, formats):
                await to_thread.run_sync(self._store.give_up)  # a crash may have left what it was made from
                return here
            told("fetching")
            there = await self._offers(wanted)
            direct = [offer for offer in there if not formats or offer.format in formats]
            if not direct:
                return await self._convert(wanted, there, formats, told)
            best = min(direct, key=lambda offer: formats.index(offer.format) if formats else 0)
            fetched = await fetch(self._platform, self._registry, best, self._store)
            try:
                return await to_thread.run_sync(self._keep, fetched.path, [wanted, *there])
            finally:
                await self._clear(fetched.path)

    def _keep(self, path: Path, sources: Sequence[ModelInfo]) -> Model:
        """Take it into the store, where those make room that came before and have never served. Blocking."""
        kept = self._store.stage(path, sources)
        try:
            self._store.prune()
        except (ModelError, StorageError):
            _log.exception("Old models could not be removed")
        return kept

    async def _convert(
        self, wanted: ModelInfo, there: Sequence[ModelInfo], formats: Sequence[str], told: Told
    ) -> Model:
        chain = await to_thread.run_sync(self._converters.plan, {offer.format for offer in there}, formats)
        if refusal := self._notes.refusal(wanted, str(chain)):
            raise ConversionError(refusal.why, rule=RULE)
        offer = next(offer for offer in there if offer.format == chain.source)
        source = await fetch(self._platform, self._registry, offer, self._store)
        told("converting")
        try:
            async with self._converters.converted(source, chain) as made:
                return await to_thread.run_sync(self._keep, made.path, [wanted, *there])
        except ConversionError as exc:
            await self._note(wanted, chain, exc)
            raise
        finally:
            await self._clear(source.path)

    async def _clear(self, folder: Path) -> None:
        with CancelScope(shield=True):
            await to_thread.run_sync(self._store.clear, folder)

    async def _note(self, wanted: ModelInfo, chain: Chain, error: ConversionError) -> None:
        _log.error("A model cannot be converted name=%s version=%s why=%s", wanted.name, wanted.version, error)
        await self._notes.refuse(wanted, str(chain), error)
        await self._refused(wanted, str(error))

    async def _offers(self, wanted: ModelInfo) -> Sequence[ModelInfo]:
        listed = await offers(self._platform, self._registry)
        there = [offer for offer in listed if offer.format and same_model(wanted, offer)]
        if not there and wanted.format:
            return [wanted]
        if not there:
            raise ModelError(f"the platform {self._platform!r} does not list {wanted.name} {wanted.version}")
        return there
