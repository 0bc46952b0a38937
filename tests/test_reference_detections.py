"""Real models on real photographs give what their authors' code gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loopcore import imaging
from loopcore.drivers.onnx import OnnxBackend
from loopcore.geometry import iou
from loopcore.package import open_model, write_package
from loopcore.types import Box, Detection, Frame, FrameInfo, ModelInfo

pytestmark = pytest.mark.anyio

MODELS = ["fastestdet-coco", "ultraface-rfb320", "yolox-nano-coco"]
SPECS: dict[str, dict[str, Any]] = {
    "fastestdet-coco": {
        "decoder": "fastestdet",
        "size": 352,
        "channels": "bgr",
        "scale": 1 / 255,
        "resize": "squash",
        "confidence": 0.6,
        "iou": 0.5,
    },
    "ultraface-rfb320": {
        "decoder": "ultraface",
        "size": {"x": 320, "y": 240},
        "mean": 127,
        "std": 128,
        "resize": "squash",
        "background": 0,
        "confidence": 0.7,
        "iou": 0.3,
    },
    "yolox-nano-coco": {
        "decoder": "yolox",
        "size": [416, 416],
        "channels": "bgr",
        "resize": "letterbox",
        "placement": "top_left",
        "pad": 114,
        "confidence": 0.35,
        "iou": 0.5,
    },
}
TOLERANCE = 0.05


def predict(backend: OnnxBackend, data: bytes) -> tuple[Detection, ...]:
    header = imaging.probe(data)
    pixels = imaging.decode(data, header=header, size=backend.decode_size(header.width, header.height))
    info = FrameInfo(width=header.width, height=header.height, time=datetime.now(UTC))
    return backend.infer([Frame(info=info, pixels=pixels)])[0].detections


def differences(found: Sequence[Detection], wanted: Sequence[dict[str, Any]], threshold: float) -> list[str]:
    """What does not agree: missing, with another score, or invented clearly above the threshold."""
    left = [one for one in found if isinstance(one, Box)]
    wrong = []
    for one in wanted:
        box = np.array([one["box_xyxy"]])
        rivals = [other for other in left if other.label == one["label"]]
        overlaps = [iou(box, np.array([[b.x, b.y, b.x + b.width, b.y + b.height]]))[0, 0] for b in rivals]
        if not rivals or max(overlaps) < 0.9:
            wrong.append(f"missing {one}, best overlap {max(overlaps, default=0):.2f}")
            continue
        match = rivals[int(np.argmax(overlaps))]
        left.remove(match)
        if abs(match.confidence - one["score"]) > TOLERANCE:
            wrong.append(f"{one} has score {match.confidence:.3f}")
    wrong.extend(f"invented {other}" for other in left if other.confidence > threshold + TOLERANCE)
    return wrong


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["bare", "package"])
async def test_detections_agree_with_the_reference(shared_data: Path, tmp_path: Path, name: str, form: str):
    source = shared_data / "models" / name
    reference = json.loads((source / "reference_detections.json").read_text())
    threshold = reference["score_threshold"]
    model = open_model(next(source.glob("*.onnx")), tmp_path / "unused")
    if form == "package":
        (tmp_path / "model.onnx").write_bytes(next(source.glob("*.onnx")).read_bytes())
        info = ModelInfo(name=name, version="1", format="onnx", labels=model.info.labels, spec=SPECS[name])
        model = write_package(tmp_path, info)
    async with OnnxBackend(OnnxBackend.Options(), model) as backend:
        assert (backend.recipe.confidence, backend.recipe.iou) == (threshold, reference["nms_iou"])
        assert backend.recipe.decoder == SPECS[name]["decoder"]
        wrong = {}
        for photo, expected in reference["photos"].items():
            found = predict(backend, (shared_data / "photos" / photo).read_bytes())
            wrong[photo] = differences(found, expected["detections"], threshold)
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize(
    ("name", "orientation"), [("yolox-nano-coco", 1), ("yolox-nano-coco", 6), ("ultraface-rfb320", 3)]
)
async def test_a_scaled_decode_of_a_large_turned_jpeg_gives_boxes_in_its_own_upright_pixels(
    shared_data: Path, tmp_path: Path, name: str, orientation: int
):
    source = shared_data / "models" / name
    reference = json.loads((source / "reference_detections.json").read_text())
    threshold = reference["score_threshold"]
    model = open_model(next(source.glob("*.onnx")), tmp_path / "unused")
    wrong = {}
    async with OnnxBackend(OnnxBackend.Options(confidence=threshold - TOLERANCE), model) as backend:
        for photo in ("astronaut.png", "bottles.jpg"):
            upright = Image.open(shared_data / "photos" / photo).convert("RGB")
            factor = 3840 / upright.width
            upright = upright.resize((3840, round(upright.height * factor)), Image.Resampling.BICUBIC)
            stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.get(orientation)
            exif = Image.Exif()
            exif[0x0112] = orientation
            target = BytesIO()
            (upright.transpose(stored) if stored is not None else upright).save(target, "jpeg", quality=92, exif=exif)
            data = target.getvalue()
            header = imaging.probe(data)
            assert (header.width, header.height) == upright.size
            scaled = imaging.decode(data, size=backend.decode_size(header.width, header.height))
            assert scaled.shape[1] <= 960
            wanted = [
                {**one, "box_xyxy": [side * factor for side in one["box_xyxy"]]}
                for one in reference["photos"][photo]["detections"]
            ]
            wrong[photo] = differences(predict(backend, data), wanted, threshold)
    assert not any(wrong.values()), wrong
