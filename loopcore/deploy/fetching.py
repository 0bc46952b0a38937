"""One download: a platform's model in one format, whole, checked, and where nobody looks yet."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from anyio import to_thread

from loopcore.abc import ModelRegistry
from loopcore.deploy.exchange import FETCH_S, exchange
from loopcore.deploy.identity import contradicts, key_of
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import IntegrityError, ModelError
from loopcore.package import open_folder
from loopcore.types import Model, ModelInfo


async def fetch(platform: str, registry: ModelRegistry, offer: ModelInfo, store: ModelStore) -> Model:
    """Download a model into a folder of the store in which it stays until the caller clears it.

    Args:
        platform: The name of the platform.
        registry: Its models.
        offer: The model, in one format.
        store: Where there is room for what arrives, one model at a time.

    Raises:
        ModelError: The platform does not have it, or what came is not what was promised.
        RemoteError: The download failed; what has come stays, and the next attempt goes on from there.
        StorageError: The disk refuses.
    """
    key = sha256(f"{platform}\0{key_of(offer)}\0{offer.format}".encode()).hexdigest()[:32]
    folder = await to_thread.run_sync(store.arrival, key)
    try:
        with exchange(platform, FETCH_S):
            await registry.fetch(offer, offer.format, folder)
        return await to_thread.run_sync(_checked, platform, offer, folder)
    except ModelError:
        await to_thread.run_sync(store.clear, folder)
        raise


def _checked(platform: str, offer: ModelInfo, folder: Path) -> Model:
    model = open_folder(folder)
    if model.info.format != offer.format:
        raise ModelError(f"the platform {platform!r} sent {model.info.format!r} in place of {offer.format!r}")
    if contradicts(offer, model.info):
        raise IntegrityError(f"the platform {platform!r} sent another model than {offer.name} {offer.version}")
    return model
