"""One download: a platform's model in one format, whole, checked, and where nobody looks yet."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import anyio
from anyio import create_task_group, current_time, to_thread

from loopcore.abc import ModelRegistry
from loopcore.deploy.exchange import FETCH_S, exchange
from loopcore.deploy.identity import contradicts, key_of
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import IntegrityError, LoopcoreError, ModelError, RemoteError, RetryableError, StorageError
from loopcore.files import DISK
from loopcore.package import open_folder
from loopcore.types import Model, ModelInfo

LOOK_S = 2.0
STILL_S = 600.0
"""A download into whose folder nothing has come for so long counts as broken off."""

MOST_BYTES = 32_000_000_000
LEAST_FREE = 100_000_000
"""What a download leaves of the disk to the samples."""


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
            async with create_task_group() as tasks:
                tasks.start_soon(_watch, platform, folder)
                await registry.fetch(offer, offer.format, folder)
                tasks.cancel_scope.cancel()
        return await to_thread.run_sync(_checked, platform, offer, folder)
    except RemoteError:
        raise
    except LoopcoreError:  # a part that is wrong is of no use, and one that fills the disk does harm
        await to_thread.run_sync(store.clear, folder)
        raise


async def _watch(platform: str, folder: Path) -> None:
    """A platform may be slow, but not for ever, and may not fill the disk."""
    last, since = -1, current_time()
    while True:
        await anyio.sleep(LOOK_S)
        size = await to_thread.run_sync(_size, folder)
        if size > MOST_BYTES:
            raise ModelError(f"the platform {platform!r} sends more than {MOST_BYTES} bytes for one model")
        if size != last:
            last, since = size, current_time()
        elif current_time() - since > STILL_S:
            raise RetryableError(f"the platform {platform!r} has sent nothing of a model for {STILL_S:g} s")
        if (free := await to_thread.run_sync(DISK.free, folder)) < LEAST_FREE:
            raise StorageError(f"a model does not fit on the disk of {folder.parent}: {free} bytes are left")


def _size(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has got another name meanwhile
            found += path.lstat().st_size
    return found


def _checked(platform: str, offer: ModelInfo, folder: Path) -> Model:
    model = open_folder(folder)
    if model.info.format != offer.format:
        raise ModelError(f"the platform {platform!r} sent {model.info.format!r} in place of {offer.format!r}")
    if contradicts(offer, model.info):
        raise IntegrityError(f"the platform {platform!r} sent another model than {offer.name} {offer.version}")
    return model
