"""Between the neutral shapes and the Loop's, both ways. Pure functions; ids of categories are found by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import inf, isfinite
from types import MappingProxyType
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from loopcore.types import (
    Annotation,
    Box,
    Classification,
    Detection,
    Point,
    Prediction,
    SampleInfo,
    Segmentation,
    merged,
)
from loopcore_learningloop import wire

SAID = "learningloop_category_ids"
"""The key in `Prediction.extra` of the ids that a client has sent with the names of categories."""


class Categories:
    """A project's categories, found by name; of several with one name, the one of the fitting type.

    Args:
        categories: The categories.
        said: Ids for names that none of these has, as somebody has said them.
    """

    def __init__(
        self, categories: Iterable[wire.Category] = (), said: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.all = tuple(categories)
        self._said = said
        self._names = {category.id: category.name for category in self.all}
        self._ids = {category.name: category.id for category in reversed(self.all)}
        self._typed = {(category.name, category.type): category.id for category in reversed(self.all)}

    def id_of(self, name: str, kind: wire.CategoryType) -> str | None:
        """The id, or `None` where nobody knows the name."""
        return self._typed.get((name, kind)) or self._ids.get(name) or self._said.get(name)

    def name_of(self, category_id: str) -> str | None:
        """The name, or `None` where nobody knows the id."""
        return self._names.get(category_id)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these names are known."""
        return all(name in self._ids for name in names)


class Found(Struct, kw_only=True):
    """What a model found, as the four lists that all messages of the Loop share (5.1)."""

    box_detections: list[wire.BoxDetection] = field(default_factory=list)
    point_detections: list[wire.PointDetection] = field(default_factory=list)
    segmentation_detections: list[wire.SegmentationDetection] = field(default_factory=list)
    classification_detections: list[wire.ClassificationDetection] = field(default_factory=list)


def found(
    detections: Sequence[Detection],
    model_version: str,
    categories: Categories,
    *,
    size: tuple[int, int] | None = None,
    flat: bool = False,
) -> Found:
    """Detections in the Loop's words. Edges of boxes are rounded to whole pixels.

    A box that is empty then is left out, and so is what is nowhere: the Loop would refuse the whole image for it.

    Args:
        detections: In pixels of the upright image.
        model_version: By convention the Loop calls it `model_name`.
        categories: Where the ids come from.
        size: Width and height of the image, to which shapes are clipped; where they are not known, only its left and
            top edge count.
        flat: Outlines as the string `x1,y1,x2,y2,…`: how a detector sends them (4.3), where a trainer sends objects.
    """
    lists = Found()
    for one in detections:
        if not _is_finite(one):
            continue
        label, confidence = one.label, one.confidence
        match one:
            case Box():
                if edges := _rounded(one, size):
                    lists.box_detections.append(
                        wire.BoxDetection(
                            category_name=label,
                            x=edges[0],
                            y=edges[1],
                            width=edges[2],
                            height=edges[3],
                            model_name=model_version,
                            confidence=confidence,
                            category_id=categories.id_of(label, "box"),
                        )
                    )
            case Point():
                x, y = _clipped(one.x, one.y, size)
                told = _told(label, model_version, confidence, categories.id_of(label, "point"))
                lists.point_detections.append(wire.PointDetection(x=x, y=y, **told))
            case Segmentation(points=points):
                outline = whole_pixels(_clipped(x, y, size) for x, y in points)
                shape = flattened(outline) if flat else outline
                told = _told(label, model_version, confidence, categories.id_of(label, "segmentation"))
                lists.segmentation_detections.append(wire.SegmentationDetection(shape=shape, **told))
            case Classification():
                told = _told(label, model_version, confidence, categories.id_of(label, "classification"))
                lists.classification_detections.append(wire.ClassificationDetection(**told))
    return lists


def _told(label: str, model: str, confidence: float, category_id: str | None) -> dict[str, Any]:
    return {"category_name": label, "model_name": model, "confidence": confidence, "category_id": category_id}


def metadata(info: SampleInfo, categories: Categories) -> wire.ImageMetadata:
    """A sample as the Loop's upload has it (5.2). It holds no annotated outlines, and one annotated class an image."""
    size = info.width, info.height
    prediction = info.prediction or Prediction()
    if said := prediction.extra.get(SAID):
        categories = Categories(categories.all, said)
    shapes = found(prediction.detections, prediction.model_version, categories, size=size, flat=True)
    told = wire.ImageMetadata(
        **asdict(shapes),
        tags=list(merged(info.tags, info.reasons)),
        created=(info.captured or info.kept).isoformat(),
        source=info.source,
        state=info.state,
    )
    for one in filter(_is_finite, info.annotations or ()):
        _annotate(told, one, categories.id_of(one.label, kind_of(one)), size)
    return told


def detections_in(lists: Found | wire.ImageMetadata | wire.Detections) -> tuple[Detection, ...]:
    """What a message of the Loop says was found. Outlines of fewer than three corners are left out."""
    outlines = [(one, corners(one.shape)) for one in lists.segmentation_detections]
    return (
        *(_box(one, one.category_name, one.confidence) for one in lists.box_detections),
        *(_point(one, one.category_name, one.confidence) for one in lists.point_detections),
        *(
            Segmentation(label=one.category_name, confidence=one.confidence, points=points)
            for one, points in outlines
            if len(points) >= 3
        ),
        *(
            Classification(label=one.category_name, confidence=one.confidence)
            for one in lists.classification_detections
        ),
    )


def annotations_in(told: wire.ImageMetadata) -> tuple[Annotation, ...]:
    """What an upload says a human sees."""
    label = told.classification_annotation
    return (
        *(_box(one, one.category_name) for one in told.box_annotations),
        *(_point(one, one.category_name) for one in told.point_annotations),
        *([Classification(label=label.category_name)] if label else []),
    )


def annotations_of(image: wire.ImageData, categories: Categories) -> tuple[Annotation, ...]:
    """What humans see on an image of the Loop; a category that the project has no more keeps its id as label."""

    def label(category_id: str) -> str:
        return categories.name_of(category_id) or category_id

    outlines = [(one, corners(one.shape)) for one in image.segmentation_annotations]
    one_class = image.classification_annotation
    return (
        *(_box(one, label(one.category_id)) for one in image.box_annotations),
        *(_point(one, label(one.category_id)) for one in image.point_annotations),
        *(Segmentation(label=label(one.category_id), points=points) for one, points in outlines if len(points) >= 3),
        *([Classification(label=label(one_class.category_id))] if one_class else []),
    )


def kind_of(shape: Detection) -> wire.CategoryType:
    """The type of the category that a shape's label is looked for among."""
    match shape:
        case Box():
            return "box"
        case Point():
            return "point"
        case Segmentation():
            return "segmentation"
        case Classification():
            return "classification"


def whole_pixels(points: Iterable[tuple[float, float]]) -> wire.Shape:
    """An outline as nodes send it: integers."""
    return wire.Shape(points=[wire.Coordinate(x=round(x), y=round(y)) for x, y in points])


def flattened(shape: wire.Shape) -> str:
    """`x1,y1,x2,y2,…`."""
    return ",".join(f"{value:.10g}" for value in chain.from_iterable((point.x, point.y) for point in shape.points))


def corners(shape: wire.Shape | str) -> tuple[tuple[float, float], ...]:
    """The corners of an outline, be it flattened or not; none where the text is no list of pairs of numbers."""
    if isinstance(shape, wire.Shape):
        return tuple((point.x, point.y) for point in shape.points)
    try:
        values = [float(value) for value in shape.split(",")]
    except ValueError:
        return ()
    return tuple(zip(values[::2], values[1::2], strict=False)) if len(values) % 2 == 0 else ()


def _annotate(told: wire.ImageMetadata, one: Annotation, category_id: str | None, size: tuple[int, int]) -> None:
    named: dict[str, Any] = {"category_name": one.label, "category_id": category_id}
    match one:
        case Box():
            if edges := _rounded(one, size):
                left, top, width, height = edges
                told.box_annotations.append(wire.BoxAnnotation(x=left, y=top, width=width, height=height, **named))
        case Point():
            x, y = _clipped(one.x, one.y, size)
            told.point_annotations.append(wire.PointAnnotation(x=x, y=y, **named))
        case Classification():
            told.classification_annotation = told.classification_annotation or wire.ClassificationAnnotation(**named)
        case Segmentation():
            pass


def _is_finite(shape: Detection) -> bool:
    match shape:
        case Box():
            return isfinite(shape.x + shape.y + shape.width + shape.height)
        case Point():
            return isfinite(shape.x + shape.y)
        case Segmentation(points=points):
            return all(map(isfinite, chain.from_iterable(points)))
        case Classification():
            return True


def _box(one: Any, label: str, confidence: float = 1.0) -> Box:
    return Box(label=label, confidence=confidence, x=one.x, y=one.y, width=one.width, height=one.height)


def _point(one: Any, label: str, confidence: float = 1.0) -> Point:
    return Point(label=label, confidence=confidence, x=one.x, y=one.y)


def _rounded(box: Box, size: tuple[int, int] | None) -> tuple[int, int, int, int] | None:
    """A box on whole pixels, as `x, y, width, height`: its edges are clipped, rounded and subtracted (5.1).

    `None` if nothing is left.
    """
    across, down = size or (inf, inf)
    left, top = round(min(max(box.x, 0.0), across)), round(min(max(box.y, 0.0), down))
    right = round(min(max(box.x + box.width, 0.0), across))
    bottom = round(min(max(box.y + box.height, 0.0), down))
    if right <= left or bottom <= top:
        return None
    return left, top, right - left, bottom - top


def _clipped(x: float, y: float, size: tuple[int, int] | None) -> tuple[float, float]:
    x, y = max(x, 0.0), max(y, 0.0)
    return (x, y) if size is None else (min(x, size[0]), min(y, size[1]))
