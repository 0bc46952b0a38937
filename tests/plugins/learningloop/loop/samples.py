"""The projects that authors of clients expect to find (14.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg

from loop.store import Files, Project, Store, category

DEMO = "zauberzeug/demo"
MODEL_IDS = {
    version: f"00000000-0000-0000-0000-0000000000{tail}" for version, tail in (("1.0", 10), ("1.1", 11), ("1.2", 12))
}
ANNOTATOR = "zauberzeug/pytest_nodelib_annotator"
ANNOTATOR_IMAGE = "10f7d7d2-4076-7006-af37-fa28a6a848ae"
TYPES = ("box", "point", "segmentation", "classification")


def picture(seed: int = 0, *, width: int = 64, height: int = 48) -> bytes:
    """A JPEG with a bright square; another seed, another place."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    size = min(width, height) // 3
    left, top = seed * 7 % (width - size), seed * 5 % (height - size)
    pixels[top : top + size, left : left + size] = (250, 250, 200 - seed % 100)
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=90)
    return jpeg


def mocked() -> Files:
    """The files of a model in the format `mocked`; the Loop adds `model.json`."""
    return {"file_1.txt": b"content of file one", "file_2.txt": b"content of file two"}


def demo(store: Store) -> Project:
    """`zauberzeug/demo`: three models, target 1.1, a category `purple point`, images in each state, no training."""
    names = (
        ("white box", "box"),
        ("purple point", "point"),
        ("red area", "segmentation"),
        ("grey day", "classification"),
    )
    project = store.add_project("zauberzeug", "demo", [category(name, type) for name, type in names])
    for version, id in MODEL_IDS.items():
        project.add_model(version, id=id, mocked=mocked())
    project.target = MODEL_IDS["1.1"]
    fill(project, inbox=2, annotate=1, review=1, complete=8)
    return project


def annotator(store: Store) -> Project:
    """The project of the reference's own annotator test, with the image that it names."""
    project = store.add_project("zauberzeug", "pytest_nodelib_annotator", [category("some category", "segmentation")])
    project.add_image(picture(), state="complete", id=ANNOTATOR_IMAGE)
    return project


def generate(store: Store, organization: str, wish: dict[str, Any]) -> Project:
    """What the generator makes (14.3)."""
    categories = [
        category(f"{type} category {number}", type)
        for type in TYPES
        for number in range(wish.get(f"{type}_categories") or 0)
    ]
    project = store.add_project(organization, wish["project_name"], categories)
    fill(project, **{state: wish.get(state) or 0 for state in ("inbox", "annotate", "review", "complete")})
    for _ in range(wish.get("trainings") or 0):
        project.add_model(project.next_version(), mocked=mocked())
    return project


def fill(project: Project, **counts: int) -> None:
    """Add so many images of each state; every third of the complete ones is for testing, all have a box."""
    boxes = [category for category in project.categories if category["type"] == "box"]
    for state, count in counts.items():
        for number in range(count):
            image = project.add_image(
                picture(len(project.images)),
                state=state,
                set="test" if number % 3 == 2 else "train",
                width=64,
                height=48,
            )
            image.data["box_annotations"] = [
                {"id": f"{image.id[:-4]}0000", "image_id": image.id, "category_id": box["id"]}
                | {"x": 5, "y": 6, "width": 16, "height": 16}
                for box in boxes[:1]
            ]
