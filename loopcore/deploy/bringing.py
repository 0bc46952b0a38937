"""From a platform's registry into a store: fetched in a format that is wanted, or converted to one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from anyio import Lock, to_thread

from loopcore.abc import ModelRegistry
from loopcore.deploy.conversion import RULE, Chain, Converters
from loopcore.deploy.exchange import exchange
from loopcore.deploy.fetching import fetch
from loopcore.deploy.identity import same_model
from loopcore.deploy.modelstore import ModelStore, one_of
from loopcore.deploy.notes import Notes
from loopcore.errors import ConversionError, ModelError
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
    """

    def __init__(
        self, platform: str, registry: ModelRegistry, store: ModelStore, converters: Converters, notes: Notes
    ) -> None:
        self._platform = platform
        self._registry = registry
        self._store = store
        self._converters = converters
        self._notes = notes
        self._lock = Lock()

    async def meant(self, choice: str) -> ModelInfo:
        """The platform's model of a version, or of an id that begins so.

        Raises:
            ModelError: It has none, or several.
            RemoteError: It could not be asked.
        """
        offers = await self._list()
        if found := one_of(choice, offers):
            return found
        known = ", ".join(dict.fromkeys(f"{info.name} {info.version}" for info in offers[:20])) or "none"
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
                return here
            told("fetching")
            offers = await self._offers(wanted)
            direct = [offer for offer in offers if not formats or offer.format in formats]
            if direct:
                best = min(direct, key=lambda offer: formats.index(offer.format) if formats else 0)
                return await self._fetch(best, [wanted, *offers])
            return await self._convert(wanted, offers, formats, told)

    async def _fetch(self, offer: ModelInfo, sources: Sequence[ModelInfo]) -> Model:
        fetched = await fetch(self._platform, self._registry, offer, self._store)
        model = await to_thread.run_sync(self._store.stage, fetched.path, sources)
        await to_thread.run_sync(self._store.clear, fetched.path)
        return model

    async def _convert(
        self, wanted: ModelInfo, offers: Sequence[ModelInfo], formats: Sequence[str], told: Told
    ) -> Model:
        chain = await to_thread.run_sync(self._converters.plan, {offer.format for offer in offers}, formats)
        if refusal := self._notes.refusal(wanted, str(chain)):
            raise ConversionError(refusal.why, rule=RULE)
        offer = next(offer for offer in offers if offer.format == chain.source)
        source = await fetch(self._platform, self._registry, offer, self._store)
        told("converting")
        try:
            async with self._converters.converted(source, chain) as made:
                model = await to_thread.run_sync(self._store.stage, made.path, [wanted, *offers])
        except ConversionError as exc:
            await self._note(wanted, chain, exc)
            raise
        finally:
            await to_thread.run_sync(self._store.clear, source.path)
        return model

    async def _note(self, wanted: ModelInfo, chain: Chain, error: ConversionError) -> None:
        _log.error("A model cannot be converted name=%s version=%s why=%s", wanted.name, wanted.version, error)
        await self._notes.refuse(wanted, str(chain), error)

    async def _offers(self, wanted: ModelInfo) -> Sequence[ModelInfo]:
        offers = [offer for offer in await self._list() if offer.format and same_model(wanted, offer)]
        if not offers and wanted.format:
            return [wanted]
        if not offers:
            raise ModelError(f"the platform {self._platform!r} does not list {wanted.name} {wanted.version}")
        return offers

    async def _list(self) -> Sequence[ModelInfo]:
        with exchange(self._platform):
            return await self._registry.list()
