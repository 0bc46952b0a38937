"""A single-file plugin: notes what the node did, a line of JSON for each event, in `journal.jsonl` beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec

from loopcore import hookimpl
from loopcore.types import FrameInfo, Prediction, SampleInfo

JOURNAL = Path(__file__).with_name("journal.jsonl")


@hookimpl
async def loopcore_prediction_made(info: FrameInfo, prediction: Prediction) -> None:
    await _note({"event": "prediction_made", "info": info, "prediction": prediction})


@hookimpl
async def loopcore_sample_kept(sample: SampleInfo) -> None:
    await _note({"event": "sample_kept", "id": sample.id, "source": sample.source, "reasons": sample.reasons})


@hookimpl
async def loopcore_sample_delivered(sample: SampleInfo, sink: str) -> None:
    await _note({"event": "sample_delivered", "id": sample.id, "sink": sink})


async def _note(event: dict[str, Any]) -> None:
    async with await anyio.open_file(JOURNAL, "ab") as file:
        await file.write(msgspec.json.encode(event) + b"\n")
