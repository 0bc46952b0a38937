"""Samples in calls as a sink takes them: how many, how large, of which media type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from anyio.to_thread import run_sync
from msgspec import structs

from loopcore.collect.outbox import Lease
from loopcore.errors import FrameError
from loopcore.types import Sample

_Pair: TypeAlias = tuple[Lease, Sample]


def parts(
    leases: Sequence[Lease], *, max_count: int, max_bytes: int, alone: Callable[[Lease], bool]
) -> list[list[Lease]]:
    """What goes into a call each, in order: those that are to be alone, the others up to the bounds."""
    packed: list[list[Lease]] = []
    room = -1
    for lease in leases:
        by_itself = alone(lease)
        if by_itself or room < lease.image_bytes or len(packed[-1]) >= max_count:
            packed.append([])
            room = max_bytes
        packed[-1].append(lease)
        room = -1 if by_itself else room - lease.image_bytes
    return packed


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
