"""What people's clients say of an image, read as far as it can be (`learning-loop.md` 4.2, 5.1, 5.2).

The clients in use round or do not, say `created` or `creation_date`, and leave out what others require. None of that is
worth a picture: what cannot be read is left out with a note, and the rest is kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, field

from loopcore.types import Annotation, Box, Classification, Detection, Point, Segmentation

MAX_NOTES = 20
"""Of one image; the last one says how many more there were."""

CAMERA = ("camera_id", "camera-id", "mac")
CREATED = ("created", "creation_date", "creation-date")
_SPLIT = re.compile(r"[\s,;]+")
_Points: TypeAlias = tuple[tuple[float, float], ...]


class Said(Struct, kw_only=True):
    """What a client says of an image.

    Attributes:
        detections: What its model found.
        model: The version of that model; empty if nobody says.
        annotations: What a human says is there; `None` if the client speaks of none.
        category_ids: The ids that came with the names of categories.
        tags: Its tags.
        camera: Which camera took it.
        created: When, in UTC.
        source: Where it came from.
        state: The state in which it enters the Loop.
        notes: What was left out, a sentence each.
    """

    detections: list[Detection] = field(default_factory=list)
    model: str = ""
    annotations: list[Annotation] | None = None
    category_ids: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    camera: str | None = None
    created: datetime | None = None
    source: str | None = None
    state: str | None = None
    notes: list[str] = field(default_factory=list)


class _Item(Struct, kw_only=True):
    category_name: str
    category_id: Any = None
    model_name: Any = None
    confidence: float | None = None


class _Box(_Item, kw_only=True):
    x: float
    y: float
    width: float
    height: float


class _Point(_Item, kw_only=True):
    x: float
    y: float


class _Outline(_Item, kw_only=True):
    shape: Any


class _UnreadableError(Exception):
    """This part of the metadata is left out; the text says why."""


def read_metadata(*sources: object) -> Said:
    """Put together what a client says, in one place or several; of what is said twice the first counts.

    Args:
        sources: Objects as they came: ImageMetadata, or the like. JSON in a string is read, `None` says nothing.
    """
    said = Said()
    reader = _Reader(said)
    table: dict[str, Any] = {}
    for source in sources:
        for key, value in reader.mapping(source).items():
            if value is not None:
                table.setdefault(key, value)
    reader.read(table)
    return said


def read_time(value: object) -> datetime | None:
    """A time in any of the forms in use, in UTC; without a zone it is local; `None` says nothing.

    Raises:
        ValueError: It is none.
    """
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return None
    try:
        return datetime.fromisoformat(str(text).replace("_", "T", 1)).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise ValueError("expected a time such as 2026-05-04T12:00:00Z") from exc


def read_tags(value: object) -> list[str]:
    """Tags from a list, or from a string with commas."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
    words = (writable(str(item)).strip() for item in items if isinstance(item, str | int | float))
    return [word for word in words if word]


def writable(text: str) -> str:
    """The text as it can be stored: JSON can hold halves of characters."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Reader:
    def __init__(self, said: Said) -> None:
        self._said = said
        self._untold = 0

    def mapping(self, source: object) -> Mapping[str, Any]:
        if isinstance(source, str | bytes):
            try:
                source = json.loads(source)
            except (ValueError, RecursionError):
                self._note("the metadata is no JSON")
                return {}
        if source is None:
            return {}
        if not isinstance(source, Mapping):
            self._note(f"the metadata is a {type(source).__name__}, expected an object")
            return {}
        return {str(key): value for key, value in source.items()}

    def read(self, table: Mapping[str, Any]) -> None:
        said = self._said
        kinds: dict[str, Callable[[Any, bool], Detection]] = {
            "box": _box,
            "point": _point,
            "segmentation": _segmentation,
            "classification": _classification,
        }
        for kind, make in kinds.items():
            said.detections += self._items(table, f"{kind}_detections", make, is_detection=True)
        found = [
            *self._items(table, "box_annotations", _box),
            *self._items(table, "point_annotations", _point),
            *self._items(table, "segmentation_annotations", _segmentation),
            *self._items(table, "classification_annotation", _classification),
        ]
        said.annotations = found or None
        said.tags = read_tags(table.get("tags"))
        said.camera = self._first_text(table, *CAMERA)
        said.source = self._first_text(table, "source")
        said.state = self._first_text(table, "state")
        for key in CREATED:
            try:
                said.created = said.created or read_time(table.get(key))
            except ValueError as exc:
                self._note(f"{key} is left out: {exc}")
        if self._untold:
            said.notes.append(f"and {self._untold} more")

    def _items(
        self, table: Mapping[str, Any], key: str, make: Callable[[Any, bool], Detection], *, is_detection: bool = False
    ) -> Iterator[Detection]:
        items = table.get(key)
        if items is None:
            return
        if isinstance(items, Mapping):
            items = [items]
        if not isinstance(items, list | tuple):
            self._note(f"{key} is a {type(items).__name__}, expected a list")
            return
        for index, item in enumerate(items):
            try:
                found = make(item, is_detection)
            except (_UnreadableError, msgspec.ValidationError, OverflowError, UnicodeError) as exc:
                self._note(f"{key}[{index}] is left out: {exc}")
                continue
            self._said.model = self._said.model or _text(item.get("model_name"))
            if identity := _text(item.get("category_id")):
                self._said.category_ids.setdefault(found.label, identity)
            yield found

    def _first_text(self, table: Mapping[str, Any], *keys: str) -> str | None:
        for key in keys:
            value = table.get(key)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return writable(str(value))
            if value is not None:
                self._note(f"{key} is left out: expected a string, got a {type(value).__name__}")
        return None

    def _note(self, sentence: str) -> None:
        if len(self._said.notes) < MAX_NOTES:
            self._said.notes.append(writable(sentence))
        else:
            self._untold += 1


def _box(item: Any, is_detection: bool) -> Box:
    read = msgspec.convert(item, _Box, strict=False)
    width, height = _finite(read.width), _finite(read.height)
    if width < 0 or height < 0:
        raise _UnreadableError("its width or height is negative")
    return Box(x=_finite(read.x), y=_finite(read.y), width=width, height=height, **_common(read, is_detection))


def _point(item: Any, is_detection: bool) -> Point:
    read = msgspec.convert(item, _Point, strict=False)
    return Point(x=_finite(read.x), y=_finite(read.y), **_common(read, is_detection))


def _segmentation(item: Any, is_detection: bool) -> Segmentation:
    read = msgspec.convert(item, _Outline, strict=False)
    return Segmentation(points=_outline(read.shape), **_common(read, is_detection))


def _classification(item: Any, is_detection: bool) -> Classification:
    return Classification(**_common(msgspec.convert(item, _Item, strict=False), is_detection))


def _common(item: _Item, is_detection: bool) -> dict[str, Any]:
    if not is_detection:
        return {"label": writable(item.category_name)}
    if item.confidence is None:
        raise _UnreadableError("it has no confidence")
    if not 0 <= item.confidence <= 1:
        raise _UnreadableError(f"its confidence is {item.confidence}, expected 0 to 1")
    return {"label": writable(item.category_name), "confidence": item.confidence}


def _outline(shape: object) -> _Points:
    """`{"points": [{"x", "y"}]}`, a list of such points or of pairs, or the string `x1,y1,x2,y2,…`."""
    match shape:
        case str():
            numbers = [_number(word) for word in _SPLIT.split(shape.strip()) if word]
            if len(numbers) % 2:
                raise _UnreadableError("its shape has an odd number of coordinates")
            points: _Points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        case {"points": list() | tuple() as corners} | (list() | tuple() as corners):
            points = tuple(_corner(corner) for corner in corners)
        case _:
            raise _UnreadableError("its shape is neither points nor a string of coordinates")
    if len(points) < 3:
        raise _UnreadableError(f"its shape has {len(points)} points, expected three or more")
    return points


def _corner(corner: object) -> tuple[float, float]:
    match corner:
        case {"x": x, "y": y} | [x, y]:
            return _number(x), _number(y)
    raise _UnreadableError("a point of its shape has no x and y")


def _number(value: object) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return _finite(float(value))
        except ValueError:
            pass
    raise _UnreadableError("a coordinate is no number")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _UnreadableError("a coordinate is not finite")
    return value


def _text(value: object) -> str:
    return writable(value) if isinstance(value, str) else ""
