"""How a source hands a frame over: again and again, until the node takes it or says that it never will."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from logging import getLogger

import anyio

from loopcore.abc import Service
from loopcore.errors import BusyError, NotReadyError, StorageError
from loopcore.types import Answer, Image

_log = getLogger(__name__)
_FIRST_S = 0.1
_LEAST_S = 0.01
_MOST_S = 30.0


async def predict_patiently(
    service: Service,
    image: Image,
    *,
    camera: str | None,
    captured: datetime | None,
    tags: Sequence[str],
    source: str,
) -> Answer:
    """`Service.predict`, tried again while no model serves, the queue is full, or the frame could not be stored.

    A source can bring the frame again at any time, so a full outbox makes it wait and loses nothing.

    Raises:
        FrameError: The picture is bad.
        BackendError: The model failed on this frame.
        PluginError: The backend broke its contract on this frame.
    """
    patience_s = _FIRST_S
    while True:
        try:
            return await service.predict(image, camera=camera, captured=captured, tags=tags, source=source)
        except (BusyError, NotReadyError) as exc:
            pause_s = exc.retry_after_s
        except StorageError as exc:
            if patience_s == _FIRST_S:
                _log.warning("A source waits until its frame can be stored: %s source=%s", exc, source)
            pause_s = patience_s
            patience_s = min(2 * patience_s, _MOST_S)
        await anyio.sleep(min(max(pause_s, _LEAST_S), _MOST_S))
