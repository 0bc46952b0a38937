"""The Loop's JSON as Structs (`learning-loop.md` 2.3, 3.5, 5, 10). Shared by the nodes and the self-hosted server.

Keys that are not listed are ignored, as the reference does. Types are strict where a server's or a node's answer is
read; what people's clients send is read by `tolerant.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

Confidence: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
CategoryType: TypeAlias = Literal["box", "point", "segmentation", "classification"]
State: TypeAlias = Literal["inbox", "annotate", "review", "complete", "trash"]
IMAGE_STATES = ("inbox", "annotate", "review", "complete")
"""The states whose images a trainer looks at after a training (9.1)."""


class Category(Struct, kw_only=True, omit_defaults=True):
    """A label as the Loop knows it (2.3)."""

    id: str
    name: str
    description: str | None = None
    hotkey: str | None = None
    color: str | None = None
    point_size: int | None = None
    type: CategoryType | None = None


class Context(Struct, frozen=True):
    """Whose project it is (3.5)."""

    organization: str
    project: str


# Detections and annotations (5.1)


class Coordinate(Struct):
    """A corner of an outline; nodes send integers."""

    x: float
    y: float


class Shape(Struct):
    """An outline."""

    points: list[Coordinate]


class BoxDetection(Struct, kw_only=True):
    """A box; `x`, `y` is its top left corner, in pixels of the upright image."""

    category_name: str
    x: int
    y: int
    width: int
    height: int
    model_name: str
    confidence: Confidence
    category_id: str | None = None


class PointDetection(Struct, kw_only=True):
    """A place."""

    category_name: str
    x: float
    y: float
    model_name: str
    confidence: Confidence
    category_id: str | None = None


class SegmentationDetection(Struct, kw_only=True):
    """An outline; a string `x1,y1,x2,y2,…` in a detector's answers and uploads (4.3), a `Shape` elsewhere."""

    category_name: str
    shape: Shape | str
    model_name: str
    confidence: Confidence
    category_id: str | None = None


class ClassificationDetection(Struct, kw_only=True):
    """A label for the whole image."""

    category_name: str
    model_name: str
    confidence: Confidence
    category_id: str | None = None


AnyDetection: TypeAlias = BoxDetection | PointDetection | SegmentationDetection | ClassificationDetection


class BoxAnnotation(Struct, kw_only=True):
    """A human's box."""

    category_name: str
    x: int
    y: int
    width: int
    height: int
    category_id: str | None = None


class PointAnnotation(Struct, kw_only=True):
    """A human's point."""

    category_name: str
    x: float
    y: float
    category_id: str | None = None


class ClassificationAnnotation(Struct, kw_only=True):
    """A human's label for the whole image."""

    category_name: str
    category_id: str | None = None


class ImageMetadata(Struct, kw_only=True):
    """What is known of an image on its way to the Loop, and a detector's answer (5.2)."""

    box_detections: list[BoxDetection] = field(default_factory=list)
    point_detections: list[PointDetection] = field(default_factory=list)
    segmentation_detections: list[SegmentationDetection] = field(default_factory=list)
    classification_detections: list[ClassificationDetection] = field(default_factory=list)
    box_annotations: list[BoxAnnotation] = field(default_factory=list)
    point_annotations: list[PointAnnotation] = field(default_factory=list)
    classification_annotation: ClassificationAnnotation | None = None
    tags: list[str] = field(default_factory=list)
    created: str | None = None
    source: str | None = None
    state: str | None = None

    @property
    def detections(self) -> list[AnyDetection]:
        """All of them, in the order in which a detector's filter takes them (6)."""
        return [
            *self.box_detections,
            *self.point_detections,
            *self.segmentation_detections,
            *self.classification_detections,
        ]


class Detections(Struct, kw_only=True):
    """What a trainer found on an image of the Loop (5.3)."""

    image_id: str
    box_detections: list[BoxDetection] = field(default_factory=list)
    point_detections: list[PointDetection] = field(default_factory=list)
    segmentation_detections: list[SegmentationDetection] = field(default_factory=list)
    classification_detections: list[ClassificationDetection] = field(default_factory=list)


# Images of the Loop (2.3)


class StoredBox(Struct, kw_only=True):
    """A human's box on an image of the Loop."""

    category_id: str
    x: float
    y: float
    width: float
    height: float


class StoredPoint(Struct, kw_only=True):
    """A human's point on an image of the Loop."""

    category_id: str
    x: float
    y: float


class StoredSegmentation(Struct, kw_only=True):
    """A human's outline on an image of the Loop."""

    category_id: str
    shape: Shape


class StoredClassification(Struct, kw_only=True):
    """A human's label for an image of the Loop."""

    category_id: str


class Tag(Struct, kw_only=True):
    """A tag of an image of the Loop."""

    name: str
    id: str | None = None


class ImageData(Struct, kw_only=True):
    """What the Loop says of an image."""

    id: str
    set: str | None = None
    state: str | None = None
    width: int | None = None
    height: int | None = None
    created: str | None = None
    box_annotations: list[StoredBox] = field(default_factory=list)
    point_annotations: list[StoredPoint] = field(default_factory=list)
    segmentation_annotations: list[StoredSegmentation] = field(default_factory=list)
    classification_annotation: StoredClassification | None = None
    tags: list[Tag] = field(default_factory=list)


class ImagesData(Struct):
    """The answer of `GET …/images?ids=`."""

    images: list[ImageData]


class ProjectData(Struct):
    """The answer of `GET …/data?state=`."""

    image_ids: list[str]
    categories: list[Category] = field(default_factory=list)


# Models


class ModelInformation(Struct, kw_only=True, omit_defaults=True):
    """A model as a detector shows it (5.4), and what the Loop writes into a package's `model.json` (8)."""

    id: str
    organization: str
    project: str
    version: str
    host: str | None = None
    categories: list[Category] = field(default_factory=list)
    resolution: int | None = None
    model_root_path: str | None = None
    model_size: str | None = None
    conf_threshold: float | None = None


class ListedModel(Struct, kw_only=True):
    """A model in the answer of `GET …/models`; one without a version exists, and nobody can choose it."""

    id: str
    version: str | None = None
    formats: list[str] = field(default_factory=list)
    created: str | None = None
    comment: str | None = None
    host: str | None = None


class ListedModels(Struct):
    """The answer of `GET …/models`."""

    models: list[ListedModel]


class Target(Struct):
    """The answer of `GET …/deployment/target`."""

    model_uuid: str
    version: str


class StoredModel(Struct):
    """The answer to a model upload; a 409 has it below `detail` (2.2)."""

    id: str


class ListedProject(Struct):
    """A project in the answer of `GET /projects`."""

    organization_id: str
    project_id: str
    resource: str | None = None


class ListedProjects(Struct):
    """The answer of `GET /projects`."""

    projects: list[ListedProject]


# The nodes' status (3.5)


class PretrainedModel(Struct, kw_only=True):
    """What a training may start from."""

    name: str
    label: str
    description: str = ""


class TrainerStatus(Struct, kw_only=True):
    """`update_trainer`. Releases up to 0.11.1 also sent counts of images."""

    id: str
    name: str
    state: str
    uptime: float | None = None
    errors: dict[str, str] = field(default_factory=dict)
    progress: float | None = None
    pretrained_models: list[PretrainedModel] = field(default_factory=list)
    architecture: str | None = None
    context: Context | None = None


class Confusion(Struct):
    """Of one category."""

    tp: int
    fp: int
    fn: int


class TrainingOut(Struct, kw_only=True):
    """`update_training`; the keys of `confusion_matrix` are ids of categories.

    `training_number` is ours: without it a Loop must remember which training it gave to whom.
    """

    trainer_id: str
    trainer_name: str | None = None
    confusion_matrix: dict[str, Confusion] | None = None
    train_image_count: int | None = None
    test_image_count: int | None = None
    hyperparameters: dict[str, Any] | None = None
    best_epoch: int | None = None
    training_number: int | None = None


class BeginTraining(Struct, kw_only=True):
    """The third argument of `begin_training` since 0.13 (3.3)."""

    categories: list[Category]
    hyperparameters: dict[str, Any]
    training_number: int
    model_variant: str
    base_model_uuid: str | None = None


class OldBeginTraining(Struct, kw_only=True):
    """The third argument of `begin_training` up to 0.12; `id` is a model's, or the name of a pretrained one."""

    id: str
    categories: list[Category]
    training_number: int
    resolution: int
    flip_rl: bool
    flip_ud: bool


class AnnotationNodeStatus(Struct, kw_only=True):
    """`update_annotation_node`."""

    id: str
    name: str
    state: str = "online"
    uptime: float = 0
    errors: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=lambda: ["segmentation"])


class DetectorStatus(Struct, kw_only=True):
    """The body of `POST …/detectors` (`uuid`); over an old socket the same with `id`."""

    uuid: str
    name: str
    model_format: str
    operation_mode: str
    state: str = "online"
    uptime: int = 0
    current_model: str | None = None
    target_model: str | None = None
    errors: dict[str, str] = field(default_factory=dict)
    node_version: str | None = None


class Ack(Struct, kw_only=True):
    """The answer to a socket event (3.2)."""

    success: bool
    error_msg: str | None = None
    payload: Any = None


# The annotator (10)


class UserCoordinate(Struct):
    """Where the person points; the Loop sends integers."""

    x: float
    y: float


class UserInputData(Struct, kw_only=True):
    """What a person did."""

    coordinate: UserCoordinate
    event_type: str
    context: Context
    image_uuid: str
    category: Category
    key_up: str | None = None
    key_down: str | None = None
    epsilon: float | None = None
    is_shift_key_pressed: bool | None = None


class UserInput(Struct, kw_only=True):
    """The argument of `handle_user_input`."""

    frontend_id: Annotated[str, Meta(max_length=1000)]
    data: UserInputData


class SegmentationAnnotation(Struct, kw_only=True):
    """The third argument of `update_segmentation_annotation`."""

    id: str
    shape: Shape
    image_id: str
    category_id: str
