"""What the node did, recomputed from the files it left: journal, samples and the truth about the scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from loopcore.abc import Console
from loopcore.cli.demo.scenes import RARE, Slip
from loopcore.drivers.folder_sink import Stored
from loopcore.files import read_bounded
from loopcore.geometry import iou
from loopcore.types import Box, FrameInfo, Prediction, image_id

_MAX_BYTES = 64_000_000


class PredictionMade(Struct, frozen=True, tag_field="event", tag="prediction_made"):
    """A line of the journal."""

    info: FrameInfo
    prediction: Prediction


class SampleKept(Struct, frozen=True, tag_field="event", tag="sample_kept"):
    """A line of the journal."""

    id: str


class SampleDelivered(Struct, frozen=True, tag_field="event", tag="sample_delivered"):
    """A line of the journal."""

    id: str
    sink: str


class Seen(Struct, frozen=True, kw_only=True):
    """One frame: what is in it, what the model found, and what became of it.

    Attributes:
        name: The scene's file.
        time: The frame's time.
        found: The model's boxes, surest first.
        slips: What truly is there.
        reasons: Why it was picked; empty if it was not.
        sample: Its sample in the sink's folder, relative to the demo's; `None` if it was not delivered.
    """

    name: str
    time: datetime
    found: tuple[Box, ...]
    slips: tuple[Slip, ...]
    reasons: tuple[str, ...] = ()
    sample: str | None = None


class Score(Struct, frozen=True, kw_only=True):
    """How some frames were read: their slips, rare ones, read right, read wrong, missed; and boxes on nothing."""

    frames: int = 0
    slips: int = 0
    rare: int = 0
    right: int = 0
    wrong: int = 0
    missed: int = 0
    ghosts: int = 0

    @property
    def rate(self) -> float:
        """The share of slips that were read right."""
        return self.right / self.slips if self.slips else 0.0


class LabelRow(Struct, frozen=True, kw_only=True):
    """One label: how often it was there and found, how surely, how often uncertain and right."""

    label: str
    there: int
    found: int
    confidence: float
    right: int
    uncertain: int


class Summary(Struct, frozen=True, kw_only=True):
    """The demo's outcome.

    Attributes:
        model: Name and version of the model that answered.
        scenes: How many scenes lie in the folder.
        frames: Those that the node saw, in order of time.
        kept: How many samples the outbox accepted.
        delivered: How many samples lie whole in the sink's folder.
        reasons: How many frames were picked for each reason.
        labels: One row for each label, in the model's order.
        band: What counts as uncertain.
        infer_ms: The median time that the model took for a frame.
    """

    model: str
    scenes: int
    frames: tuple[Seen, ...]
    kept: int
    delivered: int
    reasons: dict[str, int]
    labels: tuple[LabelRow, ...]
    band: tuple[float, float]
    infer_ms: float

    @property
    def detections(self) -> int:
        return sum(len(frame.found) for frame in self.frames)

    @property
    def picked(self) -> tuple[Seen, ...]:
        return tuple(frame for frame in self.frames if frame.reasons)

    @property
    def unsure(self) -> tuple[Seen, ...]:
        """The frames that were picked because the model was in doubt."""
        return tuple(frame for frame in self.frames if "uncertain" in frame.reasons)

    @property
    def others(self) -> tuple[Seen, ...]:
        return tuple(frame for frame in self.frames if "uncertain" not in frame.reasons)

    def show(self, console: Console) -> None:
        """Print the tables."""
        picked = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items())) or "none"
        flow = (
            ("frames seen", len(self.frames), f"of {self.scenes} scenes"),
            ("detections", self.detections, f"{self.infer_ms:.1f} ms a frame in the model"),
            ("frames picked", len(self.picked), picked),
            ("samples delivered", self.delivered, f"of {self.kept} that the outbox accepted"),
        )
        console.print("")
        console.table(["the road", "count", ""], flow)
        console.print("")
        console.table(
            ["label", "there", "found", "right", "uncertain", "confidence"],
            [(r.label, r.there, r.found, r.right, r.uncertain, f"{r.confidence:.2f}") for r in self.labels],
        )
        unsure, others = self.score(self.unsure), self.score(self.others)
        console.print("")
        console.table(
            ["frames", "count", "digits", "of these rare", "read right"],
            [
                (what, score.frames, score.slips, score.rare, f"{100 * score.rate:.0f} %")
                for what, score in (("picked as uncertain", unsure), ("all others", others))
            ],
        )

    def score(self, frames: Iterable[Seen]) -> Score:
        """How well these frames were read."""
        counts = dict.fromkeys(("frames", "slips", "rare", "right", "wrong", "missed", "ghosts"), 0)
        for frame in frames:
            matches = match(frame)
            right = sum(slip is not None and slip.label == box.label for box, slip in matches)
            hits = sum(slip is not None for _, slip in matches)
            counts["frames"] += 1
            counts["slips"] += len(frame.slips)
            counts["rare"] += sum(slip.label in RARE for slip in frame.slips)
            counts["right"] += right
            counts["wrong"] += hits - right
            counts["missed"] += len(frame.slips) - hits
            counts["ghosts"] += len(matches) - hits
        return Score(**counts)


def match(frame: Seen) -> list[tuple[Box, Slip | None]]:
    """Each box, surest first, with the slip it covers by half or more; each slip once."""
    if not frame.found or not frame.slips:
        return [(box, None) for box in frame.found]
    overlap = iou(_corners(frame.found), _corners(frame.slips))
    pairs: list[tuple[Box, Slip | None]] = []
    for index, box in enumerate(frame.found):
        best = int(overlap[index].argmax())
        if overlap[index, best] < 0.5:
            pairs.append((box, None))
            continue
        pairs.append((box, frame.slips[best]))
        overlap[:, best] = 0
    return pairs


def summarize(out: Path, labels: Sequence[str], band: tuple[float, float]) -> Summary:
    """Read the demo's folder."""
    truth = msgspec.json.decode(read_bounded(out / "truth.json", _MAX_BYTES), type=dict[str, tuple[Slip, ...]])
    journal = _read_journal(out / "journal.jsonl")
    predictions = {Path(line.info.source or "").name: line for line in journal if isinstance(line, PredictionMade)}
    stored = _read_samples(out / "samples")
    frames = [_seen(name, line, truth.get(name, ()), stored.get(name), out) for name, line in predictions.items()]
    frames.sort(key=lambda frame: (frame.time, frame.name))
    reasons: dict[str, int] = {}
    for frame in frames:
        for reason in frame.reasons:
            reasons[reason] = reasons.get(reason, 0) + 1
    times = [line.prediction.infer_ms for line in predictions.values() if line.prediction.infer_ms is not None]
    first = next(iter(predictions.values()), None)
    return Summary(
        model=f"{first.prediction.model} {first.prediction.model_version}" if first else "",
        scenes=len(truth),
        frames=tuple(frames),
        kept=len({line.id for line in journal if isinstance(line, SampleKept)}),
        delivered=len(stored),
        reasons=reasons,
        labels=tuple(_label_row(label, frames, band) for label in labels),
        band=band,
        infer_ms=float(np.median(times)) if times else 0.0,
    )


def _read_journal(path: Path) -> list[PredictionMade | SampleKept | SampleDelivered]:
    decoder = msgspec.json.Decoder(PredictionMade | SampleKept | SampleDelivered)
    return decoder.decode_lines(read_bounded(path, _MAX_BYTES)) if path.is_file() else []


def _read_samples(folder: Path) -> dict[str, tuple[Path, Stored]]:
    """The samples whose picture is whole, by the name of their scene."""
    samples = {}
    for path in sorted(folder.glob("*/*/*.json")):
        stored = msgspec.json.decode(read_bounded(path, _MAX_BYTES), type=Stored)
        picture = path.with_name(stored.image)
        if picture.is_file() and image_id(read_bounded(picture, _MAX_BYTES)) == stored.sample.image_id:
            samples[Path(stored.sample.source or "").name] = (picture, stored)
    return samples


def _seen(
    name: str, line: PredictionMade, slips: tuple[Slip, ...], sample: tuple[Path, Stored] | None, out: Path
) -> Seen:
    boxes = [found for found in line.prediction.detections if isinstance(found, Box)]
    return Seen(
        name=name,
        time=line.info.time,
        found=tuple(sorted(boxes, key=lambda box: -box.confidence)),
        slips=slips,
        reasons=sample[1].sample.reasons if sample else (),
        sample=sample[0].relative_to(out).as_posix() if sample else None,
    )


def _label_row(label: str, frames: Sequence[Seen], band: tuple[float, float]) -> LabelRow:
    pairs = [pair for frame in frames for pair in match(frame) if pair[0].label == label]
    surely = [box.confidence for box, _ in pairs]
    return LabelRow(
        label=label,
        there=sum(slip.label == label for frame in frames for slip in frame.slips),
        found=len(pairs),
        confidence=sum(surely) / len(surely) if surely else 0.0,
        right=sum(slip is not None and slip.label == label for _, slip in pairs),
        uncertain=sum(band[0] <= confidence <= band[1] for confidence in surely),
    )


def _corners(shapes: Sequence[Any]) -> Any:
    return np.array([(s.x, s.y, s.x + s.width, s.y + s.height) for s in shapes], np.float32)
