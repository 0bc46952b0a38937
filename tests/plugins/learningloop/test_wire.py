"""The Loop's JSON is read as strictly as the protocol allows, and written as it wants it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from loopcore_learningloop import wire

# `learning-loop.md` 2.3, after a sample of a real Loop of 2021.
IMAGE: dict[str, Any] = {
    "id": "i",
    "created": "2021-07-09T14:21:50.834050",
    "state": "complete",
    "set": "train",
    "resource": "/o/projects/p/images/i/main",
    "width": 1600,
    "height": 1200,
    "box_annotations": [
        {"id": "a", "image_id": "i", "category_id": "c", "x": 1160, "y": 762, "width": 80, "height": 69}
    ],
    "point_annotations": [{"id": "b", "image_id": "i", "category_id": "c", "x": 1, "y": 2}],
    "segmentation_annotations": [
        {"id": "d", "image_id": "i", "category_id": "c", "shape": {"points": [{"x": 1, "y": 2}]}}
    ],
    "skeleton_annotations": [],
    "classification_annotation": {"category_id": "c"},
    "tags": [{"id": "t", "name": "image source two"}],
}


def test_recorded_image_is_read() -> None:
    image = msgspec.convert(IMAGE, wire.ImageData)
    assert (image.box_annotations[0].x, image.tags[0].name) == (1160, "image source two")
    assert image.classification_annotation == wire.StoredClassification(category_id="c")


def test_image_of_which_only_the_id_is_known_is_read() -> None:
    assert msgspec.convert({"id": "i"}, wire.ImageData).box_annotations == []


@pytest.mark.parametrize(
    ("shape", "told", "path"),
    [
        (wire.ImagesData, {"images": [{"id": 7}]}, r"\$\.images\[0\]\.id"),
        (wire.ImageData, IMAGE | {"width": "1600"}, r"\$\.width"),
        (wire.ListedModels, {"models": [{"version": "1"}]}, r"id"),
        (wire.ProjectData, {"image_ids": [1]}, r"\$\.image_ids"),
        (wire.Target, {"model_uuid": "m"}, r"version"),
        (wire.Category, {"id": "c", "name": "n", "point_size": 1.5}, r"point_size"),
        (wire.Category, {"id": "c", "name": "n", "type": "line"}, r"type"),
        (wire.Ack, {"payload": None}, r"success"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(shape: type, told: dict[str, Any], path: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=path):
        msgspec.convert(told, shape)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        (
            wire.DetectorStatus(uuid="u", name="n", model_format="onnx", operation_mode="idle"),
            "uuid name state uptime model_format current_model target_model errors operation_mode node_version",
        ),
        (
            wire.TrainerStatus(id="i", name="n", state="idle"),
            "id name state uptime errors progress pretrained_models architecture context",
        ),
        (
            wire.TrainingOut(trainer_id="i"),
            "trainer_id trainer_name confusion_matrix train_image_count test_image_count hyperparameters best_epoch",
        ),
        (wire.AnnotationNodeStatus(id="i", name="n"), "id name state uptime errors capabilities"),
        (
            wire.BoxDetection(
                category_name="c", x=1, y=2, width=3, height=4, model_name="1", confidence=0.5, category_id=None
            ),
            "category_name x y width height model_name confidence category_id",
        ),
        (
            wire.ImageMetadata(),
            (
                "box_detections point_detections segmentation_detections classification_detections box_annotations"
                " point_annotations classification_annotation tags created source state"
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_hold_all_their_fields_whatever_is_known(message: msgspec.Struct, keys: str) -> None:
    assert set(keys.split()) <= set(msgspec.to_builtins(message))
