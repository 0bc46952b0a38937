"""The shapes of what nodes send (3.4, 3.5, 5), strict: what is not listed, or missing though always sent, is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Uuid: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
CategoryId: TypeAlias = str | None
"""An id, null, or empty for a name that the model does not know (4.2)."""
Version: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)*$")] | None


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is not listed is refused."""


class Point(Strict):
    """A corner; integers (5.1)."""

    x: int
    y: int


class Shape(Strict):
    """An outline."""

    points: list[Point]


class BoxDetection(Strict):
    category_name: str
    x: int
    y: int
    width: int
    height: int
    model_name: str
    confidence: Share
    category_id: CategoryId = None


class PointDetection(Strict):
    category_name: str
    x: float
    y: float
    model_name: str
    confidence: Share
    category_id: CategoryId = None


class SegmentationDetection(Strict):
    category_name: str
    shape: Shape | str
    model_name: str
    confidence: Share
    category_id: CategoryId = None


class ClassificationDetection(Strict):
    category_name: str
    model_name: str
    confidence: Share
    category_id: CategoryId = None


class BoxAnnotation(Strict):
    category_name: str
    x: int
    y: int
    width: int
    height: int
    category_id: CategoryId = None


class PointAnnotation(Strict):
    category_name: str
    x: float
    y: float
    category_id: CategoryId = None


class ClassificationAnnotation(Strict):
    category_name: str
    category_id: CategoryId = None


class ImageMetadata(Strict):
    """What comes with an upload (5.2)."""

    box_detections: list[BoxDetection] = []
    point_detections: list[PointDetection] = []
    segmentation_detections: list[SegmentationDetection] = []
    classification_detections: list[ClassificationDetection] = []
    box_annotations: list[BoxAnnotation] = []
    point_annotations: list[PointAnnotation] = []
    classification_annotation: ClassificationAnnotation | None = None
    tags: list[str] = []
    created: str | None = None
    source: str | None = None
    state: Literal["inbox", "annotate", "review", "complete", "trash"] | None = None


class ShapeDetection(Strict):
    """A segmentation of a trainer: here the shape stays an object (5.3)."""

    category_name: str
    shape: Shape
    model_name: str
    confidence: Share
    category_id: CategoryId = None


class Detections(Strict):
    """A trainer's findings on one image (5.3)."""

    image_id: str
    box_detections: list[BoxDetection]
    point_detections: list[PointDetection]
    segmentation_detections: list[ShapeDetection]
    classification_detections: list[ClassificationDetection]


class Pretrained(Strict):
    name: str
    label: str
    description: str


class Context(Strict):
    organization: str
    project: str


class TrainerStatus(Strict):
    """`update_trainer` (3.5); the states are those of section 9."""

    id: str
    name: str
    state: Literal[
        "idle", "initialized", "preparing", "blocked", "waiting_for_slot",
        "data_downloading", "data_downloaded", "train_model_downloading", "train_model_downloaded",
        "running", "training_finished", "confusion_matrix_syncing", "confusion_matrix_synced",
        "train_model_uploading", "train_model_uploaded", "detecting", "detected", "detection_uploading",
        "ready_for_cleanup",
    ]  # fmt: skip
    uptime: float | None
    errors: dict[str, str]
    progress: Share | None
    pretrained_models: list[Pretrained]
    architecture: str | None
    context: Context | None


class Confusion(Strict):
    tp: int
    fp: int
    fn: int


class TrainingOut(Strict):
    """`update_training` (3.5); no release sends the number, and it is welcome (13, 31)."""

    trainer_id: str
    trainer_name: str
    confusion_matrix: dict[str, Confusion] | None
    train_image_count: int | None
    test_image_count: int | None
    hyperparameters: dict[str, Any] | None
    best_epoch: int | None
    training_number: int | None = None
    """Beyond the protocol: no release sends it."""


class AnnotationNodeStatus(Strict):
    """`update_annotation_node` (3.5)."""

    id: str
    name: str
    state: Literal["online"]
    uptime: float
    errors: dict[str, str]
    capabilities: list[str]


class SegmentationAnnotation(Strict):
    """The third argument of `update_segmentation_annotation` (10)."""

    id: Uuid
    shape: Shape
    image_id: str
    category_id: str


class DetectorStatus(Strict):
    """The body of `POST …/detectors` (3.5)."""

    uuid: str
    name: str
    state: Literal["online"]
    uptime: int
    model_format: str
    current_model: Version
    target_model: Version
    errors: dict[str, str]
    operation_mode: Literal["startup", "idle", "detecting"]
    node_version: str | None


class OldDetectorStatus(Strict):
    """The third argument of `update_detector` (3.4, 12)."""

    id: str
    name: str
    state: Literal["online"]
    uptime: float
    model_format: str
    current_model: Version
    target_model: Version
    errors: dict[str, str]
    operation_mode: Literal["startup", "idle", "detecting"]


def wrong_with(value: Any, shape: type[Any]) -> str | None:
    """What is wrong with it, with the path to the field; `None`: nothing."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as exc:
        return f"{getattr(shape, '__name__', shape)}: {exc}"
    return None
