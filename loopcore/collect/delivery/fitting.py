"""Pictures in the media type that a sink takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from anyio.to_thread import run_sync
from msgspec import structs

from loopcore.collect.outbox import Lease
from loopcore.errors import FrameError
from loopcore.types import Sample

_Pair: TypeAlias = tuple[Lease, Sample]


async def fit(pairs: list[_Pair], media: Sequence[str]) -> tuple[list[_Pair], list[tuple[Lease, Sample, str]]]:
    """Transcode what the sink does not take; the original stays in the outbox.

    Returns:
        What can be sent, in order, and what cannot be made to fit, each with the reason.
    """
    fitting: list[_Pair] = []
    unfit: list[tuple[Lease, Sample, str]] = []
    for lease, sample in pairs:
        if not media or sample.info.media in media:
            fitting.append((lease, sample))
            continue
        try:
            fitting.append((lease, await run_sync(_transcode, sample, media[0])))
        except FrameError as exc:
            unfit.append((lease, sample, f"the picture cannot be turned into {media[0]}: {exc}"))
    return fitting, unfit


def _transcode(sample: Sample, media: str) -> Sample:
    from loopcore.imaging import transcode

    image = transcode(sample.image, media)
    return Sample(info=structs.replace(sample.info, media=media, image_bytes=len(image)), image=image)
