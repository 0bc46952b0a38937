"""The summary as pictures and as one page of HTML that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from msgspec.structs import replace

from loopcore.cli.demo.scenes import RARE
from loopcore.cli.demo.summary import LabelRow, Score, Seen, Summary, match
from loopcore.files import read_bounded, write_atomic
from loopcore.geometry import resize
from loopcore.imaging import decode, draw, encode_jpeg

_MAX_PICTURE = 4_000_000
_SHOWN = 24
_BESIDE = 6
_BINS = 14
_ZOOM = 1.5
"""Room for the labels beside the digits."""
_WHY = {
    "uncertain": "A box whose confidence lies in the band, at a place where none like it was seen lately.",
    "interval": "One frame in a while, whatever is on it, so that the ordinary is seen too.",
}


def draw_pictures(out: Path, summary: Summary) -> None:
    """Write every frame that was seen into `pictures/`, larger, with what the model found drawn in."""
    for frame in summary.frames:
        pixels = decode(read_bounded(out / "scenes" / frame.name, _MAX_PICTURE))
        height, width = pixels.shape[:2]
        larger = resize(pixels, round(width * _ZOOM), round(height * _ZOOM))
        boxes = [
            replace(box, x=box.x * _ZOOM, y=box.y * _ZOOM, width=box.width * _ZOOM, height=box.height * _ZOOM)
            for box in frame.found
        ]
        write_atomic(out / "pictures" / frame.name, encode_jpeg(draw(larger, boxes), quality=78))


def write_report(out: Path, summary: Summary) -> None:
    """Write `report.html`, from the summary and the pictures that `draw_pictures` left."""
    page = Template((files("loopcore.cli.demo") / "report.html").read_text(encoding="utf-8"))
    unsure, others = summary.score(summary.unsure), summary.score(summary.others)
    passed = [frame for frame in summary.frames if not frame.reasons]
    shown = sorted(summary.picked, key=lambda frame: ("uncertain" not in frame.reasons, frame.time))[:_SHOWN]
    text = page.substitute(
        model=escape(summary.model),
        tiles=_tiles(summary),
        reasons=_reasons(summary),
        histogram=_histogram(summary),
        verdicts=_verdict("picked as uncertain", unsure) + _verdict("all others", others),
        right=_percent(unsure.right, unsure.slips),
        otherwise=_percent(others.right, others.slips),
        labels="".join(_label(row) for row in summary.labels),
        shown=len(shown),
        picked=len(summary.picked),
        gallery=_gallery(out, shown),
        passed=_gallery(out, passed[:: max(1, len(passed) // _BESIDE)][:_BESIDE]),
        low=f"{summary.band[0]:g}",
        high=f"{summary.band[1]:g}",
    )
    write_atomic(out / "report.html", text.encode())


def _tiles(summary: Summary) -> str:
    tiles = (
        (len(summary.frames), "frames seen", f"of {summary.scenes} scenes"),
        (summary.detections, "detections", f"{summary.infer_ms:.1f} ms a frame"),
        (len(summary.picked), "frames picked", f"{_percent(len(summary.picked), len(summary.frames))} of those seen"),
        (summary.delivered, "samples delivered", f"of {summary.kept} that the outbox accepted"),
    )
    return "".join(
        f'<div class="tile"><b>{number}</b><span>{escape(what)}</span><small>{escape(more)}</small></div>'
        for number, what, more in tiles
    )


def _reasons(summary: Summary) -> str:
    rows = sorted(summary.reasons.items(), key=lambda row: -row[1])
    return "".join(
        f'<tr><td><span class="chip {escape(reason)}">{escape(reason)}</span></td><td class="n">{count}</td>'
        f"<td>{escape(_WHY.get(reason, ''))}</td></tr>"
        for reason, count in rows
    )


def _verdict(what: str, score: Score) -> str:
    parts = (("right", score.right), ("wrong", score.wrong), ("missed", score.missed))
    bars = "".join(
        f'<i class="{name}" style="width:{_share(count, score.slips):.2f}%" title="{count} {name}"></i>'
        for name, count in parts
    )
    return (
        f"<tr><td>{escape(what)}</td>"
        + "".join(f'<td class="n">{n}</td>' for n in (score.frames, score.slips, score.rare))
        + f'<td class="n"><b>{_percent(score.right, score.slips)}</b></td><td><div class="bar">{bars}</div></td>'
        f'<td class="n">{score.ghosts}</td></tr>'
    )


def _label(row: LabelRow) -> str:
    kind = '<small class="rare">rare</small>' if row.label in RARE else ""
    return (
        f'<tr><td class="digit">{escape(row.label)} {kind}</td>'
        + "".join(f'<td class="n">{n}</td>' for n in (row.there, row.found, row.right, row.uncertain))
        + f'<td><div class="bar"><i class="sure" style="width:{100 * row.confidence:.1f}%"></i></div></td>'
        f'<td class="n">{row.confidence:.2f}</td></tr>'
    )


def _histogram(summary: Summary) -> str:
    """How sure the model was: bars from confidence 0.3 to 1, those in the band in the colour of doubt."""
    low, high = summary.band
    step = (1 - low) / _BINS
    heights = [0] * _BINS
    for frame in summary.frames:
        for box in frame.found:
            heights[min(_BINS - 1, max(0, int((box.confidence - low) / step)))] += 1
    top = max(*heights, 1)
    width = 560 / _BINS
    bars = "".join(
        f'<rect x="{20 + i * width + 2:.1f}" y="{150 - 120 * n / top:.1f}" width="{width - 4:.1f}" '
        f'height="{120 * n / top:.1f}" rx="3" class="{"doubt" if low + (i + 0.5) * step <= high else "sure"}"/>'
        f'<text x="{20 + (i + 0.5) * width:.1f}" y="{144 - 120 * n / top:.1f}">{n or ""}</text>'
        for i, n in enumerate(heights)
    )
    ticks = "".join(
        f'<text x="{20 + (value - low) / (1 - low) * 560:.1f}" y="170">{value:g}</text>'
        for value in sorted({low, high, *(n / 10 for n in range(1, 11) if n / 10 > low)})
    )
    return f'<svg viewBox="0 0 600 178" role="img" aria-label="Confidence of all boxes">{bars}{ticks}</svg>'


def _gallery(out: Path, frames: Iterable[Seen]) -> str:
    return "".join(_figure(out, frame) for frame in frames)


def _figure(out: Path, frame: Seen) -> str:
    picture = b64encode(read_bounded(out / "pictures" / frame.name, _MAX_PICTURE)).decode("ascii")
    chips = "".join(f'<span class="chip {escape(reason)}">{escape(reason)}</span>' for reason in frame.reasons)
    return (
        f'<figure><img alt="{escape(frame.name)}" width="720" height="480" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption><div>{chips}<code>{escape(frame.name)}</code></div><ul>{_findings(frame)}</ul></figcaption></figure>"
    )


def _findings(frame: Seen) -> str:
    items = []
    matches = match(frame)
    for box, slip in matches:
        if slip is None:
            verdict, sort = "nothing there", "wrong"
        elif slip.label == box.label:
            verdict, sort = "right", "right"
        else:
            verdict, sort = f"is a {slip.label}", "wrong"
        hard = f", {slip.hard}" if slip and slip.hard else ""
        items.append(
            f'<li class="{sort}"><b>{escape(box.label)}</b> {box.confidence:.2f} {escape(verdict + hard)}</li>'
        )
    covered = [slip for _, slip in matches]
    items += [
        f'<li class="missed">missed a <b>{escape(slip.label)}</b>{escape(f", {slip.hard}" if slip.hard else "")}</li>'
        for slip in frame.slips
        if slip not in covered
    ]
    return "".join(items)


def _share(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{_share(part, whole):.0f} %"
